"""Checkpoints of GroupViT (arXiv 2202.11094): those of github.com/NVlabs/GroupViT, which are under
NVIDIA's non-commercial licence, and those of transformers' ``GroupViTModel``.

Their models have our parameters under other names:

=============================  ===================================  ============================
ours                           NVlabs                               transformers
=============================  ===================================  ============================
``image_encoder.stages``       ``img_encoder.layers``               ``vision_model.encoder.stages``
``....grouping``               ``....downsample``                   ``....downsample``
``text.tower``                 ``text_encoder``                     ``text_model``
``image_projector.0``, 1       ``img_projector.linear_hidden.0`` 1  ``visual_projection.0``, 1
``image_projector.3``          ``img_projector.linear_out``         ``visual_projection.3``
``text.projector``             ``text_projector``                   ``text_projection``
``logit_scale``                ``logit_scale``                      ``logit_scale``
``multi_label_logit_scale``    ``multi_label_logit_scale``          -
=============================  ===================================  ============================

Query, key and value are one matrix in our attention layers; NVlabs' projectors are 1 x 1
convolutions.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, cat

from ovd_d2.errors import OVDError

_LAYER = ("weight", "bias")
_NORM_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_QKV = ("q_proj", "k_proj", "v_proj")
# Below a grouping block: ours, theirs (both, but for `proj`, which transformers calls otherwise).
_GROUPING = {
    "mixer.norm": "norm_tokens",
    "mixer.mlp.0": "mlp_inter.fc1",
    "mixer.mlp.2": "mlp_inter.fc2",
    "group_norm": "norm_post_tokens",
    "token_norm": "norm_x",
    "pre_assignment.attention.out_proj": "pre_assign_attn.attn.proj",
    "pre_assignment.mlp_norm": "pre_assign_attn.norm2",
    "pre_assignment.mlp.0": "pre_assign_attn.mlp.fc1",
    "pre_assignment.mlp.2": "pre_assign_attn.mlp.fc2",
    "pre_assignment.out_norm": "pre_assign_attn.norm_post",
    "assignment.query": "assign.q_proj",
    "assignment.key": "assign.k_proj",
    "assignment.value": "assign.v_proj",
    "assignment.out": "assign.proj",
    "mlp_norm": "norm_new_x",
    "mlp.0": "mlp_channels.fc1",
    "mlp.2": "mlp_channels.fc2",
}
_BLOCK = {
    "norm1": "layer_norm1", "attn.proj": "self_attn.out_proj", "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_TEXT_BLOCK = {
    "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2", "ln_2": "layer_norm2",
}  # fmt: skip
_GROUP_PROJECTOR = {"norm": "0", "mlp.0": "1.fc1", "mlp.2": "1.fc2"}
_PROJECTOR = {"0": "linear_hidden.0", "1": "linear_hidden.1", "3": "linear_out"}
_CONVOLUTIONS = re.compile(r"(img|text)_projector\.(linear_hidden\.0|linear_out)\.weight")
# Computed anew, in older files of transformers.
_POSITION_IDS = re.compile(r"(text|vision)_model\.embeddings\.position_ids")


class Names(NamedTuple):
    """One parameter of ours and what it is elsewhere, to be joined along the first axis."""

    ours: tuple[str, ...]
    nvlabs: tuple[str, ...]
    transformers: tuple[str, ...]


NAMINGS = Names._fields


@dataclass(frozen=True)
class ConvertedGroupViT:
    """A state dict in another naming.

    Attributes:
        weights: names to tensors.
        naming: that it came from, one of ``NAMINGS``.
        shape: keys of ``MODEL.GROUPVIT`` that the tensors tell.
        left_out: names that have no counterpart.
    """

    weights: dict[str, Tensor]
    naming: str
    shape: dict[str, Any]
    left_out: tuple[str, ...]


def naming_of(state: Mapping[str, Tensor]) -> str:
    """Which of ``NAMINGS`` a state dict has.

    Raises:
        OVDError: none of them.
    """
    for naming, prefix in zip(NAMINGS, ("image_encoder.", "img_encoder.", "vision_model.")):
        if any(key.startswith(prefix) for key in state):
            return naming
    raise OVDError(
        "There is no img_encoder, vision_model or image_encoder in it: this is no checkpoint of "
        "GroupViT."
    )


def convert_groupvit_names(state_dict: Mapping[str, Tensor], naming: str) -> ConvertedGroupViT:
    """A state dict of GroupViT in another naming; no key is lost silently.

    Args:
        state_dict: names to tensors in any of ``NAMINGS``; "module." in front (of DDP) is taken
            away.
        naming: wanted, one of ``NAMINGS``.

    Raises:
        OVDError: a key that no GroupViT has, or a missing one.
    """
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    source = naming_of(state)
    left_out = tuple(key for key in state if _POSITION_IDS.fullmatch(key))
    state = {key: value for key, value in state.items() if key not in left_out}
    rows = list(_all_names(state, source))
    _check_keys(state, {key for row in rows for key in getattr(row, source)})
    weights: dict[str, Tensor] = {}
    for row in rows:
        names = getattr(row, naming)
        if not names:
            left_out += getattr(row, source)
            continue
        whole = _joined(state, getattr(row, source))
        parts = whole.chunk(len(names)) if len(names) > 1 else (whole,)
        for name, part in zip(names, parts):
            weights[name] = part[..., None] if _CONVOLUTIONS.fullmatch(name) else part
    return ConvertedGroupViT(weights, source, _shape_of(state, rows, source), left_out)


def _joined(state: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    whole = cat([state[name] for name in names]) if len(names) > 1 else state[names[0]]
    return whole.flatten(1) if _CONVOLUTIONS.fullmatch(names[0]) else whole


def _all_names(state: Mapping[str, Tensor], naming: str) -> Iterator[Names]:
    """Every parameter of the model that ``state`` is of."""
    place = NAMINGS.index(naming)
    block = (r"image_encoder\.stages\.(\d+)\.blocks\.(\d+)\.",
             r"img_encoder\.layers\.(\d+)\.blocks\.(\d+)\.",
             r"vision_model\.encoder\.stages\.(\d+)\.layers\.(\d+)\.")[place]  # fmt: skip
    text = (r"text\.tower\.transformer\.resblocks\.(\d+)\.",
            r"text_encoder\.transformer\.resblocks\.(\d+)\.",
            r"text_model\.encoder\.layers\.(\d+)\.")[place]  # fmt: skip
    depths: dict[int, int] = {}
    for stage, number in (map(int, found.groups()) for found in _matches(block, state)):
        depths[stage] = max(depths.get(stage, 0), number + 1)
    layers = max((int(found[1]) for found in _matches(text, state)), default=-1) + 1
    yield from image_encoder_names([depths.get(i, 0) for i in range(max(depths, default=0) + 1)])
    yield from _text_names(layers)
    for ours, nvlabs, other in (
        ("image_projector", "img_projector", "visual_projection"),
        ("text.projector", "text_projector", "text_projection"),
    ):
        for (part, theirs), kind in itertools.product(_PROJECTOR.items(), _LAYER):
            yield _one(f"{ours}.{part}.{kind}", f"{nvlabs}.{theirs}.{kind}",
                       f"{other}.{part}.{kind}")  # fmt: skip
        for kind in _NORM_STATISTICS:
            yield _one(f"{ours}.1.{kind}", f"{nvlabs}.linear_hidden.1.{kind}",
                       f"{other}.1.{kind}")  # fmt: skip
    yield _one("logit_scale", "logit_scale", "logit_scale")
    second = Names(("multi_label_logit_scale",), ("multi_label_logit_scale",), ())
    if any(key in state for key in getattr(second, naming)):
        yield second


def image_encoder_names(depths: Sequence[int]) -> Iterator[Names]:
    """Parameters of the image encoder with so many blocks in its stages."""
    embeddings = "vision_model.embeddings."
    yield _one("image_encoder.pos_embed", "img_encoder.pos_embed",
               f"{embeddings}position_embeddings")  # fmt: skip
    for part, theirs in (("proj", "patch_embeddings.projection"), ("norm", "layernorm")):
        yield from _layer(f"image_encoder.patch_embed.{part}", f"img_encoder.patch_embed.{part}",
                          embeddings + theirs)  # fmt: skip
    yield from _layer("image_encoder.norm", "img_encoder.norm", "vision_model.layernorm")
    for stage, depth in enumerate(depths):
        ours, nvlabs = f"image_encoder.stages.{stage}.", f"img_encoder.layers.{stage}."
        other = f"vision_model.encoder.stages.{stage}."
        for block in range(depth):
            a, b, c = (
                f"{ours}blocks.{block}.",
                f"{nvlabs}blocks.{block}.",
                f"{other}layers.{block}.",
            )
            for kind in _LAYER:
                separate = tuple(f"{c}self_attn.{part}.{kind}" for part in _QKV)
                yield Names((f"{a}attn.qkv.{kind}",), (f"{b}attn.qkv.{kind}",), separate)
            for part, theirs in _BLOCK.items():
                yield from _layer(a + part, b + part, c + theirs)
        if stage + 1 == len(depths):
            continue
        yield _one(f"{ours}group_tokens", f"{nvlabs}group_token", f"{other}group_token")
        for part, theirs in _GROUP_PROJECTOR.items() if stage else ():
            yield from _layer(f"{ours}group_projector.{part}", f"{nvlabs}group_projector.{theirs}",
                              f"{other}group_projector.{theirs}")  # fmt: skip
        yield from grouping_names(f"{ours}grouping.", f"{nvlabs}downsample.", f"{other}downsample.")


def grouping_names(ours: str = "", nvlabs: str = "", other: str = "") -> Iterator[Names]:
    """Parameters of a grouping block behind these prefixes."""
    attention = "pre_assign_attn.attn."
    for kind in _LAYER:
        yield Names(
            (f"{ours}pre_assignment.attention.in_proj_{kind}",),
            tuple(f"{nvlabs}{attention}{part}.{kind}" for part in _QKV),
            tuple(f"{other}{attention}{part}.{kind}" for part in _QKV),
        )
    for part, theirs in _GROUPING.items():
        hub = theirs.replace("attn.proj", "attn.out_proj")
        yield from _layer(ours + part, nvlabs + theirs, other + hub)


def _text_names(layers: int) -> Iterator[Names]:
    ours, nvlabs, other = "text.tower.", "text_encoder.", "text_model."
    yield _one(f"{ours}positional_embedding", f"{nvlabs}positional_embedding",
               f"{other}embeddings.position_embedding.weight")  # fmt: skip
    yield _one(f"{ours}token_embedding.weight", f"{nvlabs}token_embedding.weight",
               f"{other}embeddings.token_embedding.weight")  # fmt: skip
    yield from _layer(f"{ours}ln_final", f"{nvlabs}ln_final", f"{other}final_layer_norm")
    for layer in range(layers):
        a, c = f"transformer.resblocks.{layer}.", f"{other}encoder.layers.{layer}."
        for kind in _LAYER:
            separate = tuple(f"{c}self_attn.{part}.{kind}" for part in _QKV)
            name = f"{a}attn.in_proj_{kind}"
            yield Names((ours + name,), (nvlabs + name,), separate)
        for part, theirs in _TEXT_BLOCK.items():
            yield from _layer(f"{ours}{a}{part}", f"{nvlabs}{a}{part}", c + theirs)


def _one(*names: str) -> Names:
    return Names(*((name,) for name in names))


def _layer(*names: str) -> Iterator[Names]:
    for kind in _LAYER:
        yield _one(*(f"{name}.{kind}" for name in names))


def _matches(pattern: str, state: Mapping[str, Tensor]) -> Iterator[re.Match[str]]:
    return filter(None, (re.match(pattern, key) for key in state))


def _check_keys(state: Mapping[str, Tensor], expected: set[str]) -> None:
    for key in state:
        if key not in expected:
            raise OVDError(f"The key {key} belongs to no part of GroupViT: nothing is converted.")
    missing = sorted(expected - set(state))
    if missing:
        raise OVDError(
            f"The key {missing[0]} is missing ({len(missing)} in all): this is no complete "
            "checkpoint of GroupViT."
        )


def _shape_of(state: Mapping[str, Tensor], rows: list[Names], naming: str) -> dict[str, Any]:
    """Keys of ``MODEL.GROUPVIT``; the number of attention heads cannot be seen."""
    sizes = {
        row.ours[0]: _joined(state, getattr(row, naming)).shape
        for row in rows
        if getattr(row, naming)
    }
    patch = sizes["image_encoder.patch_embed.proj.weight"]
    stages = range(1 + max(int(f[1]) for f in _matches(r"image_encoder\.stages\.(\d+)", sizes)))
    encoder = "image_encoder.stages.{}."
    block = r"image_encoder\.stages\.%d\.blocks\.\d+\.norm1\.bias"
    depths = [sum(1 for _ in _matches(block % stage, sizes)) for stage in stages]
    grouping = list(stages)[:-1]
    return {
        "IMAGE_SIZE": round(sizes["image_encoder.pos_embed"][1] ** 0.5) * patch[2],
        "PATCH": patch[2],
        "WIDTH": patch[0],
        "DEPTHS": depths,
        "GROUP_TOKENS": [
            *(sizes[f"{encoder.format(i)}group_tokens"][1] for i in grouping), 0
        ],
        "OUTPUT_GROUPS": [
            sizes[f"{encoder.format(i)}grouping.mixer.mlp.2.bias"][0] for i in grouping
        ],
        "TEXT.WIDTH": sizes["text.tower.ln_final.bias"][0],
        "TEXT.LAYERS": sum(name.endswith("ln_1.bias") for name in sizes),
        "TEXT.CONTEXT": sizes["text.tower.positional_embedding"][0],
        "EMBED_DIM": sizes["image_projector.3.bias"][0],
        "PROJECTOR_HIDDEN": sizes["image_projector.0.bias"][0],
        "MULTI_LABEL_LOSS": "soft_targets" if "multi_label_logit_scale" in sizes else "",
    }  # fmt: skip
