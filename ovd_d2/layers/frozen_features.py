"""What the frozen first layers of a network make of an image, remembered.

Letters: N images, C channels.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


class FrozenFeatures:
    """Memory of the output of the last frozen layer: an image that comes again, number for number,
    does not go through the layers up to there once more.

    For small data sets whose augmentations are few, such as a flip. When the memory is full, what
    is new is computed and not kept. Weights that are loaded into the network empty it.
    """

    def __init__(self, net: nn.Module, last: nn.Module, megabytes: int) -> None:
        """
        Args:
            net: the network.
            last: its last frozen layer, (N, C, H, W) -> (N, C', H', W'), whose rows depend on
                their own image alone. All before it are frozen too, and nothing else reads them.
            megabytes: of the memory.
        """
        self._size = megabytes * 2**20
        self._asked: list[bytes] | None = None
        self.forget()
        last.register_forward_hook(self._complete)
        net.register_load_state_dict_post_hook(self.forget)

    def forget(self, *_: Any) -> None:
        """Empties the memory."""
        self._known: dict[bytes, Tensor] = {}
        self.left = self._size

    def __len__(self) -> int:
        return len(self._known)

    def missing(self, images: Tensor) -> Tensor:
        """(N', C, H, W): those of (N, C, H, W) that are new; may be none. When the layers have seen
        them, the output of ``last`` is that of all N."""
        self._asked = [_digest(image) for image in images]
        return images[[key not in self._known for key in self._asked]]

    def everything(self, images: Tensor) -> Tensor:
        """``images``; the output of ``last`` stays as it is."""
        self._asked = None
        return images

    def _complete(self, layer: nn.Module, args: Any, computed: Tensor) -> Tensor | None:
        if self._asked is None:
            return None
        rows = iter(computed.split(1))
        whole = [self._known[k] if k in self._known else next(rows) for k in self._asked]
        for key, row in zip(self._asked, whole):
            size = row.numel() * row.element_size()
            if key not in self._known and size <= self.left:
                self._known[key] = row.detach().clone()
                self.left -= size
        self._asked = None
        return torch.cat(whole)


def _digest(image: Tensor) -> bytes:
    """Of the numbers and the shape of a (C, H, W) image."""
    numbers = image.detach().permute(1, 2, 0).contiguous().cpu().numpy()
    digest = hashlib.blake2b(repr((numbers.shape, numbers.dtype.str)).encode(), digest_size=16)
    digest.update(numbers.data)
    return digest.digest()
