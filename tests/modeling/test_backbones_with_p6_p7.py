"""Swin and timm networks under an FPN with P6 and P7, and their weights."""

import pytest
import torch
from detectron2.modeling import build_backbone
from small_glip import small_config

from ovd_d2.errors import OVDError

STRIDES = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}


def check_levels(backbone, channels=16):
    assert {name: s.stride for name, s in backbone.output_shape().items()} == STRIDES
    maps = backbone(torch.randn(2, 3, 64, 96))
    sizes = {name: (-(-64 // s), -(-96 // s)) for name, s in STRIDES.items()}
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        name: (2, channels, *size) for name, size in sizes.items()
    }
    p6 = backbone.top_block.p6(maps["p5"])  # of P5, not of the network's last map
    torch.testing.assert_close(maps["p6"], p6)
    torch.testing.assert_close(maps["p7"], backbone.top_block.p7(p6.relu()))


def test_swin():
    check_levels(build_backbone(small_config()).eval())


def swin(checkpoint, **keys):
    cfg = small_config()
    for name, value in {"DEPTHS": [2, 1, 2, 1], "CHECKPOINT": checkpoint, **keys}.items():
        cfg.MODEL.SWIN[name] = value
    torch.manual_seed(0)
    return build_backbone(cfg)


@pytest.mark.filterwarnings("error:.*(checkpoint|requires_grad)")
@pytest.mark.parametrize("keys", [{}, {"DROP_PATH_RATE": 0.5}, {"FREEZE_STAGES": 2}])
def test_swin_with_recomputed_activations_has_the_same_gradients(keys):
    """Of two batches of different size too, of which the first is computed again last."""
    gradients = []
    for checkpoint in (False, True):
        backbone = swin(checkpoint, **keys).train()
        torch.manual_seed(1)
        images = torch.randn(2, 3, 64, 96), torch.randn(1, 3, 32, 64)
        sum(level.square().sum() for image in images
            for level in backbone(image).values()).backward()  # fmt: skip
        gradients.append({name: p.grad for name, p in backbone.named_parameters()})
    plain, recomputed = gradients
    frozen = {name for name, gradient in plain.items() if gradient is None}
    assert frozen == {n for n, p in backbone.named_parameters() if not p.requires_grad}
    for name in plain.keys() - frozen:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-5, atol=1e-5, msg=name)
    assert all(recomputed[name] is None for name in frozen)


def test_swin_keeps_less_with_recomputed_activations():
    kept = []
    for checkpoint in (False, True):
        backbone, sizes = swin(checkpoint).train(), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved, sizes=sizes: (sizes.append(saved.numel()), saved)[1], lambda saved: saved
        ):
            backbone(torch.randn(1, 3, 64, 96))
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.filterwarnings("error:.*(checkpoint|requires_grad)")
def test_swin_with_recomputed_activations_evaluates_as_without():
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain, other = (swin(checkpoint).eval()(image) for checkpoint in (False, True))
    assert all(torch.equal(plain[level], other[level]) for level in plain)


def timm_config(**keys):
    cfg = small_config()
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME = "resnet18"
    for name, value in keys.items():
        cfg.MODEL.TIMM[name] = value
    return cfg


def test_timm():
    check_levels(build_backbone(timm_config()).eval())


def test_timm_with_stochastic_depth_and_recomputed_activations():
    torch.manual_seed(0)
    plain = build_backbone(timm_config(NAME="resnet10t"))
    torch.manual_seed(0)
    cfg = timm_config(NAME="resnet10t", CHECKPOINT=True, DROP_PATH_RATE=0.3)
    other = build_backbone(cfg)
    rates = [m.drop_prob for m in other.modules() if hasattr(m, "drop_prob")]
    assert max(rates) == pytest.approx(0.3)
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    torch.testing.assert_close(plain.eval()(image)["p3"], other.eval()(image)["p3"])
    other.train()(image)["p3"].sum().backward()
    assert image.grad.abs().sum() > 0


def test_swin_weights_of_a_file(tmp_path):
    cfg = small_config()
    source = build_backbone(cfg).bottom_up
    public = {k: torch.randn(v.shape) if v.is_floating_point() else v
              for k, v in source.state_dict().items() if not k.startswith("norm")}  # fmt: skip
    path = tmp_path / "swin.pth"
    torch.save({"model": {**public, "head.weight": torch.zeros(1)}}, path)
    cfg.MODEL.SWIN.WEIGHTS = str(path)
    loaded = build_backbone(cfg).bottom_up.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in public.items())

    del public["layers.0.blocks.0.mlp.fc1.bias"]
    torch.save(public, path)
    with pytest.raises(
        OVDError, match=r"lacks layers\.0\.blocks\.0\.mlp\.fc1\.bias of shape \(64,\)"
    ):
        build_backbone(cfg)
    path.write_bytes(b"nothing")
    with pytest.raises(OVDError, match=r"MODEL\.SWIN\.WEIGHTS .* cannot be read as weights"):
        build_backbone(cfg)
    cfg.MODEL.SWIN.WEIGHTS = str(tmp_path / "none.pth")
    with pytest.raises(OVDError, match=r"MODEL\.SWIN\.WEIGHTS names no file"):
        build_backbone(cfg)
