"""Region features against class embeddings.

Letters: R regions over the batch, K classes, D embedding width.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovd_d2.errors import OVDError

from .projections import linear_projection

logger = logging.getLogger(__name__)

_ENCODER_ID_BYTES = 160


def _to_bytes(text: str) -> Tensor:
    raw = text.encode()[:_ENCODER_ID_BYTES]
    return torch.tensor(list(raw) + [0] * (_ENCODER_ID_BYTES - len(raw)), dtype=torch.uint8)


def _from_bytes(buffer: Tensor) -> str:
    return bytes(buffer.cpu().tolist()).rstrip(b"\0").decode(errors="replace")


def encoders_differ(first: str, second: str) -> bool:
    """Whether two encoder ids name different encoders. Ids of bare files ("file:...") and empty
    ones tell nothing about the encoder and match everything."""
    known = [i for i in (first, second) if i and not i.startswith("file:")]
    return len(known) == 2 and known[0] != known[1]


class EmbeddingClassifier(nn.Module):
    """Projects a region feature to the text space and compares it with the class embeddings.

    ``logits = logit_scale * normalise(projection(x)) . [class embeddings, background] (+ bias)``

    With ``background="learned"`` and softmax this is ViLD's classifier (section 3.2; the learned
    background vector is normalised before use, initial std 0.01, no bias). With
    ``background="zero"`` and sigmoid it is that of RKD and Detic; RKD on LVIS has
    ``bias_init=-4.6``, the others no bias.

    The class embeddings are no part of the state dict: a checkpoint can not replace the configured
    vocabulary, and one checkpoint serves any number of classes. What the state dict holds is the
    id of the text encoder; loading it into a model with another encoder is refused.

    ``torch.jit.script`` takes it; the classes then are those of that moment.
    """

    __jit_unused_properties__ = ("encoder_id",)

    def __init__(
        self,
        in_features: int,
        embed_dim: int,
        *,
        logit_scale: float = 100.0,
        background: str = "learned",
        bias_init: float | None = None,
        projection: nn.Module | None = None,
    ):
        """
        Args:
            in_features: width of the region features.
            embed_dim: D.
            logit_scale: factor on the cosine; no exp applied.
            background: "learned" or "zero" (logit 0 + bias).
            bias_init: initial value of one learned scalar added to all K + 1 logits; None: no bias.
            projection: (R, in_features) -> (R, D); None: one Linear (ViLD). One that has a method
                ``distilled`` shows another embedding to the distillation losses.
        """
        super().__init__()
        if background not in ("learned", "zero"):
            raise OVDError(
                f'MODEL.OPEN_VOCAB.BACKGROUND is "{background}"; use "learned" or "zero".'
            )
        self.projection = projection or linear_projection(in_features, embed_dim)
        self.in_features = in_features
        self.embed_dim = embed_dim
        self.logit_scale = logit_scale
        self.background = None
        if background == "learned":
            self.background = nn.Parameter(torch.randn(embed_dim) * 0.01)
        self.bias = None if bias_init is None else nn.Parameter(torch.tensor([float(bias_init)]))
        self.register_buffer("class_embeddings", torch.zeros(0, embed_dim), persistent=False)
        self.register_buffer("encoder_id_bytes", _to_bytes(""))

    @property
    def encoder_id(self) -> str:
        """Id of the encoder that made the class embeddings; "" before any were set."""
        return _from_bytes(self.encoder_id_bytes)

    def set_class_embeddings(self, embeddings: Tensor, encoder_id: str = "") -> None:
        """Swaps the class space.

        Args:
            embeddings: (K, D) float, any norm; normalised here.
            encoder_id: which text encoder made them.

        Raises:
            OVDError: wrong width, not finite, or another encoder than the present one.
        """
        if embeddings.dim() != 2 or embeddings.shape[1] != self.embed_dim:
            raise OVDError(
                f"The class embeddings have shape {tuple(embeddings.shape)}, the classifier "
                f"expects (K, {self.embed_dim}): use the text encoder the model was built with "
                "(MODEL.OPEN_VOCAB.TEXT_ENCODER) or change MODEL.OPEN_VOCAB.EMBED_DIM."
            )
        # A finite sum tells without another table of this size.
        if not (embeddings.sum().isfinite() or embeddings.isfinite().all()):
            raise OVDError("The class embeddings hold nan or inf: compute or download them again.")
        if encoders_differ(self.encoder_id, encoder_id):
            raise OVDError(
                f'The class embeddings come from text encoder "{encoder_id}", the classifier '
                f'was made for "{self.encoder_id}": set MODEL.OPEN_VOCAB.TEXT_ENCODER to match.'
            )
        device = self.class_embeddings.device
        self.class_embeddings = F.normalize(embeddings.to(device, torch.float32), dim=1)
        known = encoder_id and not encoder_id.startswith("file:")
        if known or not self.encoder_id:
            self.encoder_id_bytes = _to_bytes(encoder_id).to(device)

    def embed(self, x: Tensor) -> Tensor:
        """(R, in_features) region features -> (R, D) L2-normalised fp32 region embeddings."""
        return F.normalize(self.projection(x).float(), dim=1)

    def embed_for_teacher(self, x: Tensor) -> Tensor:
        """As :meth:`embed`, by the projection that learns from a teacher (the same one, but for
        RKD's weight transfer)."""
        distilled = getattr(self.projection, "distilled", self.projection)
        return F.normalize(distilled(x).float(), dim=1)

    def logits(self, embeddings: Tensor) -> Tensor:
        """(R, D) L2-normalised region embeddings -> (R, K + 1) fp32 logits, background last.

        Computed in fp32 under AMP too: a cosine rounded to half precision and multiplied by 100
        is off by up to 0.05.
        """
        if torch.jit.is_scripting():  # where autocast takes a constant device only
            return self._logits(embeddings)
        else:
            with torch.autocast(embeddings.device.type, enabled=False):
                return self._logits(embeddings)

    def _logits(self, embeddings: Tensor) -> Tensor:
        classes = F.linear(embeddings, self.class_embeddings)
        logits = self.logit_scale * torch.cat([classes, self._background(embeddings)], dim=1)
        return logits if self.bias is None else logits + self.bias

    def background_logits(self, embeddings: Tensor) -> Tensor:
        """The last column of :meth:`logits`, (R, 1)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            logits = self.logit_scale * self._background(embeddings)
            return logits if self.bias is None else logits + self.bias

    def _background(self, embeddings: Tensor) -> Tensor:
        if self.background is None:
            return embeddings.new_zeros(len(embeddings), 1)
        unit = F.normalize(self.background.float(), dim=0)
        return F.linear(embeddings, unit[None])

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_features) float -> (R, K + 1) fp32 logits, logit scale applied."""
        return self.logits(self.embed(x))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """A checkpoint without an encoder id (a foreign one) loads; one with another is refused.
        One of a classifier without bias is that of one whose bias is 0."""
        key = prefix + "encoder_id_bytes"
        stored = _from_bytes(state_dict[key]) if key in state_dict else ""
        if encoders_differ(self.encoder_id, stored):
            raise OVDError(
                f'The checkpoint was trained with text encoder "{stored}", the model is '
                f'configured with "{self.encoder_id}": set MODEL.OPEN_VOCAB.TEXT_ENCODER to '
                "the checkpoint's encoder."
            )
        if not stored or stored.startswith("file:"):
            state_dict[key] = self.encoder_id_bytes.clone()
        has_classifier = any(name.startswith(prefix + "projection.") for name in state_dict)
        if self.bias is not None and has_classifier and prefix + "bias" not in state_dict:
            logger.warning(
                "The checkpoint's classifier has no bias, so %sbias becomes 0, not %g: "
                "MODEL.OPEN_VOCAB.USE_BIAS False is what it was trained with.",
                prefix, self.bias.item(),
            )  # fmt: skip
            state_dict[prefix + "bias"] = torch.zeros_like(self.bias)
        super()._load_from_state_dict(state_dict, prefix, *args)
