"""Parameter names: from those of the public GLIP code to those of ovd_d2's grounding head.

``public_to_ours`` takes the weights of a head (names without the ``rpn.head.`` in front) and gives
a state dict for ``GroundingHead``; the functions before it do the same for its parts.
"""

import re

import torch

DYCONV = {
    "DyConv.0.conv": "convolutions.coarser",
    "DyConv.1.conv": "convolutions.same",
    "DyConv.2.conv": "convolutions.finer",
    "DyConv.0.bn": "norms.coarser",
    "DyConv.1.bn": "norms.same",
    "DyConv.2.bn": "norms.finer",
    "AttnConv.1": "scale_attention",  # (1, C, 1, 1) -> (1, C)
    "offset": "offsets",
    "relu.fc.0": "activation.squeeze",
    "relu.fc.2": "activation.excite",
}
FUSION = {
    "gamma_v": "visual_scale",
    "gamma_l": "text_scale",
    "layer_norm_v": "visual_norm",
    "layer_norm_l": "text_norm",
    "attn.v_proj": "visual_query",
    "attn.l_proj": "text_key",
    "attn.values_v_proj": "visual_value",
    "attn.values_l_proj": "text_value",
    "attn.out_v_proj": "visual_out",
    "attn.out_l_proj": "text_out",
}
TEXT_LAYER = {  # query, key and value, stacked in this order, are self_attn.in_proj
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}
HEAD = {  # scales.0.scale, scales.1.scale, ... stacked are level_scales; cls_logits is not used
    "log_scale": "alignment.log_scale",
    "bias_lang": "alignment.text_bias",
    "bias0": "alignment.bias",
    "dot_product_projection_text": "alignment.projection",
    "bbox_pred": "box_deltas",  # (4, C, 1, 1) -> (4, C)
    "centerness": "centerness",  # (1, C, 1, 1) -> (1, C)
}


def rename(weights, names):
    """{"module.weight": array} with the module's name replaced; unknown ones raise KeyError."""
    found = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        ours = names[name] if name in names else f"{names[module]}.{kind}"
        value = torch.as_tensor(value)
        found[ours] = value.flatten(1) if value.shape[2:] == (1, 1) else value
    return found


def dyconv(weights):
    return rename(weights, DYCONV)


def fusion(weights):
    return rename(weights, FUSION)


def text_layer(weights):
    weights = {name: torch.as_tensor(value) for name, value in weights.items()}
    found = {}
    for kind in ("weight", "bias"):
        parts = [weights.pop(f"attention.self.{part}.{kind}") for part in ("query", "key", "value")]
        found[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
    return found | rename(weights, TEXT_LAYER)


def starting_with(weights, prefix):
    return {name[len(prefix) :]: weights[name] for name in weights if name.startswith(prefix)}


def public_to_ours(weights):
    """Block i is at i of the public tower without fusion, at 3 i, 3 i + 1, 3 i + 2 with it."""
    places = {int(re.match(r"dyhead_tower\.(\d+)", n)[1]) for n in weights if "_tower" in n}
    deep = any(".b_attn." in name for name in weights)
    found = {}
    for place in sorted(places):
        part = starting_with(weights, f"dyhead_tower.{place}.")
        block = place // 3 if deep else place
        if deep and place % 3 == 0:
            name, ours = "fusion", fusion(starting_with(part, "b_attn."))
        elif deep and place % 3 == 1:
            name, ours = "text_layer", text_layer(part)
        else:
            name, ours = "dyconv", dyconv(part)
        found |= {f"tower.blocks.{block}.{name}.{key}": value for key, value in ours.items()}
    rest = {
        name: value
        for name, value in weights.items()
        if not name.startswith(("dyhead_tower.", "cls_logits.", "scales."))
    }
    scales = starting_with(weights, "scales.")
    stacked = [torch.as_tensor(scales[f"{level}.scale"]) for level in range(len(scales))]
    return found | rename(rest, HEAD) | {"level_scales": torch.cat(stacked)}
