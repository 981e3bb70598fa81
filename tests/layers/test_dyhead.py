"""The Dynamic Head's block against the public code's numbers and its definition."""

from pathlib import Path

import glip_names
import numpy as np
import pytest
import torch
from torchvision.ops import deform_conv2d

from ovd_d2.errors import OVDError
from ovd_d2.layers.dyhead import DyConv
from ovd_d2.layers.dyrelu import DyReLU
from ovd_d2.layers.modulated_deform_conv import modulated_deform_conv2d

GOLDEN = {
    name: torch.from_numpy(value)
    for name, value in np.load(
        Path(__file__).parents[1] / "golden" / "glip" / "dyhead_block.npz"
    ).items()
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def block_of(prefix, **arguments):
    block = DyConv(8, norm_groups=4, **arguments)
    block.load_state_dict(glip_names.dyconv(glip_names.starting_with(GOLDEN, prefix)))
    return block


@pytest.mark.parametrize("sizes", ["even", "odd"])
def test_block_equals_the_public_code(sizes):
    block = block_of("w.")
    seen = {}
    for name, norm in block.norms.items():
        norm.register_forward_hook(lambda _, __, y, name=name: seen.setdefault(name, []).append(y))
    levels = [GOLDEN[f"{sizes}.in{level}"] for level in range(3)]
    for level, found in enumerate(block(levels)):
        torch.testing.assert_close(found, GOLDEN[f"{sizes}.out{level}"], **CLOSE)
    for level in range(3):
        torch.testing.assert_close(seen["same"][level], GOLDEN[f"{sizes}.mid{level}.same"], **CLOSE)
    for level in range(2):
        wanted = GOLDEN[f"{sizes}.mid{level}.from_coarser_before_upsample"]
        torch.testing.assert_close(seen["coarser"][level], wanted, **CLOSE)
        wanted = GOLDEN[f"{sizes}.mid{level + 1}.from_finer"]
        torch.testing.assert_close(seen["finer"][level], wanted, **CLOSE)


def test_plain_block_equals_the_public_code():
    block = block_of("plain.w.", dynamic=False)
    found = block([GOLDEN[f"even.in{level}"] for level in range(3)])
    for level in range(3):
        torch.testing.assert_close(found[level], GOLDEN[f"plain.out{level}"], **CLOSE)


def test_dyrelu_equals_the_public_code():
    layer = DyReLU(8)
    weights = glip_names.starting_with(GOLDEN, "dyrelu.w.fc.")
    names = {"0": "squeeze", "2": "excite"}
    layer.load_state_dict(glip_names.rename(weights, names))
    torch.testing.assert_close(layer(GOLDEN["dyrelu.in"]), GOLDEN["dyrelu.out"], **CLOSE)


@pytest.mark.parametrize("operator", [deform_conv2d, modulated_deform_conv2d])
def test_deformable_convolution_equals_the_public_code(operator):
    x, offsets, factors, weight, bias, wanted = (
        GOLDEN[f"mdc.{name}"] for name in ("in", "offset", "mask", "weight", "bias", "out")
    )
    if operator is deform_conv2d:
        found = operator(x, offsets, weight, bias, padding=1, mask=factors)
    else:
        found = operator(x, offsets, factors, weight, bias, padding=1)
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("kind", ["buffer", "resize"])
def test_offsets_of_the_coarser_branch(kind):
    block = DyConv(8, norm_groups=4, coarse_offsets=kind)
    maps = torch.randn(2, 18, 5, 4)
    found = block._at_size(maps, (3, 2))
    assert found.shape == (2, 18, 3, 2)
    if kind == "buffer":
        numbers = maps[1].flatten().tolist()
        assert found[1, 2, 1, 0].item() == numbers[2 * 6 + 1 * 2]
    else:
        flat = torch.full((1, 18, 5, 4), 0.25)
        torch.testing.assert_close(block._at_size(flat, (3, 2)), torch.full((1, 18, 3, 2), 0.25))


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("kind", ["buffer", "resize"])
def test_every_parameter_learns(kind, dynamic):
    torch.manual_seed(0)
    block = DyConv(8, norm_groups=2, coarse_offsets=kind, dynamic=dynamic)
    torch.nn.init.ones_(block.scale_attention.bias)  # no ReLU may be dead
    if dynamic:
        torch.nn.init.ones_(block.activation.squeeze.bias)
    levels = [torch.randn(2, 8, size, size) for size in (9, 5, 3)]
    sum(level.square().sum() for level in block(levels)).backward()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters())


def test_one_level_has_one_branch():
    block = block_of("w.")
    found = block([GOLDEN["even.in0"]])[0]
    assert found.shape == GOLDEN["even.in0"].shape
    x = GOLDEN["even.in0"]
    offsets, factors = block.offsets(x).split([18, 9], dim=1)
    same = block.convolutions["same"]
    y = deform_conv2d(x, offsets, same.weight, same.bias, padding=1, mask=factors.sigmoid())
    y = block.norms["same"](y)
    weight = torch.relu(block.scale_attention(y.mean(dim=(2, 3)))) / 6 + 0.5
    wanted = block.activation(weight.clamp(max=1)[..., None, None] * y)
    torch.testing.assert_close(found, wanted)


def test_initial_values():
    block = DyConv(64)
    for convolution in block.convolutions.values():
        assert convolution.weight.abs().max() <= 1 / 24 and convolution.weight.std() > 0.02
        assert not convolution.bias.any()
    assert block.scale_attention.weight.std() < 0.02 and not block.scale_attention.bias.any()
    assert block.offsets.weight.abs().max() > 0


def test_wrong_arguments_are_named():
    with pytest.raises(OVDError, match="coarse_offsets"):
        DyConv(8, norm_groups=4, coarse_offsets="crop")
    with pytest.raises(OVDError, match="norm_groups"):
        DyConv(8)
