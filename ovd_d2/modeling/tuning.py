"""What of a model is trained: MODEL.TUNE, and the recipes that models declare."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovd_d2.errors import OVDError

from .adapters import add_adapters

# Config keys and values of a recipe, by its name; a meta-architecture or ROI heads that can be
# fine-tuned on boxes have such a mapping as the class attribute ``recipes``. A learning rate in it
# comes before that of `ovd finetune`.
Recipes = Mapping[str, Sequence[Any]]
RECIPES = ("full", "frozen", "linear", "prompt", "lora")
LORA = ("MODEL.TUNE.LORA.RANK", 8)


def declared_recipes(cfg: CfgNode) -> Recipes | None:
    """The ``recipes`` of the meta-architecture, or else of the ROI heads; None: the model says
    nothing about fine-tuning."""
    for registry, name in (
        (META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE),
        (ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME),
    ):
        found = getattr(registry.get(name), "recipes", None) if name in registry else None
        if found is not None:
            return found
    return None


def tune_model(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Fixes what ``MODEL.TUNE`` fixes and puts its adapters in, in place.

    What a model keeps fixed itself stays so.

    Raises:
        OVDError: a prefix that no parameter begins with, or no layer for adapters.
    """
    keys = cfg.MODEL.TUNE
    if not (keys.FROZEN or keys.ONLY or keys.LORA.RANK):
        return model
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _check_prefixes(model, {"FROZEN": keys.FROZEN, "ONLY": keys.ONLY})
    if keys.LORA.RANK:
        lora = keys.LORA
        add_adapters(model, rank=lora.RANK, alpha=lora.ALPHA, names=lora.LAYERS)
    elif keys.ONLY:
        model.requires_grad_(False)
    for name, parameter in learns.items():
        if keys.ONLY and name.startswith(tuple(keys.ONLY)):
            parameter.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(keys.FROZEN)):
            parameter.requires_grad_(False)
    for module in _fixed_layers(model):
        module.register_forward_pre_hook(_stay_in_eval_mode)
    return model


def _check_prefixes(model: nn.Module, by_key: Mapping[str, Sequence[str]]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for key, prefixes in by_key.items():
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in names):
                raise OVDError(
                    f"MODEL.TUNE.{key} names {prefix!r}, which no parameter of the model begins "
                    f"with; there are {', '.join(sorted({n.split('.')[0] + '.' for n in names}))}."
                )


def _fixed_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Layers that may behave otherwise in training, in parts of which no parameter learns: batch
    norms, and what has no parameters, such as dropout."""
    seen: set[nn.Module] = set()
    for part in model.modules():
        parameters = list(part.parameters())
        if not parameters or any(p.requires_grad for p in parameters):
            continue
        for layer in part.modules():
            plain = next(layer.children(), None) is None and not list(layer.parameters())
            if (plain or isinstance(layer, _BatchNorm)) and layer not in seen:
                seen.add(layer)
                yield layer


def _stay_in_eval_mode(layer: nn.Module, _: Any) -> None:
    """A hook before the forward pass."""
    layer.training = False
