"""The text side of an exported image-text teacher, and the file that holds its image side.

``mini-teacher`` is the teacher that the package ships, ``mini-teacher:FILE.safetensors`` one made
by ``ovd clip export``. The file holds an image tower that was trained into the space of a locked
text encoder (Zhai et al. 2022, "LiT"), so the text side *is* that encoder: same vectors, but an id
that names the file, because region embeddings of another teacher do not fit.

The file's header says (key "teacher", json) ``format`` 1, ``image_tower`` (its settings),
``preprocessing``, ``text_encoder`` (spec), ``text_encoder_id`` and ``logit_scale``. Beside it may
lie FILE.json with facts, whose ``sha256`` must then be the file's.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest

SCHEME = "mini-teacher"
HEADER_KEY = "teacher"
FORMAT = 1
_PACKAGED = Path(__file__).resolve().parent / "weights" / "mini_teacher.safetensors"
_ENTRIES = {
    "format", "image_tower", "preprocessing", "text_encoder", "text_encoder_id", "logit_scale",
}  # fmt: skip


def teacher_file(rest: str) -> Path:
    """The weights file of "mini-teacher" (``rest`` "") or "mini-teacher:FILE", checked.

    Raises:
        OVDError: no such file, or it is not the file that the facts beside it describe.
    """
    path = Path(rest).expanduser() if rest else _PACKAGED
    if not path.is_file():
        remedy = "name a file written by ovd clip export" if rest else "install ovd_d2 again"
        raise OVDError(f"the teacher's weights {path} do not exist; {remedy}.")
    facts = path.with_suffix(".json")
    if facts.is_file():
        try:
            expected = json.loads(facts.read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OVDError(f"{facts} is damaged ({error}); export the teacher again.") from error
        if expected != file_digest(path):
            raise OVDError(
                f"{path} is not the file that {facts.name} describes (other sha256): it was "
                "changed or is incomplete; copy or export both again."
            )
    elif not rest:
        raise OVDError(f"{facts} is missing; install ovd_d2 again.")
    return path


def read_header(path: Path) -> dict[str, Any]:
    """What the file says about itself; see the top of this module.

    Raises:
        OVDError: no safetensors file, or not one of a teacher.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER_KEY])
        if header["format"] != FORMAT or not header.keys() >= _ENTRIES:
            raise ValueError(f"format {header['format']}, entries {sorted(header)}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise OVDError(
            f"{path} holds no teacher ({type(error).__name__}: {error}); give a file written by "
            "ovd clip export."
        ) from error
    return header


def encoder_id(rest: str) -> str:
    """ "mini-teacher@" and 12 digits of the sha256 of the weights file; loads no model.

    Raises:
        OVDError: see :func:`teacher_file`.
    """
    return f"{SCHEME}@{file_digest(teacher_file(rest))[:12]}"


class TeacherTextEncoder:
    """A locked text encoder under the id of the teacher that lives in its space."""

    def __init__(self, encoder: Any, identity: str) -> None:
        """
        Args:
            encoder: a ``TextEncoder``.
            identity: the teacher's ``encoder_id``.
        """
        self.encoder_id = identity
        self.dim = encoder.dim
        self._encoder = encoder

    def encode(self, texts: list[str]) -> Tensor:
        """Embeds L sentences: (L, D) fp32 on the CPU, rows of L2 norm 1."""
        return self._encoder.encode(texts)


def build(rest: str, device: str = "cpu") -> TeacherTextEncoder:
    """The text side of "mini-teacher" (``rest`` "") or "mini-teacher:FILE".

    Raises:
        OVDError: no teacher file, or this machine's text encoder is not the one it was trained
            with.
    """
    from ovd_d2.encoders.registry import build_text_encoder

    path = teacher_file(rest)
    header = read_header(path)
    encoder = build_text_encoder(header["text_encoder"], device)
    if encoder.encoder_id != header["text_encoder_id"]:
        raise OVDError(
            f"{path} was trained in the space of {header['text_encoder_id']}, but "
            f"{header['text_encoder']} is {encoder.encoder_id} here; install that version."
        )
    return TeacherTextEncoder(encoder, encoder_id(rest))
