"""``ovd predict --vocab everything``, and a configuration that says so."""

import json
import sys
from pathlib import Path

import pytest
import warm_processes
from PIL import Image
from random_models import make_pixels, write_config


def test_a_configuration_may_say_so(tmp_path, config):
    """As train_net.py builds it."""
    from detectron2.modeling import build_model

    from ovd_d2.config_file import load_config
    from ovd_d2.modeling import get_vocabulary

    yaml = write_config(tmp_path / "config.yaml", names="everything")
    model = build_model(load_config(str(yaml), ["MODEL.TIMM.WEIGHTS", "", "MODEL.DEVICE", "cpu"]))
    assert len(get_vocabulary(model)) == 1305


@pytest.mark.slow
def test_as_a_process_with_the_shipped_model(tmp_path):
    picture = tmp_path / "scene.png"
    Image.fromarray(make_pixels(240, 320)).save(picture)
    ovd = str(Path(sys.executable).with_name("ovd"))
    words = [ovd, "predict", picture, "--vocab", "everything", "--out", tmp_path / "out",
             "--score-threshold", "0", "--topk", "50", "--device", "cpu"]  # fmt: skip
    done = warm_processes.run(words, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    names = [category["name"] for category in content["categories"]]
    assert len(names) == len(set(names)) == 1305
    found = content["annotations"]
    assert found and max(row["category_id"] for row in found) > 160
