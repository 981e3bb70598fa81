"""The projection of RKD's weight transfer: classes follow from what distillation has learned.

Letters: R regions, F width of the region features, D embedding width.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1  # of the leaky ReLUs


class WeightTransferProjection(nn.Module):
    """Projects region features by weights that are generated from the distilled projection W_D.

    ``W_P = generate(W_D)``, two linear layers with a leaky ReLU (slope 0.1) between them that act
    on each of the D rows of W_D, and ``embedding = W_P x + skip(x)``, another two layers on the
    feature itself (section 3.4 of the paper and the public code). W_D is frozen, its bias takes no
    part in the embedding; both still serve :meth:`distilled`, which the distillation losses see.

    Loads the state dict of a plain ``nn.Linear`` (the stage before), which becomes W_D; the other
    layers then keep their initial values.

    Attributes:
        has_distilled: whether W_D came from a checkpoint; random numbers have nothing to transfer.
    """

    def __init__(self, in_features: int, embed_dim: int, skip_hidden: int = 1024):
        """
        Args:
            in_features: F.
            embed_dim: D.
            skip_hidden: width of the hidden layer of ``skip``.
        """
        super().__init__()
        self.frozen = nn.Linear(in_features, embed_dim).requires_grad_(False)
        self.generate = _two_layers(in_features, embed_dim, in_features)
        self.skip = _two_layers(in_features, skip_hidden, embed_dim)
        self.has_distilled = False

    def forward(self, x: Tensor) -> Tensor:
        """(R, F) float -> (R, D), not normalised."""
        return F.linear(x, self.generate(self.frozen.weight)) + self.skip(x)

    def distilled(self, x: Tensor) -> Tensor:
        """(R, F) float -> (R, D) by W_D and its bias, not normalised; trains only what made x."""
        return self.frozen(x)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                state_dict[f"{prefix}frozen.{name}"] = state_dict.pop(prefix + name)
        self.has_distilled |= f"{prefix}frozen.weight" in state_dict
        super()._load_from_state_dict(state_dict, prefix, *args)


def _two_layers(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, out_features)
    )
