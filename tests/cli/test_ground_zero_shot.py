"""``ovd ground --model hf:...``: Grounding DINO reads captions, OWL does not."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from PIL import Image
from random_models import make_pixels
from tiny_detectors import SAVE

from ovd_d2.inference import OpenVocabPredictor

pytest.importorskip("transformers")
CAPTION = "a cat on a red mug"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(make_pixels(96, 120, 0)).save(path)
    return path


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino"])
def test_a_predictor_grounds(tmp_path, picture, kind):
    torch.manual_seed(0)
    SAVE[kind](tmp_path / "dino")
    options = {"device": "cpu", "score_threshold": 0.0}
    predictor = OpenVocabPredictor.from_pretrained(f"hf:{tmp_path / 'dino'}", **options)
    found = predictor.ground(picture, CAPTION)
    assert found.caption.phrases() == ("cat", "red mug")
    assert found.instances.image_size == (96, 120)
    assert set(found.instances.pred_classes.tolist()) == {0, 1}
    assert predictor.vocabulary is None
    assert (found.instances.scores.diff() <= 0).all()
    one = predictor.ground(picture, CAPTION, [(13, 18)])
    assert one.caption.phrases() == ("d mug",)  # as it is given
    assert set(one.instances.pred_classes.tolist()) == {0}


@pytest.mark.slow
def test_as_a_process(tmp_path, picture):
    torch.manual_seed(0)
    SAVE["grounding-dino"](tmp_path / "dino")
    SAVE["owlv2"](tmp_path / "owl")
    ovd = str(Path(sys.executable).with_name("ovd"))

    def run(model, *words):
        words = [ovd, "ground", picture, CAPTION, "--model", f"hf:{tmp_path / model}", *words]
        return warm_processes.run(words, capture_output=True, text=True, timeout=250, cwd=tmp_path)

    done = run("dino", "--out", "out.jpg", "--json", "found.json", "--score-threshold", "0",
               "--per-phrase", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cat: 2 (" in done.stdout and "red mug: 2 (" in done.stdout
    content = json.loads((tmp_path / "found.json").read_text())
    assert [phrase["text"] for phrase in content["phrases"]] == ["cat", "red mug"]
    assert content["caption"] == CAPTION and len(content["boxes"]) == 4
    assert Image.open(tmp_path / "out.jpg").size[0] == 800

    refused = run("owl", "--out", "no.jpg")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(
        "error: HuggingFaceDetector (owlv2) finds classes and reads no captions: ground with a GLIP"
    )
    assert not (tmp_path / "no.jpg").exists()
