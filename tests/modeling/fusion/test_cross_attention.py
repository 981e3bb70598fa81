"""Attention in both directions against the public code's numbers and its definition."""

import math
from pathlib import Path

import glip_names
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovd_d2.errors import OVDError
from ovd_d2.modeling.fusion import CrossAttention, text_layer

GOLDEN = {
    name: torch.from_numpy(value)
    for name, value in np.load(
        Path(__file__).parents[2] / "golden" / "glip" / "dyhead_fusion.npz"
    ).items()
}
VISUAL, TEXT, MASK = GOLDEN["in.visual_flat"], GOLDEN["in.text"], GOLDEN["in.mask"].bool()
EVERY = torch.ones_like(MASK)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def golden_attention(**arguments):
    module = CrossAttention(8, 12, embed_dim=16, num_heads=4, **arguments).eval()
    module.load_state_dict(glip_names.fusion(glip_names.starting_with(GOLDEN, "w.")))
    return module


def plain_deltas(module, visual, text, mask, keep=(1.0, 1.0)):
    """The definition: project all, one score matrix, two softmaxes; head by head."""
    width = module.text_key.out_features // module.num_heads
    q, k = module.visual_query(visual), module.text_key(text)
    of_image, of_text = module.visual_value(visual), module.text_value(text)
    to_image, to_text = [], []
    for head in range(module.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        if module.score_limit is not None:
            scores = scores.clamp(-module.score_limit, module.score_limit)
        turned = scores.transpose(1, 2)
        turned = turned - turned.amax(dim=2, keepdim=True)
        over_text = scores.masked_fill(~mask[:, None], -9e15).softmax(dim=2)
        to_image.append(over_text * keep[0] @ of_text[..., part])
        to_text.append(turned.softmax(dim=2) * keep[1] @ of_image[..., part])
    return module.visual_out(torch.cat(to_image, 2)), module.text_out(torch.cat(to_text, 2))


def test_forward_equals_the_public_code():
    module = golden_attention()
    visual, text = module(VISUAL, TEXT, MASK)
    torch.testing.assert_close(visual, GOLDEN["out.visual_flat"], **CLOSE)
    torch.testing.assert_close(text, GOLDEN["out.text"], **CLOSE)
    levels = torch.cat([GOLDEN[f"out.level{i}"].flatten(2) for i in range(5)], dim=2)
    torch.testing.assert_close(visual.transpose(1, 2), levels, **CLOSE)
    found = module.deltas(module.visual_norm(VISUAL), module.text_norm(TEXT), MASK)
    torch.testing.assert_close(found[0], GOLDEN["out.delta_v"], **CLOSE)
    torch.testing.assert_close(found[1], GOLDEN["out.delta_l"], **CLOSE)


@pytest.mark.parametrize(
    ("case", "scale", "limit"),
    [
        ("raw", 1.0, 50000.0),
        ("clamped", 150.0, 50000.0),
        ("unclamped", 150.0, None),
        ("stable2d", 1.0, None),  # a constant less for all scores: the same softmax
    ],
)
def test_deltas_equal_the_public_code(case, scale, limit):
    found = golden_attention(score_limit=limit).deltas(VISUAL * scale, TEXT * scale, MASK)
    for delta, name in zip(found, ("delta_v", "delta_l")):
        torch.testing.assert_close(delta, GOLDEN[f"{case}.{name}"], rtol=1e-4, atol=1e-4)


def test_without_padding_equals_the_public_code():
    module = golden_attention()
    found = module.deltas(module.visual_norm(VISUAL), module.text_norm(TEXT), EVERY)
    torch.testing.assert_close(found[0], GOLDEN["nomask.delta_v"], **CLOSE)
    torch.testing.assert_close(found[1], GOLDEN["nomask.delta_l"], **CLOSE)


@pytest.mark.parametrize("limit", [None, 0.4])
def test_forward_and_gradient_equal_the_definition(limit):
    module = golden_attention(score_limit=limit).double()
    inputs = [x.double().requires_grad_() for x in (VISUAL, TEXT)]
    weights = [torch.randn(x.shape, dtype=torch.float64) for x in inputs]
    wanted = [*inputs, *module.parameters()]
    grads = []
    for deltas in (module.deltas, lambda *given: plain_deltas(module, *given)):
        found = deltas(module.visual_norm(inputs[0]), module.text_norm(inputs[1]), MASK)
        total = sum((x * w).sum() for x, w in zip(found, weights))
        grads.append((found, torch.autograd.grad(total, wanted, allow_unused=True)))
    for one, other in zip(*(result[0] for result in grads)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for one, other in zip(*(result[1] for result in grads)):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_dropout_is_on_both_attention_maps(monkeypatch):
    """With every weight kept times 0.5 the value's bias shrinks too."""
    module = golden_attention(dropout=0.1).double().train()
    monkeypatch.setattr(F, "dropout", lambda x, p, training: x * 0.5 if training and p else x)
    inputs = VISUAL.double(), TEXT.double(), MASK
    for one, other in zip(module.deltas(*inputs), plain_deltas(module, *inputs, keep=(0.5, 0.5))):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("images", [1, 2])
def test_every_pair_equals_a_loop_over_pairs(images):
    module = golden_attention()
    visual = VISUAL[:images]
    text = torch.cat([TEXT, TEXT.flip(0)[:1] * 0.5])
    mask = torch.cat([MASK, MASK[1:]])
    found = module(visual, text, mask, every_pair=True)
    for image in range(images):
        for prompt in range(3):
            alone = module(
                visual[image : image + 1], text[prompt : prompt + 1], mask[prompt : prompt + 1]
            )
            for one, other in zip(found, alone):
                torch.testing.assert_close(one[image * 3 + prompt], other[0])


def test_padding_tokens_change_nothing():
    module = golden_attention()
    longer = torch.cat([TEXT, torch.randn(2, 3, 12) * 50], dim=1)
    found = module(VISUAL, longer, F.pad(MASK, (0, 3)))
    wanted = module(VISUAL, TEXT, MASK)
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1][:, :6], wanted[1])


def test_autocast_is_near_full_precision():
    module = golden_attention()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(VISUAL, TEXT, MASK)
    for one, other in zip(found, module(VISUAL, TEXT, MASK)):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.1)


def test_initial_values():
    module = CrossAttention(8, 12, embed_dim=16, num_heads=4)
    torch.testing.assert_close(module.visual_scale.data, GOLDEN["default_gamma_v"])
    torch.testing.assert_close(module.text_scale.data, GOLDEN["default_gamma_l"])
    assert not module.visual_query.bias.any()
    assert module.text_out.weight.abs().max() <= math.sqrt(6 / 28)
    with pytest.raises(OVDError, match="num_heads"):
        CrossAttention(8, 12, embed_dim=16, num_heads=3)


@pytest.mark.parametrize("grad", [True, False])
def test_text_layer_equals_the_public_code(grad):
    layer = text_layer(12, num_heads=3, feedforward=24).eval()
    layer.load_state_dict(glip_names.text_layer(glip_names.starting_with(GOLDEN, "textlayer.w.")))
    with torch.set_grad_enabled(grad):
        found = layer(GOLDEN["textlayer.in"], src_key_padding_mask=~GOLDEN["textlayer.mask"].bool())
    torch.testing.assert_close(found, GOLDEN["textlayer.out"], **CLOSE)


def test_text_layer_starts_as_bert_does():
    layer = text_layer(24, num_heads=3, feedforward=96)
    assert layer.linear1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert layer.self_attn.in_proj_weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert layer.norm1.weight.eq(1).all() and not layer.self_attn.in_proj_bias.any()


def test_text_layer_that_adds_nothing_at_first():
    layer = text_layer(24, num_heads=3, feedforward=96, dropout=0.0, output_scale=0.0)
    text = torch.randn(2, 5, 24)
    norm = torch.nn.functional.layer_norm
    expected = norm(norm(text, (24,), eps=1e-12), (24,), eps=1e-12)
    torch.testing.assert_close(layer(text), expected)
