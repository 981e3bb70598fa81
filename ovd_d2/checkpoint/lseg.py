"""Checkpoints of LSeg (arXiv 2201.03546, github.com/isl-org/lang-seg): the demo model on ViT-L/16
and the few-shot models on ResNet-101 and ViT-L/16.

Their networks have our parameters under other names.

===========================================  =================================================
theirs                                       ours
===========================================  =================================================
``pretrained.model``                         ``backbone.vit``, timm's ViT
``pretrained.act_postprocess1`` .. 4         ``backbone.levels.0`` .. 3
``pretrained.layer1.0``, ``.1``, ``.4``      ``backbone.net.conv1``, ``bn1``, ``layer1`` of timm's
                                             ResNet; ``layer2`` .. 4 have the same names
``scratch.layer1_rn`` .. 4                   ``decoder.adapt.0`` .. 3
``scratch.refinenet1`` .. 4                  ``decoder.fuse.0`` .. 3
``scratch.head1``                            ``head.projection``
``scratch.head_block.depthwise.depthwise``   ``head.regulariser.conv``
===========================================  =================================================

Not taken over, for their network does not read it or ours has it elsewhere: CLIP, the ViT's last
norm and classifier, and the residual unit of the coarsest fusion block that has no input.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ovd_d2.errors import OVDError

PREFIX = "net."  # of the names in their files
_UNREAD_UNIT = "scratch.refinenet4.resConfUnit1."
_LEFT_OUT = ("clip_pretrained.", "pretrained.model.norm.", "pretrained.model.head.", _UNREAD_UNIT)
# Theirs -> ours, and back; the first that fits counts. "{}" is a level, theirs from 1.
_NAMES = (
    ("pretrained.model.", "backbone.vit."),
    ("pretrained.act_postprocess{}.0.project.0.", "backbone.levels.{}.readout.project."),
    ("pretrained.act_postprocess{}.3.", "backbone.levels.{}.reduce."),
    ("pretrained.act_postprocess{}.4.", "backbone.levels.{}.resize."),
    ("pretrained.layer1.0.", "backbone.net.conv1."),
    ("pretrained.layer1.1.", "backbone.net.bn1."),
    ("pretrained.layer1.4.", "backbone.net.layer1."),
    ("pretrained.layer2.", "backbone.net.layer2."),
    ("pretrained.layer3.", "backbone.net.layer3."),
    ("pretrained.layer4.", "backbone.net.layer4."),
    ("scratch.layer{}_rn.", "decoder.adapt.{}."),
    ("scratch.refinenet{}.resConfUnit1.bn", "decoder.fuse.{}.level_unit.norm"),
    ("scratch.refinenet{}.resConfUnit2.bn", "decoder.fuse.{}.unit.norm"),
    ("scratch.refinenet{}.resConfUnit1.", "decoder.fuse.{}.level_unit."),
    ("scratch.refinenet{}.resConfUnit2.", "decoder.fuse.{}.unit."),
    ("scratch.refinenet{}.out_conv.", "decoder.fuse.{}.out."),
    ("scratch.head1.", "head.projection."),
    ("scratch.head_block.depthwise.depthwise.", "head.regulariser.conv."),
)
_NOT_IN_THEIRS = ("head.encoder_id_bytes",)
_NEEDED = (
    "head.projection.weight", "head.projection.bias",
    *(f"decoder.adapt.{level}.weight" for level in range(4)),
    *(f"decoder.fuse.{level}.out.{kind}" for level in range(4) for kind in ("weight", "bias")),
)  # fmt: skip


@dataclass(frozen=True)
class ConvertedLSeg:
    """A state dict of one of our models.

    Attributes:
        weights: our keys to tensors, fp32.
        backbone: "build_timm_vit_backbone" or "build_timm_backbone".
        embed_dim: ``MODEL.OPEN_VOCAB.EMBED_DIM``: 512 for CLIP ViT-B/32, 768 for RN50x16.
        has_regulariser: which one, how deep and with which activation is not in their files.
        left_out: keys of theirs that ours has not.
    """

    weights: dict[str, Tensor]
    backbone: str
    embed_dim: int
    has_regulariser: bool
    left_out: tuple[str, ...]


def from_lseg(state_dict: Mapping[str, Tensor]) -> ConvertedLSeg:
    """Their state dict as ours; no key is lost silently.

    Args:
        state_dict: names to tensors, as in the released files under "state_dict"; "net." in front
            of them may be missing.

    Raises:
        OVDError: a key that no LSeg has, or a missing one.
    """
    weights, left_out = {}, []
    for key, value in state_dict.items():
        name = key.removeprefix(PREFIX)
        if name.startswith(_LEFT_OUT):
            left_out.append(key)
            continue
        ours = renamed(name, to_ours=True)
        if ours is None:
            raise OVDError(f"The key {key} belongs to no part of LSeg: nothing is converted.")
        weights[ours] = value.float() if value.is_floating_point() else value
    _check_needed(weights)
    is_vit = any(key.startswith("backbone.vit.") for key in weights)
    return ConvertedLSeg(
        weights,
        backbone="build_timm_vit_backbone" if is_vit else "build_timm_backbone",
        embed_dim=len(weights["head.projection.weight"]),
        has_regulariser="head.regulariser.conv.weight" in weights,
        left_out=tuple(left_out),
    )


def to_lseg(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: a state dict of ours under their names, "net." included, without CLIP, which
    their code loads itself. What their network has and does not read is 0 (norms: 1 and 0).

    Args:
        state_dict: of an LSeg on timm's ViT or ResNet.

    Raises:
        OVDError: a key that their model has not, or a missing one.
    """
    _check_needed(state_dict)
    converted = {}
    for key, value in state_dict.items():
        if key in _NOT_IN_THEIRS:
            continue
        theirs = renamed(key, to_ours=False)
        if theirs is None:
            raise OVDError(f"The key {key} belongs to no part of their LSeg: nothing is converted.")
        converted[PREFIX + theirs] = value
    _add_unread(converted)
    return converted


def renamed(name: str, to_ours: bool) -> str | None:
    """The other name of a weight, theirs without "net."; None if no part has it."""
    for pair in _NAMES:
        before, after = pair if to_ours else pair[::-1]
        pattern = re.escape(before).replace(re.escape("{}"), r"(\d)")
        found = re.match(pattern, name)
        if found:
            shift = -1 if to_ours else 1
            level = [int(digit) + shift for digit in found.groups()]
            return after.format(*level) + name[found.end() :]
    return None


def _add_unread(state: dict[str, Tensor]) -> None:
    finest = f"{PREFIX}scratch.refinenet1.resConfUnit1."
    for key in [key for key in state if key.startswith(finest)]:
        fill = (
            torch.ones_like if re.search(r"bn\d\.(weight|running_var)", key) else torch.zeros_like
        )
        state[PREFIX + _UNREAD_UNIT + key.removeprefix(finest)] = fill(state[key])
    tokens = state.get(f"{PREFIX}pretrained.model.cls_token")
    if tokens is not None:
        width, model = tokens.shape[-1], f"{PREFIX}pretrained.model."
        state[f"{model}norm.weight"] = torch.ones(width)
        state[f"{model}norm.bias"] = torch.zeros(width)
        state[f"{model}head.weight"] = torch.zeros(1000, width)
        state[f"{model}head.bias"] = torch.zeros(1000)


def _check_needed(weights: Mapping[str, Tensor]) -> None:
    missing = [key for key in _NEEDED if key not in weights]
    if missing:
        theirs = PREFIX + str(renamed(missing[0], to_ours=False))
        raise OVDError(
            f"The key {missing[0]} (theirs: {theirs}) is missing ({len(missing)} in all): this is "
            "no complete checkpoint of LSeg."
        )
