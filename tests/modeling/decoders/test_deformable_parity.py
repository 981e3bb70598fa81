"""Deformable attention and the layers of encoder and decoder against the public code's numbers."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))

from small_mavl import below, check_gradients, close, golden

from ovd_d2.layers.deformable_attention import DeformableAttention, sample_levels
from ovd_d2.layers.sine_positions import sine_positions
from ovd_d2.modeling.decoders.deformable_transformer import (
    DecoderLayer,
    EncoderLayer,
    cell_references,
    inverse_sigmoid,
    valid_ratios,
)

ATTENTION, LAYERS = golden("ms_deform_attn"), golden("layers")
SHAPE = {"heads": 4, "levels": 4, "points": 2, "hidden": 48, "dropout": 0.0}


def sizes_of(arrays, name="spatial_shapes"):
    return [tuple(row) for row in arrays[name].tolist()]


def leaf(value):
    return value.clone().requires_grad_()


def test_samples_of_levels():
    arrays = below(ATTENTION, "core.")
    inputs = [leaf(arrays[f"in.{k}"]) for k in ("value", "sampling_locations", "attention_weights")]
    assert ((inputs[1] < 0) | (inputs[1] > 1)).any()  # some look outside
    found = sample_levels(inputs[0], sizes_of(arrays), *inputs[1:])
    close(found, arrays["out"])
    found.backward(arrays["upstream"])
    for one, name in zip(inputs, ("value", "sampling_locations", "attention_weights")):
        close(one.grad, arrays[f"grad.{name}"], name)


@pytest.mark.parametrize("case", ["points", "boxes", "nomask"])
def test_deformable_attention(case):
    arrays = below(ATTENTION, f"{case}.")
    part = DeformableAttention(32, heads=4, levels=3, points=2)
    part.load_state_dict(below(ATTENTION, "w."))
    inputs = [leaf(arrays[f"in.{k}"]) for k in ("query", "reference_points", "input_flatten")]
    sizes = sizes_of(ATTENTION, "core.spatial_shapes")
    found = part(*inputs, sizes, arrays.get("in.padding_mask"))
    close(found, arrays["out"])
    found.backward(arrays["upstream"])
    for one, name in zip(inputs, ("query", "reference_points", "input_flatten")):
        close(one.grad, arrays[f"grad.{name}"], name)
    if case == "boxes":
        check_gradients(part, arrays)


def test_first_offsets():
    part = DeformableAttention(256, heads=8, levels=4, points=4)
    close(part.sampling_offsets.bias, ATTENTION["init.sampling_offsets.bias"])
    assert not part.sampling_offsets.weight.any() and not part.attention_weights.weight.any()


def test_masks_positions_and_references():
    masks = [LAYERS[f"mask.level{level}"] for level in range(4)]
    for level, mask in enumerate(masks):
        close(sine_positions(mask, 32), LAYERS[f"pos.level{level}"], str(level))
    ratios = torch.stack([valid_ratios(mask) for mask in masks], dim=1)
    close(ratios, LAYERS["valid_ratios"])
    found = cell_references(sizes_of(LAYERS), ratios)
    close(found, LAYERS["encoder_reference_points"])
    close(inverse_sigmoid(LAYERS["inverse_sigmoid.in"]), LAYERS["inverse_sigmoid.out"])


def test_encoder_layer():
    arrays = below(LAYERS, "enc.")
    part = EncoderLayer(32, **SHAPE)
    part.load_state_dict(below(arrays, "w."))
    cells, positions = leaf(arrays["in.src"]), leaf(arrays["in.pos"])
    references = LAYERS["encoder_reference_points"]
    found = part(cells, positions, references, sizes_of(LAYERS), arrays["in.padding_mask"])
    close(found, arrays["out"])
    found.backward(arrays["upstream"])
    close(cells.grad, arrays["grad.src"])
    close(positions.grad, arrays["grad.pos"])
    check_gradients(part, arrays)


@pytest.mark.parametrize("case", ["points", "boxes"])
def test_decoder_layer(case):
    arrays, whole = below(LAYERS, f"dec.{case}."), below(LAYERS, "dec.")
    part = DecoderLayer(32, **SHAPE)
    part.load_state_dict(below(whole, "w."))
    queries, positions, memory = (
        leaf(one) for one in (arrays["in.tgt"], arrays["in.query_pos"], whole["in.src"])
    )
    references, ratios = arrays["in.reference"], LAYERS["valid_ratios"]
    if case == "boxes":
        ratios = torch.cat([ratios, ratios], dim=-1)
    on_levels = references[:, :, None] * ratios[:, None]
    close(on_levels, arrays["in.reference_per_level"])
    found = part(queries, positions, on_levels, memory, sizes_of(LAYERS), whole["in.padding_mask"])
    close(found, arrays["out"])
    found.backward(arrays["upstream"])
    for one, name in ((queries, "tgt"), (positions, "query_pos"), (memory, "src")):
        close(one.grad, arrays[f"grad.{name}"], name)
