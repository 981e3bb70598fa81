"""Rows of all processes in one tensor, with gradients that flow back to where they came from."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class _GatherRows(torch.autograd.Function):
    """all_gather whose backward sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) of every process -> (G, ...), G = N x processes, in the order of the ranks.

    Backward gives each process the *sum* over all processes of the gradients of its rows, so that
    DistributedDataParallel's mean over processes is right for a loss that is a mean over them.
    N must be the same in all processes; every process must call it, forward and backward. Without
    processes it returns ``rows`` itself.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows) if rows.is_floating_point() else _gather_constants(rows)


def _gather_constants(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
