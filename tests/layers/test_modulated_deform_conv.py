"""Modulated deformable convolution on CPU against torchvision's operator."""

import pytest
import torch
from torchvision.ops import deform_conv2d

from ovd_d2.layers.modulated_deform_conv import modulated_deform_conv2d


def inputs_of(kernel=(3, 3), size=(5, 7), output=(5, 7), images=2, reach=2.0):
    generator = torch.Generator().manual_seed(0)
    taps = kernel[0] * kernel[1]
    shapes = [(images, 4, *size), (images, 2 * taps, *output), (images, taps, *output),
              (6, 4, *kernel), (6,)]  # fmt: skip
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    tensors[1] *= reach
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({}, {"padding": 1}),
        ({"output": (3, 4)}, {"padding": 1, "stride": 2}),
        ({"kernel": (1, 3), "output": (5, 5)}, {}),
        ({"reach": 30.0}, {"padding": 1}),  # mostly outside
        ({"reach": 0.0}, {"padding": 1}),  # exactly on the pixels
        ({"size": (1, 1), "output": (1, 1)}, {"padding": 1}),
        ({"images": 0}, {"padding": 1}),
    ],
)
def test_forward_and_gradient_equal_torchvisions(arguments, options):
    x, offsets, factors, weight, bias = given = inputs_of(**arguments)
    found = modulated_deform_conv2d(*given, **options)
    wanted = deform_conv2d(x, offsets, weight, bias, mask=factors, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    scale = torch.randn(wanted.shape, dtype=torch.float64)
    # on a pixel the slope jumps: there only the offsets' gradient is a matter of choice
    chosen = given if arguments.get("reach") != 0.0 else [x, factors, weight, bias]
    for one, other in zip(
        torch.autograd.grad((found * scale).sum(), chosen),
        torch.autograd.grad((wanted * scale).sum(), chosen),
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_offsets_that_are_not_finite_give_numbers_that_are_not():
    x, offsets, factors, weight, bias = (t.detach() for t in inputs_of())
    offsets[0, 0, 2, 2] = float("nan")
    found = modulated_deform_conv2d(x, offsets, factors, weight, bias, padding=1)
    assert found[0, :, 2, 2].isnan().all() and found.isnan().sum() == 6
