"""SGD or AdamW with Detectron2's parameter groups and gradient clipping."""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import LRMultiplier
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import nn

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError
from ovd_d2.modeling.target_checks import honour

LINEAR = "linear"
_HONOURED = ("OPTIMIZER", "ADAM_BETAS", "ADAM_EPS", "LR_MULTIPLIERS", "LINEAR_LR.PREFIXES")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``SOLVER.OPTIMIZER`` over all parameters that need a gradient; AdamW with
    ``SOLVER.ADAM_BETAS`` and ``ADAM_EPS``.

    Weight decay follows ``SOLVER.WEIGHT_DECAY``, ``WEIGHT_DECAY_NORM`` and ``WEIGHT_DECAY_BIAS``;
    what ``NO_WEIGHT_DECAY`` names has none. The learning rate of parameters is multiplied by the
    factor of the first prefix of ``SOLVER.LR_MULTIPLIERS`` that their names begin with, that of
    biases by ``BIAS_LR_FACTOR`` too. A bias is what has "bias" in its own name, such as
    in_proj_bias and Swin's relative_position_bias_table, as in GLIP's public code. Gradients are
    clipped as ``SOLVER.CLIP_GRADIENTS`` says; beside Detectron2's per-parameter ``CLIP_TYPE``
    "value" and "norm" there is "full_model", the norm of all gradients together (Detic's name).
    Groups of ``SOLVER.LINEAR_LR.PREFIXES`` have ``schedule`` "linear", see
    :func:`build_lr_scheduler`.
    With "SGD", no multipliers and no such names this is what Detectron2 builds.

    Raises:
        OVDError: unknown optimizer, nothing to train, a prefix that no name begins with, or keys of
            AdamW with another optimizer.
    """
    solver = cfg.SOLVER
    honour(model, *(f"SOLVER.{key}" for key in _HONOURED))
    factors = dict(solver.LR_MULTIPLIERS)
    names = [name for name, _ in model.named_parameters()]
    linear = tuple(solver.LINEAR_LR.PREFIXES)
    for key, prefix in [("LR_MULTIPLIERS", p) for p in factors] + [
        ("LINEAR_LR.PREFIXES", p) for p in linear
    ]:
        if not any(name.startswith(prefix) for name in names):
            raise OVDError(
                f"SOLVER.{key} names {prefix!r}, which no parameter of the model begins "
                f"with; there are {', '.join(sorted({n.split('.')[0] + '.' for n in names}))}."
            )
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        lr_factor_func=_LearningRateFactor(factors, solver.BIAS_LR_FACTOR),
        overrides=_decay_by_name(names, solver.WEIGHT_DECAY_BIAS, solver.NO_WEIGHT_DECAY),
    )
    if not params:
        raise OVDError(
            f"No parameter of {type(model).__name__} needs a gradient: freeze less of it "
            "(MODEL.BACKBONE.FREEZE_AT, MODEL.TIMM.FREEZE_STAGES)."
        )
    params = _with_schedules(params, model, linear)
    common: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        _refuse_keys_of_adam(solver)
        kind = torch.optim.SGD
        common |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV, "foreach": True}
    elif solver.OPTIMIZER == "ADAMW":
        kind = torch.optim.AdamW
        common |= {"betas": tuple(solver.ADAM_BETAS), "eps": solver.ADAM_EPS}
        # One kernel on a CPU, a third of the time. With a loss scaler a fused optimizer would
        # unscale the gradients itself, after they were clipped.
        on_cpu = all(p.device.type == "cpu" for p in model.parameters())
        if on_cpu and not solver.AMP.ENABLED:
            common["fused"] = True
    else:
        raise OVDError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; it must be 'SGD' or 'ADAMW'.")
    clipping = solver.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE == "full_model":
        return _clipping_by_global_norm(kind, clipping.CLIP_VALUE)(params, **common)
    return maybe_add_gradient_clipping(cfg, kind)(params, **common)


def _refuse_keys_of_adam(solver: CfgNode) -> None:
    defaults = get_cfg()
    add_ovd_config(defaults)
    for key in ("ADAM_BETAS", "ADAM_EPS"):
        if solver[key] != defaults.SOLVER[key]:
            raise OVDError(
                f"SOLVER.{key} is {solver[key]}, which OPTIMIZER {solver.OPTIMIZER} does not read: "
                "set SOLVER.OPTIMIZER ADAMW, or leave the key out."
            )


def _with_schedules(
    groups: list[dict[str, Any]], model: nn.Module, linear: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The groups, split so that parameters whose names begin with a prefix are by themselves."""
    if not linear:
        return groups
    chosen = {id(p) for name, p in model.named_parameters() if name.startswith(linear)}
    split = []
    for group in groups:
        own = [p for p in group["params"] if id(p) in chosen]
        rest = [p for p in group["params"] if id(p) not in chosen]
        split += [{**group, "params": rest}] if rest else []
        split += [{**group, "params": own, "schedule": LINEAR}] if own else []
    return split


class LRMultiplierByGroup(LRMultiplier):
    """Detectron2's, but groups with ``schedule`` "linear" follow a schedule of their own."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        linear: ParamScheduler,
        max_iter: int,
    ) -> None:
        """
        Args:
            optimizer: of :func:`build_optimizer`.
            multiplier: of most groups.
            linear: of the others.
            max_iter: of the training.
        """
        self._linear = linear
        super().__init__(optimizer, multiplier, max_iter)

    def get_lr(self) -> list[float]:
        """The rates of the present iteration."""
        done = self.last_epoch / self._max_iter
        usual, linear = self._multiplier(done), self._linear(done)
        return [
            base * (linear if group.get("schedule") == LINEAR else usual)
            for base, group in zip(self.base_lrs, self.optimizer.param_groups)
        ]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
    """Detectron2's scheduler of ``SOLVER.LR_SCHEDULER_NAME``, and beside it that of
    ``SOLVER.LINEAR_LR``: from 0 up over the first share of the iterations, then down to 0.

    MDETR's public code sets the rates behind a step, so that its first has the full ones; here
    every step has its own.
    """
    usual = build_detectron2_lr_scheduler(cfg, optimizer)
    if not cfg.SOLVER.LINEAR_LR.PREFIXES:
        return usual
    share = cfg.SOLVER.LINEAR_LR.WARMUP
    parts = [(LinearParamScheduler(0, 1), share), (LinearParamScheduler(1, 0), 1 - share)]
    schedulers, lengths = zip(*[part for part in parts if part[1] > 0])
    linear = CompositeParamScheduler(schedulers, lengths, ["rescaled"] * len(lengths))
    return LRMultiplierByGroup(optimizer, usual._multiplier, linear, cfg.SOLVER.MAX_ITER)


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


def _decay_by_name(
    names: list[str], of_biases: float | None, none: list[str]
) -> dict[str, dict[str, float]]:
    """Own name of a parameter -> its weight decay, where it is not that of its module's type."""
    decay = {}
    if of_biases is not None:
        decay |= {own: of_biases for name in names if "bias" in (own := name.rpartition(".")[2])}
    decay |= dict.fromkeys(none, 0.0)
    return {name: {"weight_decay": value} for name, value in decay.items()}


class _LearningRateFactor:
    """Learning-rate factor of a parameter: by the beginning of its name, and of biases."""

    def __init__(self, by_prefix: dict[str, float], of_biases: float) -> None:
        self._by_prefix = by_prefix
        self._of_biases = of_biases

    def __call__(self, name: str) -> float:
        name = name.removeprefix(".")  # Detectron2 puts one before those of the model itself
        matching = (f for prefix, f in self._by_prefix.items() if name.startswith(prefix))
        is_bias = "bias" in name.rpartition(".")[2]
        return next(matching, 1.0) * (self._of_biases if is_bias else 1.0)
