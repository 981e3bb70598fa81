"""LSeg's checkpoints: every key, both ways, inside Lightning's files."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from detectron2.config import get_cfg

from ovd_d2 import add_ovd_config
from ovd_d2.checkpoint import (
    from_lseg,
    load_weights,
    read_lightning_state_dict,
    read_state_dict,
    to_lseg,
)
from ovd_d2.errors import OVDError
from ovd_d2.jobs.convert_checkpoint import convert_lseg, convert_to_lseg
from ovd_d2.modeling import LSeg

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "modeling"))

from small_lseg import golden_lseg, public_weights  # noqa: E402

RELEASED = json.loads((TESTS / "golden/lseg/state_dict_keys.json").read_text())
MODELS = ("clip_vitl16_384", "clip_vitb32_384", "clip_resnet101")
UNREAD = ("pretrained.model.norm.", "pretrained.model.head.", "scratch.refinenet4.resConfUnit1.")


def released(name, regulariser=False):
    """Names and shapes of a model of theirs, without numbers; CLIP's in half precision."""
    shapes = RELEASED["clip_pretrained"] | RELEASED[name]
    shapes |= RELEASED["head_block"] if regulariser else {}
    assert len(shapes) == RELEASED["n_keys"][name] + 2 * regulariser
    return {
        key: torch.empty(
            shape,
            device="meta",
            dtype=torch.int64 if key.endswith("num_batches_tracked") else torch.float32,
        )
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("regulariser", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_key_of_the_released_models_goes_there_and_back(name, regulariser):
    theirs = released(name, regulariser)
    found = from_lseg(theirs)
    assert found.has_regulariser == regulariser and found.embed_dim == 512
    assert all("clip_pretrained" in key or key[4:].startswith(UNREAD) for key in found.left_out)
    back = to_lseg(found.weights)
    without_clip = {k: v.shape for k, v in theirs.items() if "clip_pretrained" not in k}
    assert {k: v.shape for k, v in back.items()} == without_clip
    bare = from_lseg({key.removeprefix("net."): value for key, value in theirs.items()})
    assert bare.weights.keys() == found.weights.keys()


def full_size(name):
    """A model of ours of the size of a released one, without numbers."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "LSeg", "cpu"
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = "later"
    cfg.MODEL.BACKBONE.NAME = "build_timm_vit_backbone"
    cfg.MODEL.TIMM.NAME = "vit_large_patch16_384"
    if name == "clip_vitb32_384":
        cfg.MODEL.TIMM.NAME = "vit_base_patch32_384"
        cfg.MODEL.TIMM.VIT.BLOCKS = [2, 5, 8, 11]
        cfg.MODEL.TIMM.VIT.CHANNELS = [96, 192, 384, 768]
    if name == "clip_resnet101":
        cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
        cfg.MODEL.TIMM.NAME = "resnet101"
        cfg.MODEL.TIMM.OUT_STRIDES = [4, 8, 16, 32]
    with torch.device("meta"):
        return LSeg(cfg)


@pytest.mark.parametrize("name", MODELS)
def test_no_weight_is_missing_and_none_left_over(name):
    model = full_size(name)
    theirs = released(name)
    found = from_lseg(theirs)
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert ours.pop("head.encoder_id_bytes")
    assert ours == {key: value.shape for key, value in found.weights.items()}
    unread = sum(theirs[k].numel() for k in found.left_out if "running" not in k
                 and not k.endswith("num_batches_tracked"))  # fmt: skip
    count = sum(p.numel() for p in model.parameters())
    assert count + unread == RELEASED["n_params"][name]


class ModelCheckpoint:
    """In the place of Lightning's, under whose type old versions keep a callback's state."""


def lightning_file(path, weights, kind=ModelCheckpoint, module="pytorch_lightning"):
    kind.__module__ = module
    sys.modules[module] = sys.modules[__name__]  # so that it can be pickled
    try:
        torch.save({"state_dict": weights, "epoch": 3, "callbacks": {kind: {"best": 1.0}}}, path)
    finally:
        del sys.modules[module]
    return path


def theirs_of(name="lsegnet_tiny"):
    weights = {f"net.{key}": value for key, value in public_weights(name).items()}
    return {**weights, "net.clip_pretrained.text_projection": torch.ones(2, 2).half()}


def test_a_lightning_file_there_and_back_scores_the_same(tmp_path):
    theirs = theirs_of()
    source = lightning_file(tmp_path / "demo.ckpt", theirs)
    done = convert_lseg(source, tmp_path / "ours.pth")
    assert any("clip_pretrained.* (1), net.pretrained.model.norm" in fact for fact in done.facts)
    assert any("build_timm_vit_backbone" in fact for fact in done.facts)
    model = golden_lseg("lsegnet_tiny").eval()
    image = [{"image": torch.rand(3, 40, 50)}]
    before = model(image)[0]["sem_seg"]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = read_state_dict(str(tmp_path / "ours.pth"))
    load_weights(model, state, "ours.pth").check_whole()
    assert torch.equal(model(image)[0]["sem_seg"], before)
    torch.save({"model": model.state_dict()}, tmp_path / "trained.pth")
    convert_to_lseg(tmp_path / "trained.pth", tmp_path / "back.pth")
    back = read_lightning_state_dict(str(tmp_path / "back.pth"))
    read = {k: v for k, v in theirs.items() if not k[4:].startswith((*UNREAD, "clip_"))}
    assert all(torch.equal(back[key], value) for key, value in read.items())


def test_only_lightnings_classes_are_let_through(tmp_path):
    path = lightning_file(tmp_path / "x.ckpt", theirs_of(), module="evil_package")
    with pytest.raises(OVDError, match=r"x\.ckpt is not a file of tensors"):
        read_lightning_state_dict(str(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"], ids=["empty", "broken"])
def test_broken_files_are_named(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(OVDError, match=r"x\.ckpt"):
        read_lightning_state_dict(str(tmp_path / "x.ckpt"))
    with pytest.raises(OVDError, match=r"missing\.ckpt cannot be read"):
        read_lightning_state_dict(str(tmp_path / "missing.ckpt"))


def test_strange_keys_and_missing_ones_are_named():
    theirs = released("clip_vitb32_384")
    with pytest.raises(OVDError, match=r"net\.scratch\.extra\.weight belongs to no part of LSeg"):
        from_lseg({**theirs, "net.scratch.extra.weight": torch.zeros(1)})
    del theirs["net.scratch.layer2_rn.weight"]
    with pytest.raises(OVDError, match=r"net\.scratch\.layer2_rn\.weight\) is missing \(1 "):
        from_lseg(theirs)
    with pytest.raises(OVDError, match="no complete checkpoint of LSeg"):
        to_lseg({"head.projection.bias": torch.zeros(1)})
    ours = from_lseg(released("clip_vitb32_384")).weights
    with pytest.raises(OVDError, match=r"roi_heads\.x belongs to no part of their LSeg"):
        to_lseg({**ours, "roi_heads.x": torch.zeros(1)})


@pytest.mark.slow
def test_the_command(tmp_path):
    lightning_file(tmp_path / "demo.ckpt", theirs_of())
    ovd = Path(sys.executable).with_name("ovd")
    command = [ovd, "convert", "lseg", "demo.ckpt"]
    done = warm_processes.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "demo_converted.pth" in done.stdout and "left out" in done.stdout
    assert "backbone.vit.cls_token" in read_state_dict(str(tmp_path / "demo_converted.pth"))
