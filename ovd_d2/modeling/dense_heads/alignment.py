"""Region-word alignment: the logit of every anchor with every token (GLIP, equation 3).

Letters: A anchors, L tokens, C visual channels, Ct text width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovd_d2.errors import OVDError

from .grounding_outputs import LOGIT_LIMIT


class AlignmentLogits(nn.Module):
    """``x . (W e / 2 + b) / exp(log_scale) + e . text_bias + bias``, e the token's unit vector.

    The visual vector x is not projected, and not normalised unless ``normalize``. Logits are
    limited to +-50000 and computed in fp32 under AMP too.
    """

    def __init__(
        self,
        channels: int,
        text_width: int,
        *,
        positive_prior: float = 0.01,
        initial_scale: float = 1.0,
        normalize: bool = False,
    ) -> None:
        """
        Args:
            channels: C.
            text_width: Ct.
            positive_prior: probability that an untrained head gives to every token.
            initial_scale: first value of 1 / exp(log_scale), the factor on products of region and
                word.
            normalize: x becomes a unit vector first, so that only its direction counts; False: as
                GLIP.

        Raises:
            OVDError: ``initial_scale`` is not above 0.
        """
        if initial_scale <= 0:
            raise OVDError(f"initial_scale is {initial_scale}; it must be above 0.")
        super().__init__()
        self.normalize = normalize
        self.projection = nn.Linear(text_width, channels)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(initial_scale)]))
        self.text_bias = nn.Parameter(torch.zeros(text_width))
        self.bias = nn.Parameter(torch.tensor([-math.log((1 - positive_prior) / positive_prior)]))

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """(..., A, C) and (..., L, Ct) of any norm -> (..., A, L); leading axes broadcast."""
        with torch.autocast(visual.device.type, enabled=False):
            tokens = F.normalize(text.float(), dim=-1)
            words = F.linear(tokens / 2, self.projection.weight, self.projection.bias)
            words = words / self.log_scale.exp()
            bias = tokens @ self.text_bias + self.bias
            visual = visual.float()
            if self.normalize:
                visual = F.normalize(visual, dim=-1)
            logits = (visual @ words.transpose(-1, -2)).add_(bias[..., None, :])
            return F.hardtanh(logits, -LOGIT_LIMIT, LOGIT_LIMIT, inplace=True)
