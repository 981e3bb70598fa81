"""Detectors with random weights, and the text encoder they were "trained" with."""

import sys
from pathlib import Path

import pytest
import torch

from ovd_d2.encoders import EncoderScheme, register_encoder

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/language"))

from hashing_encoder import HashingEncoder  # noqa: E402

DIM = 8
NAMES = "cat, red mug, traffic light"
YAML = """
_BASE_: {root}/configs/mini/vild_text_mask.yaml
MODEL:
  TIMM: {{NAME: test_efficientnet, FREEZE_STAGES: 1}}
  OPEN_VOCAB: {{VOCABULARY: "{names}", TEXT_ENCODER: {encoder}, EMBED_DIM: {dim}, LOGIT_SCALE: 5.0}}
  ROI_BOX_HEAD: {{FC_DIM: 32}}
  RPN: {{POST_NMS_TOPK_TEST: 30}}
INPUT: {{FORMAT: {order}, MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 160, MAX_PIXELS: 1000000}}
DATASETS: {{TRAIN: (), TEST: ()}}
TEST: {{DETECTIONS_PER_IMAGE: 20}}
"""


def register_hashing():
    """Makes the text encoder "hashing" known."""
    entry = EncoderScheme(
        lambda _: HashingEncoder().encoder_id, lambda *_: HashingEncoder(DIM), rest=None
    )
    register_encoder("hashing", entry)


def write_config(path, *, encoder="hashing", dim=DIM, order="RGB", names=NAMES):
    """A small version of configs/mini/vild_text_mask.yaml."""
    path.write_text(YAML.format(root=ROOT, encoder=encoder, dim=dim, order=order, names=names))
    return path


def write_checkpoint(config, path, seed=0):
    """What training for 4 iterations would leave, but random."""
    from detectron2.modeling import build_model

    from ovd_d2.config_file import load_config

    cfg = load_config(str(config), ["MODEL.TIMM.WEIGHTS", ""])
    torch.manual_seed(seed)
    model = build_model(cfg)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "iteration": 3, "optimizer": {"state": {}}}, path)
    return path


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The yaml of the random detector."""
    register_hashing()
    return write_config(tmp_path_factory.mktemp("random_model") / "config.yaml")


@pytest.fixture(scope="session")
def checkpoint(config):
    """Its weights."""
    return write_checkpoint(config, config.with_name("model_final.pth"))


@pytest.fixture(scope="session")
def exported(config, checkpoint):
    """Both as ``ovd export`` writes them."""
    from ovd_d2.inference.export import export_model

    out = config.with_name("exported")
    export_model(checkpoint, config, out)
    return out


@pytest.fixture(scope="session")
def text_cache_folder(tmp_path_factory):
    """Where text embeddings are cached, for all modules."""
    return tmp_path_factory.mktemp("text_cache")


@pytest.fixture(autouse=True, scope="module")
def text_cache(text_cache_folder):
    """The user's cache stays untouched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVD_D2_CACHE", str(text_cache_folder))
        yield


def make_pixels(height, width, seed=0):
    """(H, W, 3) uint8 RGB: coloured rectangles and some noise."""
    import numpy as np

    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(5):
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + height // 3 + 1, x : x + width // 3 + 1] = rng.integers(0, 256, 3)
    return np.clip(image + rng.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)


def assert_same(first, second, tolerance=0.0):
    """Equal detections in the same order."""
    assert first.image_size == second.image_size
    assert len(first) == len(second)
    assert first.get_fields().keys() == second.get_fields().keys()
    assert first.pred_classes.tolist() == second.pred_classes.tolist()
    exact = {"rtol": 0, "atol": tolerance}
    torch.testing.assert_close(first.scores, second.scores, **exact)
    torch.testing.assert_close(first.pred_boxes.tensor, second.pred_boxes.tensor, **exact)
    if first.has("pred_masks"):
        differing = (first.pred_masks != second.pred_masks).float().mean()
        assert differing <= tolerance
