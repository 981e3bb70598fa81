import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from ovd_d2 import add_ovd_config
from ovd_d2.errors import OVDError


def make_cfg(**keys):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.TIMM.NAME = "resnet18"
    for key, value in keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_pyramid_levels_and_strides(name):
    backbone = build_backbone(make_cfg(NAME=name), ShapeSpec(channels=3))
    assert backbone.output_shape().keys() == {"p3", "p4", "p5"}
    features = backbone(torch.randn(2, 3, 64, 96))
    for level, spec in backbone.output_shape().items():
        assert features[level].shape == (2, 16, 64 // spec.stride, 96 // spec.stride)


def test_extra_level_when_the_rpn_wants_it():
    cfg = make_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert backbone(torch.randn(1, 3, 64, 64))["p6"].shape == (1, 16, 1, 1)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_frozen_stages_and_statistics_stay_in_training(name):
    cfg = make_cfg(NAME=name, FREEZE_STAGES=2)
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).train()
    net = backbone.bottom_up
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    first, last = list(dict(net.named_parameters()))[0], list(dict(net.named_parameters()))[-1]
    assert first in frozen and last not in frozen
    assert any("bn" in n for n in frozen)
    before = {n: b.clone() for n, b in net.named_buffers()}
    sum(f.sum() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(torch.equal(before[n], b) for n, b in net.named_buffers())
    trained = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert trained == []


def test_packaged_imagenet_weights_know_a_cat():
    """The weights are real and land in the right places: the whole network names the photo."""
    from importlib.util import find_spec
    from pathlib import Path

    import timm
    from skimage import data

    from ovd_d2.layers.timm_weights import _PACKAGED, _rename_by_position

    package, file, name = _PACKAGED["efficientnet-lite0"]
    path = Path(find_spec(package).submodule_search_locations[0]) / file
    state = _rename_by_position(torch.load(path, weights_only=True), name)
    net = timm.create_model(name).eval()
    net.load_state_dict(state)
    photo = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None].float()
    photo = torch.nn.functional.interpolate(photo, (224, 224), mode="bilinear", antialias=True)
    cats = {281, 282, 283, 284, 285}  # ImageNet's house cats
    assert set(net((photo - 127) / 128)[0].topk(3).indices.tolist()) <= cats

    cfg = make_cfg(NAME=name, WEIGHTS="packaged:efficientnet-lite0")
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    features = backbone.bottom_up.net.state_dict()
    assert all(torch.equal(features[key], state[key]) for key in features)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"NAME": "resnet_nope"}, "MODEL.TIMM.NAME resnet_nope"),
        ({"OUT_STRIDES": [8, 64]}, "MODEL.TIMM.OUT_STRIDES"),
        ({"WEIGHTS": "nowhere.pth"}, "nowhere.pth"),
        ({"WEIGHTS": "packaged:efficientnet-lite0"}, "tf_efficientnet_lite0"),
        ({"FREEZE_STAGES": 9}, "MODEL.TIMM.FREEZE_STAGES is 9"),
    ],
)
def test_bad_keys_are_named(keys, message):
    with pytest.raises(OVDError, match=message):
        build_backbone(make_cfg(**keys), ShapeSpec(channels=3))


def test_weights_from_file(tmp_path):
    import timm
    from safetensors.torch import save_file

    full = timm.create_model("resnet18").state_dict()
    save_file(full, tmp_path / "w.safetensors")
    torch.save(full, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        backbone = build_backbone(make_cfg(WEIGHTS=str(tmp_path / name)), ShapeSpec(channels=3))
        loaded = backbone.bottom_up.net.state_dict()
        assert all(torch.equal(loaded[key], full[key]) for key in loaded)
    del full["layer1.0.conv1.weight"]
    torch.save(full, tmp_path / "short.pth")
    with pytest.raises(OVDError, match="short.pth lacks"):
        build_backbone(make_cfg(WEIGHTS=str(tmp_path / "short.pth")), ShapeSpec(channels=3))


def test_the_towers_weights_of_a_teacher():
    """The backbone computes what the teacher's image tower does, up to its last stage."""
    from ovd_d2.encoders import build_image_text_model

    keys = {"NAME": "tf_efficientnet_lite0", "WEIGHTS": "mini-teacher", "FREEZE_STAGES": 5}
    backbone = build_backbone(make_cfg(**keys), ShapeSpec(channels=3))
    x = torch.randn(3, 3, 64, 64)
    found = backbone.train().bottom_up(x)["stride32"]
    assert not found.requires_grad
    tower = build_image_text_model("mini-teacher", "cpu").image_tower.backbone
    y = tower.bn1(tower.conv_stem(x))
    for block in tower.blocks:
        y = block(y)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-4)


def test_frozen_stages_run_in_pieces():
    keys = {"NAME": "tf_efficientnet_lite0", "FREEZE_STAGES": 3}
    net = build_backbone(make_cfg(**keys), ShapeSpec(channels=3)).bottom_up.net
    kinds = [type(block).__name__ for block in net.blocks]
    assert kinds == ["InPieces"] * 3 + ["Sequential"] * 4


@pytest.mark.parametrize(
    "source, sentence",
    [
        ("mini-teacher", "whose image tower is tf_efficientnet_lite0, not resnet18"),
        ("exported:nowhere.safetensors", "nowhere.safetensors do not exist"),
    ],
)
def test_a_teacher_of_another_network_is_refused(source, sentence):
    with pytest.raises(OVDError, match=sentence):
        build_backbone(make_cfg(WEIGHTS=source), ShapeSpec(channels=3))
