"""Text towers of a CLIP model: CLIP's transformer, trained; any text encoder, locked or trained.

Letters: N captions, T tokens, D embedding width.

Every tower maps N captions (a list of str) to (N, D) features, not normalised; ``dim`` is D.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovd_d2.encoders.huggingface import HuggingFaceTextEncoder
from ovd_d2.encoders.openai_clip import OpenAIClipTextEncoder, import_clip
from ovd_d2.encoders.registry import build_text_encoder
from ovd_d2.encoders.text_encoder import BatchedTextEncoder, TextEncoder
from ovd_d2.errors import OVDError

_CACHED_CAPTIONS = 200_000


class OpenAITextTower(nn.Module):
    """CLIP's text transformer with CLIP's tokenizer and initialisation; trained.

    Its parameters have the names of OpenAI's state dict. Over-long captions are cut.
    """

    def __init__(
        self,
        *,
        dim: int | None,
        width: int = 512,
        heads: int = 8,
        layers: int = 12,
        context: int = 77,
        checkpoint: bool = False,
    ) -> None:
        """
        Args:
            dim: D; None: ``width``, without a projection.
            width: of the transformer, a multiple of ``heads``.
            heads: of attention.
            layers: blocks.
            context: most tokens of a caption, with start and end.
            checkpoint: activations inside blocks are computed again in the backward pass.
        """
        super().__init__()
        if width % heads:
            raise OVDError(f"width is {width}; it must be a multiple of heads, {heads}.")
        clip = import_clip()
        # The whole model with the smallest image tower: its initialisation is CLIP's.
        whole = clip.model.CLIP(
            embed_dim=dim or width, image_resolution=2, vision_layers=1, vision_width=64,
            vision_patch_size=1, context_length=context,
            vocab_size=len(clip.clip._tokenizer.encoder), transformer_width=width,
            transformer_heads=heads, transformer_layers=layers,
        )  # fmt: skip
        self.dim = dim or width
        self.context_length = context
        self.transformer = whole.transformer
        self.token_embedding = whole.token_embedding
        self.positional_embedding = whole.positional_embedding
        self.ln_final = whole.ln_final
        self.text_projection = None if dim is None else whole.text_projection
        self.build_attention_mask = whole.build_attention_mask
        self._encoder = OpenAIClipTextEncoder(self, encoder_id="", checkpoint=checkpoint)

    def forward(self, captions: Sequence[str]) -> Tensor:
        return self._encoder.features(list(captions))


class LockedTextTower(nn.Module):
    """A pretrained text encoder that is not trained (Zhai et al. 2022, "LiT"), with a memory.

    The encoder is no part of the state dict. With ``dim`` equal to its width there is no
    projection: the embeddings are the encoder's own, and class embeddings made by it fit.
    """

    def __init__(self, encoder: TextEncoder, dim: int | None) -> None:
        """
        Args:
            encoder: sentences -> unit vectors.
            dim: D; a linear projection without bias is trained where the encoder has another width.
                None: the encoder's.
        """
        super().__init__()
        self.encoder = encoder
        self.dim = dim or encoder.dim
        same = self.dim == encoder.dim
        self.projection = None if same else nn.Linear(encoder.dim, self.dim, bias=False)
        self.register_buffer("_device_of", torch.zeros(0), persistent=False)
        self._memory: dict[str, Tensor] = {}

    def forward(self, captions: Sequence[str]) -> Tensor:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._memory]
        if len(self._memory) + len(new) > _CACHED_CAPTIONS:
            self._memory.clear()
            new = list(dict.fromkeys(captions))
        if new:
            self._memory.update(zip(new, self.encoder.encode(new)))
        rows = [self._memory[caption] for caption in captions]
        features = torch.stack(rows) if rows else torch.zeros(0, self.encoder.dim)
        features = features.to(self._device_of.device)
        return features if self.projection is None else self.projection(features)


class HuggingFaceTextTower(nn.Module):
    """A transformers text encoder that is trained, and a linear projection without bias.

    What the features of a text do not depend on is left out (CLIP's image tower and temperature, a
    pooler): it would wait for a gradient that never comes.
    """

    def __init__(self, encoder: HuggingFaceTextEncoder, dim: int | None) -> None:
        """
        Args:
            encoder: a loaded one; the text side of its model becomes part of this module.
            dim: D; None: the encoder's, without a projection.
        """
        super().__init__()
        self.model = encoder.model.requires_grad_(True)
        self._encoder = encoder
        self._leave_out_what_is_not_used()
        self.dim = dim or encoder.dim
        self.projection = nn.Linear(encoder.dim, dim, bias=False) if dim else nn.Identity()

    def forward(self, captions: Sequence[str]) -> Tensor:
        return self.projection(self._encoder.features(list(captions)))

    def _leave_out_what_is_not_used(self) -> None:
        """Removes parts without a gradient, and freezes what is left of them inside used parts."""
        with torch.enable_grad():
            self._encoder.features(["a"]).sum().backward()
        for name, part in list(self.model.named_children()):
            grads = [parameter.grad for parameter in part.parameters()]
            if grads and all(grad is None for grad in grads):
                setattr(self.model, name, None)
        for name, parameter in list(self.model.named_parameters(recurse=False)):
            if parameter.grad is None:
                setattr(self.model, name, None)
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.grad is not None)
        self.model.zero_grad(set_to_none=True)


def build_text_tower(
    spec: str,
    dim: int | None,
    *,
    width: int,
    heads: int,
    layers: int,
    context: int,
    cut: bool = False,
    checkpoint: bool = False,
    key: str = "MODEL.CLIP",
) -> nn.Module:
    """The tower that a model's TEXT_TOWER asks for.

    Args:
        spec: "transformer", "locked:ENCODER" (as ``build_text_encoder``) or
            "trained:hf:NAME_OR_FOLDER" or "trained:minilm".
        dim: D; None: that of the transformer or encoder, without a projection.
        width: of "transformer", as the rest.
        heads: see :class:`OpenAITextTower`.
        layers: see there.
        context: see there.
        cut: encoders read at most ``context`` tokens too; False: as many as they were made for.
        checkpoint: activations inside the blocks of "transformer" are computed again in the
            backward pass; a locked tower has none to keep.
        key: config group that TEXT_TOWER belongs to, for messages.

    Raises:
        OVDError: unknown tower or encoder, one that cannot be cut, or ``checkpoint`` for
            "trained:...".
    """
    if spec == "transformer":
        if width % heads:
            raise OVDError(f"{key}.TEXT.WIDTH {width} must be a multiple of HEADS {heads}.")
        return OpenAITextTower(
            dim=dim, width=width, heads=heads, layers=layers, context=context, checkpoint=checkpoint
        )
    kind, _, encoder_spec = spec.partition(":")
    if kind not in ("locked", "trained") or not encoder_spec:
        raise OVDError(
            f"{key}.TEXT_TOWER is {spec!r}; it must be transformer, locked:ENCODER or "
            "trained:ENCODER, for example locked:minilm."
        )
    if checkpoint and kind == "trained":
        raise OVDError(
            f"{key}.CHECKPOINT is for {key}.TEXT_TOWER transformer, not for {spec}: set it False."
        )
    encoder = build_text_encoder(encoder_spec)
    if cut:
        if not isinstance(encoder, BatchedTextEncoder):
            raise OVDError(
                f"{key}.TEXT_TOWER {spec}: this encoder's texts cannot be cut: take minilm, hf:... "
                "or openai-clip:..."
            )
        encoder.cut_at(context)
    if kind == "locked":
        return LockedTextTower(encoder, dim)
    if not isinstance(encoder, HuggingFaceTextEncoder):
        raise OVDError(
            f"{key}.TEXT_TOWER {spec}: only encoders read by transformers can be trained "
            "(trained:hf:NAME_OR_FOLDER, trained:minilm); use transformer or locked:ENCODER."
        )
    return HuggingFaceTextTower(encoder, dim)
