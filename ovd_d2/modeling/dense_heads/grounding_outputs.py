"""What a grounding head says of every anchor.

Letters: N images, P prompts, A anchors, L tokens.
"""

from dataclasses import dataclass

from torch import Tensor

# Logits stay within this distance of 0; an anchor in the padding of a batch has minus this.
LOGIT_LIMIT = 50000.0


@dataclass
class HeadOutputs:
    """Raw outputs, anchors of all levels one after the other, row by row.

    Attributes:
        token_logits: (N, P, A, L) fp32.
        box_deltas: (N, P or 1, A, 4) fp32, to be applied to the anchors.
        centerness: (N, P or 1, A) fp32 logits.
        usable: (N, A) bool, False in the padding of the batch, where the logits are
            -LOGIT_LIMIT and the deltas 0; None: no image has padding.
    """

    token_logits: Tensor
    box_deltas: Tensor
    centerness: Tensor
    usable: Tensor | None = None
