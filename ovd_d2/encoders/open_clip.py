"""open_clip's models (package open_clip_torch): loading, and both sides.

Letters: L sentences, D embedding width.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.encoders.image_text_model import ImagePreprocessing, ImageTextModel, logit_facts
from ovd_d2.encoders.registry import EncoderScheme
from ovd_d2.encoders.text_encoder import BatchedTextEncoder
from ovd_d2.errors import OVDError, reason


class OpenClipTextEncoder(BatchedTextEncoder):
    """The text tower of an open_clip model, as a ``TextEncoder``.

    Args:
        model: of open_clip, in eval mode.
        tokenizer: sentences -> (L, tokens) int64, padded and cut to the model's context length.
        encoder_id: its id.
        device: of ``model``.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, encoder_id: str, device: str) -> None:
        self.model = model
        self.encoder_id = encoder_id
        self._tokenizer = tokenizer
        self._device = device
        with torch.no_grad():
            self.max_tokens, self.dim = tokenizer(["a"]).shape[1], self.features(["a"]).shape[1]

    def cut_at(self, tokens: int) -> None:
        """Its tokenizer fills every text up to one length, so it cannot be cut.

        Raises:
            OVDError: ``tokens`` is less than that length.
        """
        if tokens < self.max_tokens:
            raise OVDError(
                f"texts of {self.encoder_id} have {self.max_tokens} tokens, they cannot be cut at "
                f"{tokens}: raise the limit (MODEL.DETCLIP.MAX_TOKENS), or take another encoder."
            )

    def token_counts(self, texts: list[str]) -> Tensor:
        """(L,) int64, the length all are padded to: the tokenizer does not tell what it cut."""
        return torch.full((len(texts),), self.max_tokens)

    def features(self, texts: list[str]) -> Tensor:
        """See ``BatchedTextEncoder``."""
        return self.model.encode_text(self._tokenizer(texts).to(self._device)).float()


def _identify(rest: str) -> str:
    file = Path(rest.partition(":")[2])
    return _loaded_id(rest, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache
def _loaded_id(rest: str, mtime_ns: int) -> str:
    """The id; mtime_ns only makes the memory forget a file that changed."""
    return _build_text(rest).encoder_id


def _build_text(rest: str, device: str = "cpu") -> OpenClipTextEncoder:
    """Loads "MODEL:TAG_OR_FILE" in fp32, in eval mode, without gradients."""
    name, _, pretrained = rest.partition(":")
    if not pretrained:
        raise OVDError(
            f"encoder 'open_clip:{rest}' lacks its weights; write open_clip:MODEL:TAG_OR_FILE"
        )
    try:
        import open_clip
    except ImportError as error:
        raise OVDError(
            f"open_clip cannot be imported ({error}); run: pip install 'open_clip_torch>=3'"
        ) from error
    try:
        model = open_clip.create_model(
            name, pretrained, precision="fp32", weights_only=True, require_pretrained=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # unknown names, no network, damaged files: each its own
        raise OVDError(
            f"open_clip cannot load model '{name}' with weights '{pretrained}' ({reason(error)}); "
            "fetch the weights file where there is a network: open_clip:MODEL:/path/to/file"
        ) from error
    model = model.eval().requires_grad_(False).to(device)
    identity = f"open_clip:{name}@{_weights_digest(model)[:12]}"
    return OpenClipTextEncoder(model, tokenizer, identity, device)


def _build_image_text(rest: str, device: str) -> ImageTextModel:
    encoder = _build_text(rest, device)
    settings = encoder.model.visual.preprocess_cfg
    sides = settings["size"] if isinstance(settings["size"], (tuple, list)) else [settings["size"]]
    if len(set(sides)) > 1 or settings["resize_mode"] not in ("shortest", "squash"):
        raise OVDError(f"open_clip model '{rest}' prepares images as {settings}; not supported")
    preprocessing = ImagePreprocessing(
        image_size=int(sides[0]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        resize="crop" if settings["resize_mode"] == "shortest" else "squash",
        interpolation=settings["interpolation"],
    )
    model = encoder.model
    return ImageTextModel(encoder, model.encode_image, preprocessing, device, **logit_facts(model))


def _weights_digest(model: nn.Module) -> str:
    """Sha256 over names, shapes and values: open_clip does not tell which file a tag became."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}\0{tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


SCHEME = EncoderScheme(_identify, _build_text, _build_image_text, rest="MODEL:TAG_OR_FILE")
