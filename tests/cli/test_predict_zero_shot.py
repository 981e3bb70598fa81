"""``ovd predict --model hf:...``: zero-shot detectors of transformers."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from PIL import Image
from random_models import make_pixels
from tiny_detectors import SAVE, save_detr

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor

pytest.importorskip("transformers")
NAMES = "zebra crossing, red mug, cat"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(make_pixels(96, 120, 0)).save(path)
    return path


@pytest.fixture
def ovd(tmp_path):
    """``ovd predict`` as a process."""
    program = str(Path(sys.executable).with_name("ovd"))

    def run(*words):
        out = ["--out", tmp_path / "out", "--device", "cpu"]
        words = [program, "predict", *map(str, [*words, *out])]
        return warm_processes.run(words, capture_output=True, text=True, timeout=200)

    return run


@pytest.mark.slow
def test_as_a_process(tmp_path, picture, ovd):
    torch.manual_seed(0)
    folder = tmp_path / "grounding-dino"
    SAVE["grounding-dino"](folder)
    done = ovd(picture, "--vocab", NAMES, "--model", f"hf:{folder}", "--topk", 4)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    coco = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [c["name"] for c in coco["categories"]] == NAMES.split(", ")
    found = coco["annotations"]
    assert len(found) == 4 and coco["info"]["score_threshold"] == 0.3
    predictor = OpenVocabPredictor.from_pretrained(f"hf:{folder}", device="cpu", topk=4)
    assert predictor.vocabulary is None and predictor.score_threshold == 0.3
    predictor.set_vocabulary(NAMES)
    scores = predictor.predict(picture).scores
    assert [a["score"] for a in found] == pytest.approx(scores.tolist(), abs=1e-3)
    (tmp_path / "out/picture.png").unlink(missing_ok=True)


@pytest.mark.slow
def test_what_the_command_says_of_no_model_and_no_words(tmp_path, picture, ovd):
    done = ovd(picture, "--vocab", "cat", "--model", "hf:no/such")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: --model hf:no/such cannot be opened: 'no/such' is neither"
    )
    SAVE["owlvit"](tmp_path / "owl")
    done = ovd(picture, "--model", f"hf:{tmp_path / 'owl'}")
    assert done.returncode == 2
    assert 'The model does not bring its classes along: add --vocab "cat, red mug"' in done.stderr


def test_scores_below_those_of_a_yaml_can_be_asked_for(tmp_path, picture):
    SAVE["owlv2"](tmp_path / "owl")
    options = {"device": "cpu", "vocabulary": "cat, red mug", "topk": 500}
    asked = OpenVocabPredictor.from_pretrained(f"hf:{tmp_path / 'owl'}", **options)
    assert asked.score_threshold == 0.1
    every = OpenVocabPredictor.from_pretrained(
        f"hf:{tmp_path / 'owl'}", score_threshold=0.0, **options
    )
    few, many = asked.predict(picture), every.predict(picture)
    assert len(many) > len(few) or many.scores.min() >= 0.1
    assert many.image_size == (96, 120) and len(many) > 4


def test_a_closed_set_detector_is_refused(tmp_path):
    save_detr(tmp_path)
    with pytest.raises(OVDError, match=rf"--model hf:{tmp_path} cannot be asked in words: .* detr"):
        OpenVocabPredictor.from_pretrained(f"hf:{tmp_path}")


def test_hf_alone_names_no_model():
    with pytest.raises(OVDError, match="--model hf: names no model: add its name"):
        OpenVocabPredictor.from_pretrained("hf:")
