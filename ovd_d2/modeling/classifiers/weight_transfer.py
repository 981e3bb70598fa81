"""The projection of RKD's weight transfer: classes follow from what distillation has learned.

Letters: R regions, F width of the region features, D embedding width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovd_d2.errors import OVDError

SLOPE = 0.1  # of the leaky ReLUs
TRANSFER_STARTS = ("released", "distilled")
TRANSFER_TEACHERS = ("frozen", "generated")


class WeightTransferProjection(nn.Module):
    """Projects region features by weights that are generated from the distilled projection W_D.

    ``W_P = generate(W_D)``, two linear layers with a leaky ReLU (slope 0.1) between them that act
    on each of the D rows of W_D, and ``embedding = W_P x + skip(x)``, another two layers on the
    feature itself (section 3.4 of the paper and the public code). W_D is frozen, its bias takes no
    part in the embedding; both still serve :meth:`distilled`, which the distillation losses see
    ("frozen"). With "generated" (ours) these see the embedding itself, so that what scores classes
    goes on learning from the teacher.

    Loads the state dict of a plain ``nn.Linear`` (the stage before), which becomes W_D; the other
    layers then keep their initial values ("released"), or start from it ("distilled", ours):
    ``W_P`` as the best approximation of W_D of rank D/2 (F/2 if F < D), ``skip`` as W_D's bias, so
    that the embedding begins where the stage before has ended. PyTorch's initial values, which the
    public code has, begin with biases that outweigh W_D: all rows of W_P are then much the same.

    Attributes:
        has_distilled: whether W_D came from a checkpoint; random numbers have nothing to transfer.
    """

    def __init__(
        self,
        in_features: int,
        embed_dim: int,
        skip_hidden: int = 1024,
        start: str = "released",
        teacher: str = "frozen",
    ):
        """
        Args:
            in_features: F.
            embed_dim: D.
            skip_hidden: width of the hidden layer of ``skip``.
            start: one of :data:`TRANSFER_STARTS`, see above.
            teacher: one of :data:`TRANSFER_TEACHERS`, see above.

        Raises:
            OVDError: another ``start`` or ``teacher``.
        """
        super().__init__()
        if start not in TRANSFER_STARTS:
            raise OVDError(
                f'MODEL.OPEN_VOCAB.TRANSFER_START is "{start}"; use "released" or "distilled".'
            )
        if teacher not in TRANSFER_TEACHERS:
            raise OVDError(
                f'MODEL.OPEN_VOCAB.TRANSFER_TEACHER is "{teacher}"; use "frozen" or "generated".'
            )
        self.start = start
        self.teacher = teacher
        self.frozen = nn.Linear(in_features, embed_dim).requires_grad_(False)
        self.generate = _two_layers(in_features, embed_dim, in_features)
        self.skip = _two_layers(in_features, skip_hidden, embed_dim)
        self.has_distilled = False

    def forward(self, x: Tensor) -> Tensor:
        """(R, F) float -> (R, D), not normalised."""
        return F.linear(x, self.generate(self.frozen.weight)) + self.skip(x)

    def distilled(self, x: Tensor) -> Tensor:
        """(R, F) float -> (R, D), not normalised: what the distillation losses see. By W_D and its
        bias, which train only what made x; with "generated" as :meth:`forward`."""
        return self(x) if self.teacher == "generated" else self.frozen(x)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                state_dict[f"{prefix}frozen.{name}"] = state_dict.pop(prefix + name)
        distilled = state_dict.get(f"{prefix}frozen.weight")
        self.has_distilled |= distilled is not None
        super()._load_from_state_dict(state_dict, prefix, *args)
        is_stage_before = distilled is not None and f"{prefix}generate.0.weight" not in state_dict
        if is_stage_before and self.start == "distilled":
            self._start_from_distilled(distilled, state_dict.get(f"{prefix}frozen.bias"))

    @torch.no_grad()
    def _start_from_distilled(self, weight: Tensor, bias: Tensor | None) -> None:
        """Sets ``generate`` and ``skip`` so that the embedding is about ``weight`` x + ``bias``."""
        first, _, second = self.generate
        half = min(first.out_features, second.out_features) // 2
        _, _, basis = torch.linalg.svd(weight.double(), full_matrices=False)
        basis = basis[:half].to(first.weight)  # (D/2, F), orthonormal rows
        for layer in (first, second):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # rho(z) - rho(-z) = (1 + slope) z, whatever the sign of z.
        first.weight[: 2 * half] = torch.cat([basis, -basis])
        second.weight[:, : 2 * half] = torch.cat([basis, -basis]).T / (1 + SLOPE)
        nn.init.zeros_(self.skip[-1].weight)
        self.skip[-1].bias.copy_(torch.zeros(()) if bias is None else bias)


def _two_layers(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, out_features)
    )
