"""Checkpoints of MAVL (arXiv 2111.11430, github.com/mmaaz60/mvits_for_class_agnostic_od), with and
without language.

Their models have our parameters under other names; colours (RGB), pixel mean and standard deviation
are those of torchvision.

==========================================  ==================================================
theirs                                      ours
==========================================  ==================================================
``backbone.0.body``, torchvision's ResNet   ``backbone``, Detectron2's: ``layer1`` .. 4 are
                                            ``res2`` .. 5
``input_proj``                              ``levels.projections``
``transformer.encoder.layers``              ``transformer.encoder``
``transformer.decoder.layers``              ``transformer.decoder``
``transformer.level_embed``,                ``transformer.level_embed``, ``reference_points``
``reference_points``
``query_embed``                             ``transformer.query_embed``
``transformer.text_encoder``                ``text_backbone.model``
``transformer.resizer.fc``, ``layer_norm``  ``fusion.text_projection.0``, ``1``
``transformer.img_text_attn.layers``        ``fusion.layers``
``class_embed.0``, ``bbox_embed.0.layers``  ``heads.classes``, ``heads.boxes``
==========================================  ==================================================

Not taken over: ``class_embed.1`` and following, ``bbox_embed.1`` and following, which are the same
layers saved again; RoBERTa's pooler, whose output nothing reads; and its ``position_ids``, which
are computed anew and which newer files lack.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ovd_d2.errors import OVDError

from . import bert_names

# Theirs -> ours; the first that fits counts.
_NAMES = (
    ("backbone.0.body.conv1.", "backbone.stem.conv1."),
    ("backbone.0.body.bn1.", "backbone.stem.conv1.norm."),
    ("input_proj.", "levels.projections."),
    ("transformer.encoder.layers.", "transformer.encoder."),
    ("transformer.decoder.layers.", "transformer.decoder."),
    ("transformer.level_embed", "transformer.level_embed"),
    ("transformer.reference_points.", "transformer.reference_points."),
    ("query_embed.", "transformer.query_embed."),
    ("transformer.text_encoder.", "text_backbone.model."),
    ("transformer.resizer.fc.", "fusion.text_projection.0."),
    ("transformer.resizer.layer_norm.", "fusion.text_projection.1."),
    ("transformer.img_text_attn.layers.", "fusion.layers."),
    ("class_embed.0.", "heads.classes."),
    ("bbox_embed.0.layers.0.", "heads.boxes.0."),
    ("bbox_embed.0.layers.1.", "heads.boxes.2."),
    ("bbox_embed.0.layers.2.", "heads.boxes.4."),
)
_BODY = re.compile(r"backbone\.0\.body\.layer(\d)\.(\d+)\.(.*)")
_IN_BLOCK = (
    ("downsample.0.", "shortcut."), ("downsample.1.", "shortcut.norm."),
    *((f"bn{k}.", f"conv{k}.norm.") for k in (1, 2, 3)),
)  # fmt: skip
_LEFT_OUT = ("transformer.text_encoder.pooler.", "transformer.text_encoder.embeddings.position_ids")
_ALIAS = re.compile(r"(class_embed|bbox_embed)\.(\d+)\.(.*)")
_DEPTHS = {6: 50, 23: 101, 36: 152}  # by the blocks of the third stage
_LAYER = ("weight", "bias")
_NORM = (*_LAYER, "running_mean", "running_var")
_ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_SELF_ATTENTION = (
    "self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight",
    "self_attn.out_proj.bias",
)  # fmt: skip


@dataclass(frozen=True)
class ConvertedMAVL:
    """A state dict of one of our models.

    Attributes:
        weights: our keys to tensors, fp32.
        shape: keys of ``MODEL.MAVL`` to what the weights tell; of heads and points their product,
            "POINTS * HEADS". "DEPTH" is that of the ResNet.
        left_out: keys of theirs that ours has not.
    """

    weights: dict[str, Tensor]
    shape: dict[str, Any]
    left_out: tuple[str, ...]


def from_mavl(state_dict: Mapping[str, Tensor]) -> ConvertedMAVL:
    """Their state dict as ours; no key is lost silently.

    Args:
        state_dict: names to tensors, as in the released file under "model"; "module." in front of
            them is dropped.

    Raises:
        OVDError: a key that no MAVL has, a missing one, or heads of the fusion layers that differ.
    """
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    weights, left_out = {}, []
    for key, value in state.items():
        alias = _ALIAS.fullmatch(key)
        if key.startswith(_LEFT_OUT):
            left_out.append(key)
        elif alias and alias[2] != "0":
            _check_alias(state, key, f"{alias[1]}.0.{alias[3]}")
            left_out.append(key)
        else:
            ours = renamed(key)
            if ours is None:
                raise OVDError(f"The key {key} belongs to no part of MAVL: nothing is converted.")
            weights[ours] = value.float() if value.is_floating_point() else value
    shape = _shape_of(weights)
    _check_keys(weights, shape)
    return ConvertedMAVL(weights, shape, tuple(left_out))


def renamed(name: str) -> str | None:
    """Our name of a weight of theirs; None if no part has it."""
    for theirs, ours in _NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = _BODY.fullmatch(name)
    if not found:
        return None
    rest = found[3]
    for theirs, ours in _IN_BLOCK:
        if rest.startswith(theirs):
            rest = ours + rest.removeprefix(theirs)
            break
    return f"backbone.res{int(found[1]) + 1}.{found[2]}.{rest}"


def _check_alias(state: Mapping[str, Tensor], key: str, first: str) -> None:
    """One head serves every layer, and is saved once for each."""
    same = first in state and state[first].shape == state[key].shape
    if not same or not (state[key].is_meta or torch.equal(state[first], state[key])):
        raise OVDError(
            f"The key {key} differs from {first}, but a MAVL has one head for all layers: nothing "
            "is converted."
        )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    numbers = [int(found[1]) for found in map(re.compile(pattern).match, weights) if found]
    return max(numbers, default=-1) + 1


def _shape_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    def size(name: str, axis: int = 0) -> int:
        if name not in weights:
            raise OVDError(
                f"The key {name} (by our names) is missing: this is no checkpoint of MAVL."
            )
        return weights[name].shape[axis]

    language = any(key.startswith("fusion.") for key in weights)
    columns = size("heads.classes.weight")
    levels = size("transformer.level_embed")
    samples = size("transformer.decoder.0.cross_attn.attention_weights.bias")
    shape = {
        "DIM": size("transformer.level_embed", 1),
        "HIDDEN": size("transformer.encoder.0.linear1.bias"),
        "LEVELS": levels,
        "POINTS * HEADS": samples // levels,
        "ENCODER_LAYERS": _count(weights, r"transformer\.encoder\.(\d+)\."),
        "DECODER_LAYERS": _count(weights, r"transformer\.decoder\.(\d+)\."),
        "OBJECT_QUERIES": size("transformer.query_embed.weight"),
        "LANGUAGE": language,
        "DEPTH": _depth(weights),
    }
    if language:
        shape["FUSION_LAYERS"] = _count(weights, r"fusion\.layers\.(\d+)\.")
        shape["WORD_COLUMNS"] = columns - 1
    return shape


def _depth(weights: Mapping[str, Tensor]) -> int:
    blocks = _count(weights, r"backbone\.res4\.(\d+)\.")
    if blocks not in _DEPTHS:
        raise OVDError(
            f"The third stage of the backbone has {blocks} blocks: it is no ResNet-50, 101 or 152."
        )
    return _DEPTHS[blocks]


def _check_keys(weights: Mapping[str, Tensor], shape: Mapping[str, Any]) -> None:
    expected = set(_expected(weights, shape))
    unknown = sorted(set(weights) - expected)
    if unknown:
        raise OVDError(
            f"The key {unknown[0]} (by our names) belongs to no part of MAVL: nothing is converted."
        )
    missing = sorted(expected - set(weights))
    if missing:
        raise OVDError(
            f"The key {missing[0]} (by our names) is missing ({len(missing)} in all): this is no "
            "complete checkpoint of MAVL."
        )


def _expected(weights: Mapping[str, Tensor], shape: Mapping[str, Any]) -> list[str]:
    """Our keys of a model of that shape."""
    found = [f"backbone.stem.conv1.{name}" for name in ("weight", *(f"norm.{n}" for n in _NORM))]
    for stage in range(2, 6):
        for block in range(_count(weights, rf"backbone\.res{stage}\.(\d+)\.")):
            convolutions = ["conv1", "conv2", "conv3", *(["shortcut"] if block == 0 else [])]
            for part in convolutions:
                prefix = f"backbone.res{stage}.{block}.{part}."
                found += [f"{prefix}weight", *(f"{prefix}norm.{name}" for name in _NORM)]
    layers = [f"levels.projections.{level}.{k}" for level in range(shape["LEVELS"]) for k in (0, 1)]
    for k in range(shape["ENCODER_LAYERS"]):
        inner = (*(f"self_attn.{part}" for part in _ATTENTION), "norm1", "linear1", "linear2")
        layers += [f"transformer.encoder.{k}.{part}" for part in (*inner, "norm2")]
    for k in range(shape["DECODER_LAYERS"]):
        prefix = f"transformer.decoder.{k}."
        found += [prefix + part for part in _SELF_ATTENTION]
        inner = (*(f"cross_attn.{part}" for part in _ATTENTION), "norm1", "norm2", "norm3")
        layers += [prefix + part for part in (*inner, "linear1", "linear2")]
    layers += ["transformer.reference_points", "heads.classes"]
    layers += [f"heads.boxes.{k}" for k in (0, 2, 4)]
    found += ["transformer.level_embed", "transformer.query_embed.weight"]
    if shape["LANGUAGE"]:
        layers += ["fusion.text_projection.0", "fusion.text_projection.1"]
        for k in range(shape["FUSION_LAYERS"]):
            prefix = f"fusion.layers.{k}."
            found += [prefix + part for part in _SELF_ATTENTION]
            layers += [prefix + part for part in ("linear1", "linear2", "norm1", "norm2")]
        text = "text_backbone.model."
        found += [f"{text}embeddings.{part}" for part in bert_names.EMBEDDINGS]
        for k in range(_count(weights, r"text_backbone\.model\.encoder\.layer\.(\d+)\.")):
            layers += [f"{text}encoder.layer.{k}.{part}" for part in bert_names.LAYER]
    return [*found, *(f"{layer}.{kind}" for layer in layers for kind in _LAYER)]
