"""Deformable convolution without Detectron2's compiled operators."""

import importlib
import math

import pytest
import torch

from ovd_d2.layers.deform_conv import DeformConv, ModulatedDeformConv, has_compiled_ops, install

no_compiled_ops = pytest.mark.skipif(has_compiled_ops(), reason="Detectron2's own are there")


def bilinear(plane, y, x):
    """Value between the pixels of a (H, W) plane; zero outside."""
    height, width = plane.shape
    y0, x0 = math.floor(float(y.detach())), math.floor(float(x.detach()))
    value = plane.new_zeros(())
    for row in (y0, y0 + 1):
        for column in (x0, x0 + 1):
            if 0 <= row < height and 0 <= column < width:
                value = value + plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def plain_deform_conv(x, offset, mask, layer):
    """The definition, one output number at a time (Dai et al. 2017, equation 2; Zhu et al. 2019,
    equation 1), offsets ordered group, tap, (y, x)."""
    n, channels, _, _ = x.shape
    outputs, per_group, kh, kw = layer.weight.shape
    _, _, height, width = offset.shape
    offset = offset.view(n, layer.deformable_groups, kh * kw, 2, height, width)
    if mask is not None:
        mask = mask.view(n, layer.deformable_groups, kh * kw, height, width)
    rows = []
    for i in range(n):
        for o in range(outputs):
            group = o // (outputs // layer.groups)
            for h in range(height):
                for w in range(width):
                    total = x.new_zeros(())
                    for c in range(per_group):
                        channel = group * per_group + c
                        g = channel // (channels // layer.deformable_groups)
                        for tap in range(kh * kw):
                            a, b = divmod(tap, kw)
                            dy, dx = offset[i, g, tap, :, h, w]
                            y = h * layer.stride[0] - layer.padding[0] + a * layer.dilation[0] + dy
                            z = w * layer.stride[1] - layer.padding[1] + b * layer.dilation[1] + dx
                            value = bilinear(x[i, channel], y, z) * layer.weight[o, c, a, b]
                            total = total + (
                                value if mask is None else value * mask[i, g, tap, h, w]
                            )
                    rows.append(total if layer.bias is None else total + layer.bias[o])
    return torch.stack(rows).view(n, outputs, height, width)


@pytest.mark.parametrize("kind", [DeformConv, ModulatedDeformConv])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1, "groups": 2},
        {"padding": 2, "dilation": 2, "deformable_groups": 2},
    ],
)
def test_forward_and_gradient_equal_the_definition(kind, options):
    layer = kind(2, 4, 3, **options).double()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(1, 2, 5, 4, dtype=torch.double, requires_grad=True)
    size = [(s + 2 * layer.padding[0] - layer.dilation[0] * 2 - 1) // layer.stride[0] + 1
            for s in x.shape[2:]]  # fmt: skip
    groups = layer.deformable_groups
    offset = torch.randn(1, groups * 18, *size, dtype=torch.double, requires_grad=True)
    mask = torch.rand(1, groups * 9, *size, dtype=torch.double, requires_grad=True)
    given = (x, offset, mask) if kind is ModulatedDeformConv else (x, offset)
    plain = plain_deform_conv(x, offset, mask if kind is ModulatedDeformConv else None, layer)
    found = layer(*given)
    torch.testing.assert_close(found, plain, atol=1e-9, rtol=1e-9)
    wanted = [*given, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(plain.square().sum(), wanted),
    ):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


def test_norm_activation_and_empty_batches():
    layer = DeformConv(2, 4, 3, padding=1, norm=torch.nn.BatchNorm2d(4), activation=torch.relu)
    found = layer(torch.randn(2, 2, 5, 5), torch.zeros(2, 18, 5, 5))
    assert found.shape == (2, 4, 5, 5) and found.min() == 0
    assert layer(torch.randn(0, 2, 5, 5), torch.zeros(0, 18, 5, 5)).shape == (0, 4, 5, 5)
    with pytest.raises(ValueError, match="groups 3 must divide"):
        DeformConv(2, 4, 3, groups=3)
    with pytest.raises(ValueError, match="bias"):
        DeformConv(2, 4, 3, bias=True)


@no_compiled_ops
def test_installed_where_detectron2_looks():
    for place in ("layers", "layers.deform_conv", "modeling.backbone.resnet"):
        module = importlib.import_module(f"detectron2.{place}")
        assert module.DeformConv is DeformConv
        assert module.ModulatedDeformConv is ModulatedDeformConv
    install()


def test_nothing_is_installed_beside_compiled_operators(monkeypatch):
    resnet = importlib.import_module("detectron2.modeling.backbone.resnet")
    monkeypatch.setattr(resnet, "DeformConv", "theirs")
    monkeypatch.setattr("ovd_d2.layers.deform_conv.has_compiled_ops", lambda: True)
    install()
    assert resnet.DeformConv == "theirs"


@no_compiled_ops
@pytest.mark.parametrize("modulated", [False, True])
def test_a_zoo_config_with_deformable_convolution_trains_a_step(modulated):
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    cfg = model_zoo.get_config("Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.RESNETS.DEFORM_MODULATED = modulated
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 5
    model = build_model(cfg)
    convolutions = [m for m in model.modules() if isinstance(m, DeformConv)]
    assert len(convolutions) == 4 + 6 + 3
    assert all(isinstance(m, ModulatedDeformConv) == modulated for m in convolutions)
    target = Instances((96, 96))
    target.gt_boxes, target.gt_classes = Boxes([[10, 10, 70, 80]]), torch.tensor([3])
    sample = {"image": torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8), "instances": target}
    with EventStorage():
        losses = model([sample])
    sum(losses.values()).backward()
    for layer in convolutions:
        assert layer.weight.grad.abs().sum() > 0
    offsets = [m for n, m in model.named_modules() if n.endswith("conv2_offset")]
    assert all(m.weight.grad.isfinite().all() for m in offsets)
    with torch.no_grad():
        assert "instances" in model.eval()([{**sample, "height": 96, "width": 96}])[0]
