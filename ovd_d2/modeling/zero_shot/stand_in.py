"""Parts of a model whose outputs are known already, in the place of those that compute them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class StandIn(nn.Module):
    """Returns what the part in whose place it is has returned.

    Args:
        outputs: whatever it has returned.
        parts: submodules that others reach through it.
    """

    def __init__(self, outputs: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.outputs = outputs
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.outputs


@contextmanager
def standing_in(model: nn.Module, **parts: nn.Module) -> Iterator[None]:
    """Inside, ``model`` has these parts instead of its own of the same names."""
    own = {name: getattr(model, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(model, name, part)
        yield
    finally:
        for name, part in own.items():
            setattr(model, name, part)
