"""Grounding captions with a predictor, the picture, and ``ovd ground`` as a process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from detectron2.structures import Boxes, Instances
from PIL import Image

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference.grounding import Grounding, as_caption, check_reads_captions
from ovd_d2.structures import TokenSpans
from ovd_d2.visualization.grounding import draw_grounding

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
CAPTION = "a cat on a red chair"


@pytest.fixture(scope="module", params=["glip", "detclip_boxes"])
def run(request, tmp_path_factory):
    """The yaml and random weights of a mini model, and a picture."""
    from detectron2.modeling import build_model

    from ovd_d2.config_file import load_config

    folder = tmp_path_factory.mktemp(request.param)
    group = "GLIP" if request.param == "glip" else "DETCLIP"
    overrides = {f"{group}.SCORE_THRESH_TEST": "0.0", "TIMM.WEIGHTS": "", "DEVICE": "cpu",
                 "OPEN_VOCAB.VOCABULARY": "cat, chair"}  # fmt: skip
    overrides = [word for key, value in overrides.items() for word in (f"MODEL.{key}", value)]
    overrides += ["TEST.DETECTIONS_PER_IMAGE", "2000"]
    cfg = load_config(str(ROOT / f"configs/mini/{request.param}.yaml"), overrides)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return OpenVocabPredictor(run / "config.yaml", run / "model_final.pth", device="cpu")


def test_noun_phrases_are_found_in_the_picture(run, predictor):
    found = predictor.ground(run / "photo.png", CAPTION)
    assert found.caption.phrases() == ("cat", "red chair")
    assert found.image.shape == (120, 160, 3)
    assert found.instances.image_size == (120, 160)
    assert set(found.instances.pred_classes.tolist()) == {0, 1}
    assert predictor.vocabulary.names == ("cat", "chair")  # as it was


def test_spans_of_ones_own_and_an_image_as_an_array(run, predictor):
    pixels = np.asarray(Image.open(run / "photo.png"))
    found = predictor.ground(pixels, CAPTION, [(2, 5)], input_format="RGB")
    assert found.caption.phrases() == ("cat",)
    again = predictor.ground(run / "photo.png", TokenSpans(CAPTION, (((2, 5),),)))
    assert torch.equal(found.instances.scores, again.instances.scores)


def test_the_vocabulary_is_predicted_by_the_same_model(run, predictor):
    predictor.set_vocabulary("dog, red mug, spoon")
    instances = predictor.predict(run / "photo.png")
    predictor.set_vocabulary("cat, chair")
    assert set(instances.pred_classes.tolist()) == {0, 1, 2}
    own = "own-text-tower@" if hasattr(predictor.model, "class_embedder") else ""
    assert predictor.encoder_id[:15] == own


@pytest.mark.parametrize("names", ["owl", "red_mug, Red mug", "mug, mug., a mug of the colour red"])
def test_one_name_and_names_that_are_read_alike(run, predictor, names):
    """Every class is there, and those of one text score alike."""
    predictor.set_vocabulary(names)
    instances = predictor.predict(run / "photo.png")
    words = predictor.vocabulary.names
    predictor.set_vocabulary("cat, chair")
    best = [instances.scores[instances.pred_classes == k].max() for k in range(len(words))]
    assert len(words) == len(names.split(", "))
    if len(words) > 1 and hasattr(predictor.model, "class_embedder"):
        torch.testing.assert_close(best[0], best[1], rtol=0, atol=0)


def test_a_picture_does_not_depend_on_its_batch(run, predictor):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 90, 160, 3), dtype=np.uint8)
    pictures = [run / "photo.png", pixels[0], pixels[1][:, :90], pixels[2]]
    together = predictor.predict(pictures)
    for picture, found in zip(pictures, together):
        alone = predictor.predict(picture)
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-4, atol=1e-6)
        assert found.image_size == alone.image_size


@pytest.mark.parametrize(
    ("caption", "spans", "message"),
    [
        ("", None, "caption is empty"),
        ("and then of the", None, "has no noun phrase"),
        (CAPTION, [(2, 50)], r"span \[2, 50\]"),
        (CAPTION, [(5, 2)], r"span \[5, 2\]"),
        (CAPTION, [[(2, 5), (11, 14)], (50, 51)], r"span \[50, 51\]"),
    ],
)
def test_captions_that_cannot_be_used(caption, spans, message):
    with pytest.raises(OVDError, match=message):
        as_caption(caption, spans)


def test_the_best_boxes_of_each_phrase():
    instances = Instances((9, 9))
    instances.scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    instances.pred_classes = torch.tensor([2, 2, 0, 2])
    caption = as_caption("cat dog cow", [(0, 3), (4, 7), (8, 11)])
    found = Grounding(np.zeros((9, 9, 3), np.uint8), caption, instances)
    assert found.best(1).instances.scores.tolist() == pytest.approx([0.9, 0.7])
    assert found.best(2).instances.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    nothing = Grounding(found.image, caption, instances[torch.zeros(4, dtype=torch.bool)])
    assert len(nothing.best(1).instances) == 0


def test_a_phrase_in_pieces():
    caption = as_caption("red and white flag", [[(0, 3), (14, 18)], (8, 18)])
    assert caption.phrases() == ("red flag", "white flag")


def test_models_that_read_no_captions_say_so():
    with pytest.raises(OVDError, match="Linear finds classes and reads no captions"):
        check_reads_captions(torch.nn.Linear(1, 1))


def test_the_caption_below_the_picture_has_the_colours_of_the_boxes():
    instances = Instances((100, 200))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 10, 60, 60], [80, 20, 180, 90]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.5]), torch.tensor([0, 1])
    image = np.full((100, 200, 3), 255, np.uint8)
    long = "a cat " * 40 + "on a red chair"
    begin = len(long) - 9
    drawn = draw_grounding(image, TokenSpans(long, (((2, 5),), ((begin, len(long)),))), instances)
    assert drawn.shape[1] == 800 and drawn.shape[0] > 420
    strip = drawn[400:]
    from ovd_d2.visualization.detections import class_colour

    for phrase in (0, 1):
        assert (drawn[:400] == class_colour(phrase)).all(axis=2).any()
        assert (strip == class_colour(phrase)).all(axis=2).any()


@pytest.mark.slow
def test_the_command(run):
    ovd = Path(sys.executable).with_name("ovd")

    def command(*words):
        return warm_processes.run(
            [ovd, "ground", *words, "--config-file", "config.yaml", "--weights", "model_final.pth"],
            cwd=run, capture_output=True, text=True, timeout=200,
        )  # fmt: skip

    done = command("photo.png", CAPTION, "--out", "out.jpg", "--json", "found.json",
                   "--score-threshold", "0", "--topk", "7")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cat: " in done.stdout and "red chair: " in done.stdout
    content = json.loads((run / "found.json").read_text())
    assert [p["text"] for p in content["phrases"]] == ["cat", "red chair"]
    assert content["phrases"][1]["spans"] == [[11, 20]] and len(content["boxes"]) == 7
    assert Image.open(run / "out.jpg").size[0] == 800

    done = command("photo.png", CAPTION, "--out", "one.jpg", "--json", "one.json",
                   "--score-threshold", "0", "--per-phrase", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    of_phrases = [box["phrase"] for box in json.loads((run / "one.json").read_text())["boxes"]]
    assert sorted(of_phrases) == [0, 1]

    bad = command("photo.png", CAPTION, "--phrase", "dog")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"error: --phrase 'dog' is not in the caption {CAPTION!r}.\n"
