"""Adapters of low rank in the attention layers of any model, by peft, merged in every state dict.

Letters: I, O inputs and outputs of a linear layer, r rank.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1:
h = W x + (alpha / r) B A x, A (r, I) random, B (O, r) zero at first.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.errors import OVDError

_NAME = "default"  # of peft's only adapter
_PARTS = ("base_layer.weight", f"lora_A.{_NAME}.weight", f"lora_B.{_NAME}.weight")


def adaptable_layers(model: nn.Module, names: Collection[str]) -> list[str]:
    """The linear layers that can get an adapter: their last word is in ``names``, they learn, and
    they are called as modules (those inside torch's own attention are not).

    Args:
        model: any.
        names: last words of names of modules.
    """
    found, inside_torch = [], ()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inside_torch = (*inside_torch, f"{name}.")
        linear = type(module) is nn.Linear and module.weight.requires_grad
        if linear and name.rpartition(".")[2] in names and not name.startswith(inside_torch):
            found.append(name)
    return found


def add_adapters(model: nn.Module, *, rank: int, alpha: float, names: Collection[str]) -> list[str]:
    """Puts an adapter into each of :func:`adaptable_layers`; nothing but adapters learns then.

    The output is as before, for B is 0. Names and values of ``state_dict`` are those of a model
    without adapters whose weights are W + (alpha / r) B A, and such weights can be loaded; adapters
    stay as they are then. :func:`adapter_state` keeps the parts apart.

    Args:
        model: changed in place.
        rank: r, at least 1.
        alpha: see above.
        names: see :func:`adaptable_layers`.

    Returns:
        names of the layers.

    Raises:
        OVDError: there is no such layer, or peft is not installed.
    """
    layers = adaptable_layers(model, names)
    if not layers:
        raise OVDError(
            f"MODEL.TUNE.LORA: {type(model).__name__} has no attention layer that learns, of those "
            "that LAYERS names; a convolutional network trains without adapters (RANK 0)."
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise OVDError("MODEL.TUNE.LORA needs peft: run `pip install peft`.") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, lora_dropout=0.0)
    inject_adapter_in_model(config, model, _NAME)
    for _, layer in _adapted(model):
        layer.register_state_dict_post_hook(_merge)
        layer.register_load_state_dict_pre_hook(_unmerge)
    return layers


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """W, A and B of every adapter, to go on training from; {} for a model without."""
    return {
        f"{name}.{part}": layer.get_parameter(part).detach()
        for name, layer in _adapted(model)
        for part in _PARTS
    }


def load_adapter_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Restores what :func:`adapter_state` returned.

    Raises:
        OVDError: it is of other layers, or of another rank.
    """
    mine = adapter_state(model)
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in state.items()}:
        raise OVDError(
            "The checkpoint has other adapters than the model: resume with the MODEL.TUNE.LORA of "
            "that run."
        )
    for name, value in mine.items():
        value.copy_(state[name])


def _adapted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers with an adapter and their names."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


@torch.no_grad()
def _merge(layer: Any, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """A hook on the state dict of an adapted layer: one weight in the place of W, A and B."""
    for name in [name for name in state if name.startswith(prefix)]:
        value = state.pop(name)
        if name.startswith(f"{prefix}base_layer."):
            state[prefix + name.removeprefix(f"{prefix}base_layer.")] = value
    weight = state[f"{prefix}weight"]
    state[f"{prefix}weight"] = weight + layer.get_delta_weight(_NAME).to(weight)


def _unmerge(layer: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A hook before loading: an ordinary weight becomes W, A and B stay as they are."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}base_layer.{name.removeprefix(prefix)}"] = state.pop(name)
    for part in _PARTS[1:]:
        state[prefix + part] = layer.get_parameter(part).detach()
