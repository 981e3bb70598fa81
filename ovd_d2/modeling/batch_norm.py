"""Momentum and epsilon of a model's batch norms, for which Detectron2 has no keys."""

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovd_d2.errors import OVDError


def set_batch_norm_constants(model: nn.Module, momentum: float = 0.0, eps: float = 0.0) -> None:
    """Sets them in all batch norms of ``model``, synchronised ones too; frozen ones have none.

    Args:
        model: any.
        momentum: share of a batch in the running statistics, as in torch (TensorFlow's 0.997 is
            0.003 here); 0: each layer keeps its own.
        eps: added to the variance; 0: each layer keeps its own.

    Raises:
        OVDError: a value that is none.
    """
    if not 0 <= momentum <= 1:
        raise OVDError(f"MODEL.BATCH_NORM.MOMENTUM is {momentum}; it must be in [0, 1].")
    if not 0 <= eps < float("inf"):
        raise OVDError(f"MODEL.BATCH_NORM.EPS is {eps}; it must be a number of 0 or more.")
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = momentum or layer.momentum
            layer.eps = eps or layer.eps


def finish_model(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """What ``build_model`` leaves undone: ``MODEL.BATCH_NORM`` and ``MODEL.CHANNELS_LAST``."""
    constants = cfg.MODEL.BATCH_NORM
    set_batch_norm_constants(model, constants.MOMENTUM, constants.EPS)
    return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model
