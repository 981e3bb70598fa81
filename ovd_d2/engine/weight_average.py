"""An exponential moving average of the weights, beside those that are trained."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

logger = logging.getLogger(__name__)


class WeightAverage(HookBase):
    """After every step, ``average = decay * average + (1 - decay) * weights``; the average starts
    at the weights with which training starts.

    Parameters that are trained and the model's floating-point buffers are averaged (the public
    code of MDETR: all of the state dict). Models are saved and evaluated inside :meth:`applied`, so
    whoever opens a checkpoint has the average; the weights that are trained are part of the
    trainer's state, and resuming goes on from both.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: not wrapped by DDP.
            decay: in [0, 1); MDETR 0.9998.
        """
        saved = model.state_dict()
        tensors = {n: p for n, p in model.named_parameters() if p.requires_grad}
        tensors |= {n: b for n, b in model.named_buffers() if n in saved and b.is_floating_point()}
        self.decay = decay
        self._tensors: dict[str, Tensor] = tensors
        self._other = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._update = get_ema_multi_avg_fn(decay)
        self._restored = False

    def before_train(self) -> None:
        """Starts at the weights that were loaded; on resuming, goes on."""
        if not self._restored:
            self._copy({name: tensor.detach() for name, tensor in self._tensors.items()})

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the average."""
        self._update(list(self._other.values()), [*self._tensors.values()], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self._tensors.items():
            kept = tensor.detach().clone()
            tensor.copy_(self._other[name])
            self._other[name].copy_(kept)

    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self._other.items():
            tensor.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Inside :meth:`applied` the weights that are trained, else the average."""
        return {"weights": dict(self._other)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the weights that are trained, of a state made inside :meth:`applied`; the model has
        the average by then, and they change places."""
        self._copy(state_dict["weights"])
        self._swap()
        self._restored = True
