"""Rows of all processes in one tensor, with gradients that flow back to where they came from."""

import torch
from torch import Tensor
from torch import distributed as dist


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) of every process -> (G, ...), G = N x processes, in the order of the ranks.

    Backward gives each process the *sum* over all processes of the gradients of its rows, so that
    DistributedDataParallel's mean over processes is right for a loss that is a mean over them.
    N must be the same in all processes; every process must call it, forward and backward. Without
    processes it returns ``rows`` itself.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    gathered = torch.cat(all_gather(rows))
    if gathered.requires_grad:  # torch's path for gloo mixes up the values of a transposed gradient
        gathered.register_hook(Tensor.contiguous)
    return gathered
