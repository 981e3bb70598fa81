"""The text side of a model that reads every concept as a sentence of its own.

Letters: M texts, K classes, D embedding width.
"""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.language.concept_prompts import ConceptPrompts
from ovd_d2.layers.gather_rows import gather_rows

_AT_ONCE = 256  # texts, at test time
_PROGRESS_AFTER = 5.0  # seconds


class ConceptText(nn.Module):
    """M texts -> (M, D) of L2 norm 1, fp32."""

    def __init__(self, tower: nn.Module) -> None:
        """
        Args:
            tower: list of texts -> (M, D), not normalised; see ``encoders.text_towers``.
        """
        super().__init__()
        self.tower = tower

    def forward(self, texts: Sequence[str]) -> Tensor:
        """With gradient where the tower trains."""
        return F.normalize(self.tower(list(texts)).float(), dim=1)

    def of_all_processes(self, texts: Sequence[str]) -> Tensor:
        """(M, D) of the same M texts in every process, each encoded by one of them.

        Backward gives the process that has encoded a text the sum of its gradients in all
        processes, see :func:`gather_rows`.
        """
        world, rank = comm.get_world_size(), comm.get_rank()
        if world == 1 or not texts:
            return self(texts)
        mine = list(texts[rank::world])
        length = -(-len(texts) // world)
        rows = gather_rows(self(mine + [texts[0]] * (length - len(mine))))
        places = torch.arange(len(texts), device=rows.device)
        return rows[places % world * length + places // world]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """(M, D) without gradient and dropout, a few hundred texts at a time."""
        was_training = self.training
        self.eval()
        try:
            starts = tqdm(
                range(0, len(texts), _AT_ONCE), desc="encoding class names", unit="batch",
                delay=_PROGRESS_AFTER,
            )  # fmt: skip
            parts = [self(texts[start : start + _AT_ONCE]) for start in starts]
        finally:
            self.train(was_training)
        return torch.cat(parts) if parts else self(["a"])[:0]


class OwnTextTower:
    """The class embedder of a model that has a text tower of its own, with its present weights."""

    def __init__(self, text: ConceptText, prompts: ConceptPrompts) -> None:
        """
        Args:
            text: the tower; it stays a part of the model.
            prompts: what it reads of a class.
        """
        self._text = text
        self._prompts = prompts

    @property
    def encoder_id(self) -> str:
        """By the weights as they are now, and the encoder of a locked tower."""
        locked = getattr(self._text.tower, "encoder", None)  # no part of the state dict
        digest = hashlib.sha256(b"" if locked is None else locked.encoder_id.encode())
        for key, value in self._text.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return f"own-text-tower@{digest.hexdigest()[:12]}"

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """See :class:`~ovd_d2.language.ClassEmbedder`."""
        rows = self._text.encode(self._prompts.for_vocabulary(vocabulary))
        return TextEmbeddings(rows, vocabulary.names, self.encoder_id)
