"""A sequence of layers that takes its batch a few images at a time.

Letters: N images, C channels.
"""

import torch
from torch import Tensor, nn

PIECE = (
    2**18
)  # numbers that enter at once, 1 MB: the wider maps inside then still fit a CPU's cache


class InPieces(nn.Sequential):
    """An ``nn.Sequential`` whose images do not depend on one another, without a gradient.

    On a CPU it runs over a few images at a time, so that wide intermediate maps stay in the cache:
    EfficientNet's first stages are two to three times as quick. The result is that of
    ``nn.Sequential`` up to rounding, and so are the names of its parameters. With a gradient, on
    other devices, and while a graph is made it is ``nn.Sequential``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        if torch.jit.is_scripting():
            return self._at_once(x)
        else:  # an else, since torch.jit.script leaves out only what is in a branch
            if torch.jit.is_tracing() or torch.compiler.is_compiling():
                return self._at_once(x)
            learns = torch.is_grad_enabled() and (
                x.requires_grad or any(p.requires_grad for p in self.parameters())
            )
            count = max(1, PIECE // max(1, x[:1].numel()))
            if learns or x.device.type != "cpu" or len(x) <= count:
                return self._at_once(x)
            return torch.cat([self._at_once(piece) for piece in x.split(count)])

    def _at_once(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x
