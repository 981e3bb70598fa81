"""Checkpoints of GLIP (arXiv 2112.03857, github.com/microsoft/GLIP): GLIP-T(A), GLIP-T, GLIP-L.

Their models have our parameters under other names; colours (BGR), pixel mean and standard deviation
are the same. Results are theirs where ``MODEL.GLIP.COARSE_OFFSETS`` is "buffer".

====================================  ========================================================
theirs                                ours
====================================  ========================================================
``backbone.body``                     ``backbone.bottom_up``, Detectron2's Swin Transformer
``backbone.fpn.fpn_inner2`` .. 4      ``backbone.fpn_lateral3`` .. 5
``backbone.fpn.fpn_layer2`` .. 4      ``backbone.fpn_output3`` .. 5
``backbone.fpn.top_blocks``           ``backbone.top_block``
``language_backbone.body.model``      ``text_backbone.model``
``rpn.head.dyhead_tower.0`` ..        ``head.tower.blocks``, three of theirs in one with fusion
``rpn.head``, the rest                ``head``; 1 x 1 convolutions are linear layers, the query,
                                      key and value of a text layer one matrix
====================================  ========================================================

Not taken over: ``rpn.head.cls_logits``, which neither the loss nor the scores use, the
masked-language head, and buffers that are computed anew (anchors, BERT's ``position_ids``).
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ovd_d2.errors import OVDError

from . import bert_names

_BACKBONE, _TEXT, _HEAD = "backbone.", "language_backbone.body.model.", "rpn.head."
_LEFT_OUT = (
    f"{_HEAD}cls_logits.", f"{_HEAD}mlm_head.", "rpn.tunable_linear.", "rpn.anchor_generator.",
    f"{_TEXT}embeddings.position_ids",
)  # fmt: skip
_SWIN_LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_SWIN_TABLES = ("attn.relative_position_bias_table", "attn.relative_position_index")
# Theirs -> ours, below a block of the tower.
_FUSION = {
    "attn.v_proj": "visual_query",
    "attn.l_proj": "text_key",
    "attn.values_v_proj": "visual_value",
    "attn.values_l_proj": "text_value",
    "attn.out_v_proj": "visual_out",
    "attn.out_l_proj": "text_out",
    "layer_norm_v": "visual_norm",
    "layer_norm_l": "text_norm",
}
_TEXT_LAYER = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}
_DYCONV = {
    "DyConv.0.conv": "convolutions.coarser",
    "DyConv.1.conv": "convolutions.same",
    "DyConv.2.conv": "convolutions.finer",
    "DyConv.0.bn": "norms.coarser",
    "DyConv.1.bn": "norms.same",
    "DyConv.2.bn": "norms.finer",
    "AttnConv.1": "scale_attention",
    "offset": "offsets",
    "relu.fc.0": "activation.squeeze",
    "relu.fc.2": "activation.excite",
}
_LINEAR = ("scale_attention.weight", "head.box_deltas.weight", "head.centerness.weight")
_LEVELS = 5


@dataclass(frozen=True)
class ConvertedGLIP:
    """A state dict of one of our models.

    Attributes:
        weights: our keys to tensors.
        num_blocks: ``MODEL.GLIP.NUM_BLOCKS`` of the model it is of.
        fusion: ``MODEL.GLIP.FUSION`` of it.
        swin_depths: ``MODEL.SWIN.DEPTHS``.
        embed_dim: ``MODEL.SWIN.EMBED_DIM``.
        left_out: keys of theirs that ours has not.
    """

    weights: dict[str, Tensor]
    num_blocks: int
    fusion: bool
    swin_depths: tuple[int, ...]
    embed_dim: int
    left_out: tuple[str, ...]


def from_glip(state_dict: Mapping[str, Tensor]) -> ConvertedGLIP:
    """Their state dict as ours; no key is lost silently.

    Args:
        state_dict: names to tensors, as in the released files under "model"; "module." in front
            of all names (of DDP) is taken away.

    Raises:
        OVDError: a key that no GLIP has, or a missing one.
    """
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    left_out = tuple(key for key in state if key.startswith(_LEFT_OUT))
    state = {key: value for key, value in state.items() if key not in left_out}
    shape = _shape_of(state, _HEAD + "dyhead_tower.", "b_attn.")
    pairs = list(_pairs(*shape, list(state), "language_backbone"))
    _check_keys(state, {name for theirs, _ in pairs for name in theirs}, "GLIP")
    weights = {ours: _to_ours(ours, [state[name] for name in theirs]) for theirs, ours in pairs}
    embed_dim = state["backbone.body.patch_embed.proj.weight"].shape[0]
    return ConvertedGLIP(weights, *shape, embed_dim, left_out)


def to_glip(state_dict: Mapping[str, Tensor], num_classes: int = 80) -> dict[str, Tensor]:
    """The way back: a state dict of ours as one that their code loads.

    Args:
        state_dict: of a GLIP with Detectron2's Swin, BERT and five levels.
        num_classes: slots of ``cls_logits``, which their code builds and does not use; zeros.

    Raises:
        OVDError: a key that their model has not, or a missing one.
    """
    num_blocks, fusion, depths = _shape_of(state_dict, "head.tower.blocks.", "fusion.")
    pairs = list(_pairs(num_blocks, fusion, depths, list(state_dict), "text_backbone"))
    _check_keys(state_dict, {ours for _, ours in pairs}, "a GLIP of ours")
    converted = {}
    for theirs, ours in pairs:
        converted.update(zip(theirs, _to_theirs(ours, state_dict[ours], len(theirs))))
    channels = state_dict["head.box_deltas.weight"].shape[1]
    converted[f"{_HEAD}cls_logits.weight"] = torch.zeros(num_classes, channels, 1, 1)
    converted[f"{_HEAD}cls_logits.bias"] = torch.zeros(num_classes)
    return converted


def _shape_of(
    state: Mapping[str, Tensor], tower: str, fusion: str
) -> tuple[int, bool, tuple[int, ...]]:
    """Blocks of the tower, whether they fuse, blocks of each Swin stage."""
    places = {int(key.split(".")[tower.count(".")]) for key in state if key.startswith(tower)}
    fuses = any(key.startswith(tower) and f".{fusion}" in key for key in state)
    per_block = 3 if fuses and fusion == "b_attn." else 1
    blocks: dict[int, int] = {}
    for key in state:
        found = re.match(r"backbone\.(?:body|bottom_up)\.layers\.(\d+)\.blocks\.(\d+)\.", key)
        if found:
            stage, block = map(int, found.groups())
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    if not places or sorted(blocks) != list(range(len(blocks))) or not blocks:
        raise OVDError(
            "There is no Swin Transformer with a grounding head in it: this is no checkpoint of "
            "GLIP."
        )
    depths = tuple(blocks[stage] for stage in range(len(blocks)))
    return -(-(max(places) + 1) // per_block), fuses, depths


_Pair = tuple[tuple[str, ...], str]  # names of theirs, one name of ours


def _pairs(
    num_blocks: int, fusion: bool, depths: tuple[int, ...], keys: list[str], text: str
) -> Iterator[_Pair]:
    """Every parameter of a model of this shape; of the text layers as many as ``keys`` has."""
    for name in _swin_names(depths):
        yield (f"backbone.body.{name}",), f"backbone.bottom_up.{name}"
    for kind in ("weight", "bias"):
        for level in (2, 3, 4):
            ours = f"backbone.fpn_{{}}{level + 1}.{kind}"
            yield (f"backbone.fpn.fpn_inner{level}.{kind}",), ours.format("lateral")
            yield (f"backbone.fpn.fpn_layer{level}.{kind}",), ours.format("output")
        for top in ("p6", "p7"):
            yield (f"backbone.fpn.top_blocks.{top}.{kind}",), f"backbone.top_block.{top}.{kind}"
    layers = [re.match(rf"{text}\..*encoder\.layer\.(\d+)\.", key) for key in keys]
    for name in _bert_names(1 + max((int(found[1]) for found in layers if found), default=-1)):
        yield (_TEXT + name,), f"text_backbone.model.{name}"
    for block in range(num_blocks):
        yield from _block_pairs(block, fusion)
    for theirs, ours in (
        ("log_scale", "alignment.log_scale"), ("bias_lang", "alignment.text_bias"),
        ("bias0", "alignment.bias"),
    ):  # fmt: skip
        yield (_HEAD + theirs,), f"head.{ours}"
    for theirs, ours in (
        ("dot_product_projection_text", "alignment.projection"), ("bbox_pred", "box_deltas"),
        ("centerness", "centerness"),
    ):  # fmt: skip
        for kind in ("weight", "bias"):
            yield (f"{_HEAD}{theirs}.{kind}",), f"head.{ours}.{kind}"
    yield tuple(f"{_HEAD}scales.{level}.scale" for level in range(_LEVELS)), "head.level_scales"


def _block_pairs(block: int, fusion: bool) -> Iterator[_Pair]:
    tower = f"{_HEAD}dyhead_tower."
    ours = f"head.tower.blocks.{block}."
    first = 3 * block if fusion else block
    parts = [(f"{tower}{first + 2 * fusion}.", f"{ours}dyconv.", _DYCONV)]
    if fusion:
        parts.append((f"{tower}{first}.b_attn.", f"{ours}fusion.", _FUSION))
        parts.append((f"{tower}{first + 1}.", f"{ours}text_layer.", _TEXT_LAYER))
        for theirs, mine in (("gamma_v", "visual_scale"), ("gamma_l", "text_scale")):
            yield (f"{tower}{first}.b_attn.{theirs}",), f"{ours}fusion.{mine}"
        for kind in ("weight", "bias"):
            separate = [f"attention.self.{part}.{kind}" for part in ("query", "key", "value")]
            names = tuple(f"{tower}{first + 1}.{name}" for name in separate)
            yield names, f"{ours}text_layer.self_attn.in_proj_{kind}"
    for before, after, names in parts:
        for (theirs, mine), kind in itertools.product(names.items(), ("weight", "bias")):
            yield (f"{before}{theirs}.{kind}",), f"{after}{mine}.{kind}"


def _swin_names(depths: tuple[int, ...]) -> Iterator[str]:
    for layer in ("patch_embed.proj", "patch_embed.norm", *(f"norm{i}" for i in (1, 2, 3))):
        yield from (f"{layer}.weight", f"{layer}.bias")
    for stage, depth in enumerate(depths):
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}."
            yield from (prefix + table for table in _SWIN_TABLES)
            for layer in _SWIN_LAYERS:
                yield from (f"{prefix}{layer}.weight", f"{prefix}{layer}.bias")
        if stage + 1 < len(depths):
            prefix = f"layers.{stage}.downsample."
            yield from (f"{prefix}reduction.weight", f"{prefix}norm.weight", f"{prefix}norm.bias")


def _bert_names(layers: int) -> Iterator[str]:
    yield from (f"embeddings.{name}" for name in bert_names.EMBEDDINGS)
    for layer, name in itertools.product(range(layers), bert_names.LAYER):
        yield from (f"encoder.layer.{layer}.{name}.{kind}" for kind in ("weight", "bias"))


def _check_keys(state: Mapping[str, Tensor], expected: set[str], whose: str) -> None:
    for key in state:
        if key not in expected:
            raise OVDError(f"The key {key} belongs to no part of {whose}: nothing is converted.")
    missing = sorted(expected - set(state))
    if missing:
        raise OVDError(
            f"The key {missing[0]} is missing ({len(missing)} in all): this is no complete "
            f"checkpoint of {whose}."
        )


def _to_ours(name: str, values: list[Tensor]) -> Tensor:
    value = torch.cat(values) if len(values) > 1 else values[0]
    return value.flatten(1) if name.endswith(_LINEAR) else value


def _to_theirs(name: str, value: Tensor, parts: int) -> tuple[Tensor, ...]:
    if name.endswith(_LINEAR):
        value = value[..., None, None]
    return tuple(part.clone() for part in value.chunk(parts)) if parts > 1 else (value,)
