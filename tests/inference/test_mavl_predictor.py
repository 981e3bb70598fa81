"""A MAVL behind the predictor and the command: objects of any class, classes by name, phrases."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from detectron2.modeling import build_model
from PIL import Image
from random_models import make_pixels

from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference.export import export_model

PIXELS = make_pixels(120, 160)
MINI = Path(__file__).parents[2] / "configs" / "mini" / "mavl.yaml"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A config and weights at random."""
    folder = tmp_path_factory.mktemp("mavl")
    cfg = load_config(str(MINI), ["MODEL.DEVICE", "cpu", "MODEL.TIMM.WEIGHTS", ""])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.heads.boxes[-1].weight, std=0.2)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "config.yaml", folder / "model_final.pth"


@pytest.fixture(scope="module")
def predictor(files):
    return OpenVocabPredictor(*files, device="cpu")


def test_objects_then_classes_then_objects(predictor):
    assert predictor.vocabulary.names == ("object",)
    objects = predictor.predict(PIXELS)
    assert len(objects) > 1 and objects.pred_classes.eq(0).all()
    predictor.set_vocabulary("cat, red mug")
    assert predictor.vocabulary.names == ("cat", "red mug")
    named = predictor.predict(PIXELS)
    assert set(named.pred_classes.tolist()) == {0, 1}
    predictor.set_vocabulary("cat", negatives="dog", thresholds={"cat": 0.1})
    assert predictor.predict(PIXELS).pred_classes.eq(0).all()
    for more in ({"negatives": "dog"}, {"thresholds": {"cat": 0.5}}, {"alone": True}):
        with pytest.raises(OVDError, match="negatives, thresholds and alone are of names"):
            predictor.set_vocabulary(None, **more)
    predictor.set_vocabulary(None)
    torch.testing.assert_close(predictor.predict(PIXELS).scores, objects.scores)
    found = predictor.ground(PIXELS, "a cat beside a mug", [(2, 5), (15, 18)])
    assert set(found.instances.pred_classes.tolist()) <= {0, 1}


def test_others_need_names(config, checkpoint):
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu")
    with pytest.raises(OVDError, match="finds named classes alone"):
        predictor.set_vocabulary(None)


def test_an_export_needs_names(files, tmp_path):
    config, weights = files
    with pytest.raises(OVDError, match="set MODEL.OPEN_VOCAB.VOCABULARY"):
        export_model(weights, config, tmp_path / "out")


@pytest.mark.slow
def test_the_command_without_and_with_names(files, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    config, weights = files
    for names, wanted in ((), ["object"]), (("--vocab", "cat, mug"), ["cat", "mug"]):
        done = warm_processes.run(
            [sys.executable, "-m", "ovd_d2.cli.app", "predict", "a.png", "--config-file", config,
             "--weights", weights, "--score-threshold", "0.01", "--json", "out.json", *names],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "out.json").read_text())
        assert [one["name"] for one in found["categories"]] == wanted and found["annotations"]
