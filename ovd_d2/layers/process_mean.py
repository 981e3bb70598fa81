"""One number of every process, averaged."""

from torch import Tensor
from torch import distributed as dist


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of ``value`` (any shape, float) over all processes, without gradient; itself where
    there is one process. Every process must call it."""
    value = value.detach()
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()
