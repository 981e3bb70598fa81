"""Activation checkpointing: what is inside a block is computed a second time in the backward pass
instead of being kept (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost")."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: Callable[..., Tensor], *args: Any, of: nn.Module | None = None) -> Tensor:
    """``block(*args)``, of which the arguments alone are kept for the backward pass.

    The second computation leaves the running statistics of batch norms as they are, so that they
    move once per step. Without gradients it is a plain call.

    Args:
        block: a module or function; both computations must give the same.
        args: its arguments.
        of: the module whose batch norms ``block`` uses, if it is not one itself.
    """
    if not torch.is_grad_enabled():
        return block(*args)
    module = block if of is None else of
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    return checkpoint(
        block, *args, use_reentrant=False,
        context_fn=lambda: (nullcontext(), _statistics_stay(norms)),
    )  # fmt: skip


@contextmanager
def _statistics_stay(norms: list[_BatchNorm]) -> Iterator[None]:
    """Inside, copies take the place of the running statistics."""
    originals = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        copies = {name: b if b is None else b.clone() for name, b in norm._buffers.items()}
        norm._buffers.update(copies)
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals):
            norm._buffers.update(buffers)


class RecomputingSequential(nn.Sequential):
    """``nn.Sequential`` that keeps the inputs of its blocks alone, in training."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = recomputed(block, x) if self.training else block(x)
        return x
