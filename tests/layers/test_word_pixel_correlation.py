"""Words against pixels: golden numbers, and vectors of length 0."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ovd_d2.layers.word_pixel_correlation import word_pixel_correlation

sys.path.append(str(Path(__file__).parents[1] / "modeling"))

from lseg_golden import close, golden

SCALE = 1 / 0.07


def head(values, words=None, half=False, pixels=None):
    """(logits, leaves) of the 1x1 convolution and the correlation behind it."""
    leaves = {
        "path_1": values["in.path_1"],
        "head1.weight": values["w.scratch.head1.weight"],
        "head1.bias": values["w.scratch.head1.bias"],
        "text": values["in.text_fp16"].float() if words is None else words,
    }
    leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
    raw = F.conv2d(leaves["path_1"], leaves["head1.weight"], leaves["head1.bias"])
    return word_pixel_correlation(raw, leaves["text"], SCALE, half=half), leaves


def doubled(logits):
    return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("mode", "forward", "backward"), [("fp32", 1e-5, 5e-5), ("fp16", 1e-5, 3e-3)]
)
def test_golden_logits_and_gradients(mode, forward, backward):
    values = golden("correlation_head")
    lowres, leaves = head(values, half=mode == "fp16")
    assert close(lowres, values[f"{mode}.logits_lowres"], forward)
    logits = doubled(lowres)
    assert close(logits, values[f"{mode}.logits"], forward)
    (logits * values["in.upstream"]).sum().backward()
    for name, leaf in leaves.items():
        assert close(leaf.grad, values[f"{mode}.grad_{name}"], backward), name


def test_a_label_set_given_at_run_time_is_a_choice_of_rows():
    values = golden("correlation_head")
    words = values["in.text_fp16"].float()[values["labelset.index"]]
    lowres, _ = head(values, words, half=True)
    assert close(doubled(lowres), values["labelset.fp16.logits"])


@pytest.mark.parametrize(
    ("mode", "forward", "backward"), [("fp32", 1e-5, 5e-5), ("fp16", 1e-5, 3e-3)]
)
def test_golden_words_of_each_image_its_own(mode, forward, backward):
    values = golden("correlation_head")
    text = values["in.text_fp16"].float()
    words = torch.stack([text[[0, int(i) + 1]] for i in values["zs.class_info"]])
    lowres, leaves = head(values, words, half=mode == "fp16")
    logits = doubled(lowres)
    assert close(logits, values[f"zs.{mode}.logits"], forward)
    (logits * values["zs.upstream"]).sum().backward()
    assert close(leaves["path_1"].grad, values[f"zs.{mode}.grad_path_1"], backward)


def test_zero_vectors_have_finite_logits_and_gradients():
    pixels = torch.randn(1, 4, 2, 2)
    pixels[:, :, 0, 0] = 0
    words = torch.stack([torch.zeros(4), torch.randn(4)])
    pixels.requires_grad_()
    logits = word_pixel_correlation(pixels, words, SCALE)
    assert torch.equal(logits[0, 0], torch.zeros(2, 2)) and logits[0, 1, 0, 0] == 0
    logits.sum().backward()
    assert pixels.grad.isfinite().all()


def test_autocast_does_not_round():
    pixels, words = torch.randn(2, 8, 3, 4), torch.randn(5, 8)
    expected = word_pixel_correlation(pixels, words, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(word_pixel_correlation(pixels, words, SCALE), expected)
