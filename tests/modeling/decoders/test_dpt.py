"""DPT's fusion blocks: golden numbers in evaluation and training, and sizes that do not fit."""

import sys
from pathlib import Path

import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.modeling.decoders import DPTDecoder, FusionBlock, ResidualUnit

sys.path.append(str(Path(__file__).parents[1]))

from lseg_golden import below, close, golden

VALUES = "dpt_decoder"
UNITS = {"resConfUnit1": "level_unit", "resConfUnit2": "unit", "out_conv": "out"}
MODES = [("bn", "eval"), ("bn", "train"), ("nobn", "eval")]


def ours(name: str) -> str:
    """A name in a fusion block or a residual unit of theirs."""
    words = [UNITS.get(word, word) for word in name.split(".")]
    return ".".join(f"norm{word[2:]}" if word.startswith("bn") else word for word in words)


def loaded(module, prefix, skip=()):
    state = {ours(k): v for k, v in below(golden(VALUES), prefix).items()}
    module.load_state_dict({k: v for k, v in state.items() if not k.startswith(skip or "?")})
    return module


@pytest.mark.parametrize(("norm", "mode"), MODES)
def test_golden_residual_unit(norm, mode):
    values = golden(VALUES)
    unit = loaded(ResidualUnit(8, "BN" if norm == "bn" else ""), f"rcu.{norm}.w.")
    unit.train(mode == "train")
    x = values["fusion.in.x0"].clone().requires_grad_()
    out = unit(x)
    name = f"rcu.{norm}.{mode}"
    assert close(out, values[f"{name}.out"])
    (out * values["rcu.in.upstream"]).sum().backward()
    assert close(x.grad, values[f"{name}.grad_x"], 5e-5)
    grads = below(values, f"{name}.grad.")
    assert grads
    for key, expected in grads.items():
        assert close(unit.get_parameter(ours(key)).grad, expected, 5e-5), key
    if mode == "train":
        for key, expected in below(values, f"{name}.after.").items():
            assert close(unit.get_buffer(ours(key)), expected), key


@pytest.mark.parametrize("inputs", ["one", "two"])
@pytest.mark.parametrize(("norm", "mode"), MODES)
def test_golden_fusion_block(norm, mode, inputs):
    values = golden(VALUES)
    coarsest = inputs == "one"
    block = FusionBlock(8, "BN" if norm == "bn" else "", coarsest=coarsest)
    block = loaded(block, f"fusion.{norm}.w.", skip="level_unit" if coarsest else ())
    block.train(mode == "train")
    x0, x1 = (values[f"fusion.in.x{i}"].clone().requires_grad_() for i in (0, 1))
    out = block(x0) if coarsest else block(x0, x1)
    name = f"fusion.{norm}.{mode}.{inputs}"
    assert close(out, values[f"{name}.out"])
    (out * values["fusion.in.upstream"]).sum().backward()
    assert close(x0.grad, values[f"{name}.grad_x0"], 5e-5)
    if not coarsest:
        assert close(x1.grad, values[f"{name}.grad_x1"], 5e-5)
        assert close(block.out.weight.grad, values[f"{name}.grad.out_conv.weight"], 5e-5)


@pytest.mark.parametrize("norm", ["BN", ""])
def test_every_weight_has_a_gradient_and_levels_of_a_cnn_do(norm):
    decoder = DPTDecoder([24, 40, 112, 320], channels=8, norm=norm)
    maps = [torch.randn(2, c, 64 // s, 96 // s) for c, s in zip((24, 40, 112, 320), (4, 8, 16, 32))]
    out = decoder(maps)
    assert out.shape == (2, 8, 32, 48)
    out.square().mean().backward()
    assert [n for n, p in decoder.named_parameters() if p.grad is None] == []


def test_sizes_that_do_not_fit_are_named():
    maps = [torch.randn(1, 4, -(-48 // s), 2 * (32 // s)) for s in (4, 8, 16, 32)]
    with pytest.raises(OVDError, match=r"\(3, 4\) and \(4, 4\) meet in the decoder"):
        DPTDecoder([4] * 4, channels=4)(maps)
