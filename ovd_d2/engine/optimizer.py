"""SGD or AdamW with Detectron2's parameter groups and gradient clipping."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ovd_d2.errors import OVDError
from ovd_d2.modeling.target_checks import honour

_HONOURED = ("OPTIMIZER", "LR_MULTIPLIERS")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``SOLVER.OPTIMIZER`` over all parameters that need a gradient.

    Weight decay follows ``SOLVER.WEIGHT_DECAY``, ``WEIGHT_DECAY_NORM``, ``WEIGHT_DECAY_BIAS`` and
    ``NO_WEIGHT_DECAY``; the learning rate of parameters is multiplied by the factor of the first
    prefix of ``SOLVER.LR_MULTIPLIERS`` that their names begin with; gradients are clipped as
    ``SOLVER.CLIP_GRADIENTS`` says; beside Detectron2's per-parameter ``CLIP_TYPE`` "value" and
    "norm" there is "full_model", the norm of all gradients together (Detic's name). With "SGD" and
    no multipliers this is what Detectron2 builds.

    Raises:
        OVDError: unknown optimizer, nothing to train, or a prefix that no name begins with.
    """
    solver = cfg.SOLVER
    honour(model, *(f"SOLVER.{key}" for key in _HONOURED))
    factors = dict(solver.LR_MULTIPLIERS)
    names = [name for name, _ in model.named_parameters()]
    for prefix in factors:
        if not any(name.startswith(prefix) for name in names):
            raise OVDError(
                f"SOLVER.LR_MULTIPLIERS names {prefix!r}, which no parameter of the model begins "
                f"with; there are {', '.join(sorted({n.split('.')[0] + '.' for n in names}))}."
            )
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=_FactorByPrefix(factors) if factors else None,
        overrides={name: {"weight_decay": 0.0} for name in solver.NO_WEIGHT_DECAY},
    )
    if not params:
        raise OVDError(
            f"No parameter of {type(model).__name__} needs a gradient: freeze less of it "
            "(MODEL.BACKBONE.FREEZE_AT, MODEL.TIMM.FREEZE_STAGES)."
        )
    common: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        kind = torch.optim.SGD
        common |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV, "foreach": True}
    elif solver.OPTIMIZER == "ADAMW":
        kind = torch.optim.AdamW
    else:
        raise OVDError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; it must be 'SGD' or 'ADAMW'.")
    clipping = solver.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE == "full_model":
        return _clipping_by_global_norm(kind, clipping.CLIP_VALUE)(params, **common)
    return maybe_add_gradient_clipping(cfg, kind)(params, **common)


def _clipping_by_global_norm(
    kind: type[torch.optim.Optimizer], max_norm: float
) -> type[torch.optim.Optimizer]:
    """``kind`` that scales all gradients together to an L2 norm of at most ``max_norm``.

    Inside ``step``, as Detectron2's own clipping, so that a loss scaler has unscaled by then.
    """

    class Clipped(kind):
        def step(self, closure: Any = None) -> Any:
            everything = [p for group in self.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(everything, max_norm)
            return super().step(closure)

    Clipped.__name__ = f"{kind.__name__}WithGlobalNormClipping"
    return Clipped


class _FactorByPrefix:
    """Learning-rate factor of a parameter by the beginning of its name; 1 for other names."""

    def __init__(self, factors: dict[str, float]) -> None:
        self._factors = factors

    def __call__(self, name: str) -> float:
        matching = (f for prefix, f in self._factors.items() if name.startswith(prefix))
        return next(matching, 1.0)
