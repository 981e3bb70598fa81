"""Blocks that smooth the maps of any labels in any order: golden numbers."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ovd_d2.errors import OVDError
from ovd_d2.layers.spatial_regulariser import SpatialRegulariser
from ovd_d2.layers.word_pixel_correlation import word_pixel_correlation

sys.path.append(str(Path(__file__).parents[1] / "modeling"))

from lseg_golden import below, close, golden

VALUES = "regularisation_blocks"
ACTIVATED = {"relu": F.relu, "lrelu": F.leaky_relu, "tanh": torch.tanh, "noact": lambda x: x}
KIND_OF_ARCH = {1: "bottleneck", 2: "depthwise"}


def regulariser(kind, **options):
    module = SpatialRegulariser(kind, **options)
    module.conv.load_state_dict(below(golden(VALUES), "w.depthwise.depthwise."))
    return module


@pytest.mark.parametrize("kind", ["bottleneck", "depthwise"])
@pytest.mark.parametrize("activation", ACTIVATED)
def test_golden_block(kind, activation):
    values, module = golden(VALUES), regulariser(kind)
    x = values["in.x"].clone().requires_grad_()
    out = ACTIVATED[activation](module.block(x))
    name = f"{kind}.{activation}"
    assert close(out, values[f"{name}.out"])
    (out * values["in.upstream"]).sum().backward()
    for grad, key in ((x.grad, "x"), (module.conv.weight.grad, "weight"),
                      (module.conv.bias.grad, "bias")):  # fmt: skip
        assert close(grad, values[f"{name}.grad_{key}"], 5e-5), key


@pytest.mark.parametrize("kind", ["bottleneck", "depthwise"])
def test_golden_other_order_and_other_number_of_labels(kind):
    values, module = golden(VALUES), regulariser(kind)
    permuted = F.leaky_relu(module.block(values["in.x"][:, values["in.perm"]]))
    assert close(permuted, values[f"{kind}.lrelu.out_permuted_input"])
    assert close(permuted, values[f"{kind}.lrelu.out"][:, values["in.perm"]])
    nine = F.leaky_relu(module.block(values["in.x_9labels"]))
    assert close(nine, values[f"{kind}.lrelu.out_9labels"])


CASES = sorted(
    {tuple(key.split(".")[1:4]) for key in golden(VALUES) if key.startswith("loop.arch")}
)


@pytest.mark.parametrize(("arch", "depth", "activation"), CASES)
def test_golden_head_of_any_depth(arch, depth, activation):
    values = golden(VALUES)
    kind = KIND_OF_ARCH.get(int(arch.removeprefix("arch")))
    options = {"depth": max(int(depth.removeprefix("depth")), 1), "activation": activation}
    module = regulariser(kind, **options) if kind else torch.nn.Identity()
    path = values["loop.in.path_1"].clone().requires_grad_()
    raw = F.conv2d(path, values["loop.w.scratch.head1.weight"], values["loop.w.scratch.head1.bias"])
    lowres = module(word_pixel_correlation(raw, values["loop.in.text"], 1 / 0.07))
    prefix = f"loop.{arch}.{depth}.{activation}."
    assert close(lowres, values[f"{prefix}lowres"])
    out = F.interpolate(lowres, scale_factor=2, mode="bilinear", align_corners=True)
    assert close(out, values[f"{prefix}out"])
    (out * values["loop.in.upstream"]).sum().backward()
    if f"{prefix}grad_path_1" in values:
        assert close(path.grad, values[f"{prefix}grad_path_1"], 5e-5)
    if f"{prefix}grad_weight" in values:
        assert close(module.conv.weight.grad, values[f"{prefix}grad_weight"], 5e-5)
        assert close(module.conv.bias.grad, values[f"{prefix}grad_bias"], 5e-5)


@pytest.mark.parametrize(
    "options", [{"kind": "max"}, {"depth": 0}, {"activation": "gelu"}], ids=str
)
def test_what_is_none_is_refused(options):
    with pytest.raises(OVDError, match=r"MODEL\.LSEG\.REGULARISER"):
        SpatialRegulariser(**{"kind": "bottleneck", **options})
