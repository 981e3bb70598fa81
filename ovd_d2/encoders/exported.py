"""Exported teachers: an image tower in the space of a locked text encoder, in one file.

``mini-teacher`` is the teacher that the package ships, ``exported:FILE.safetensors`` one made by
``ovd clip export``. The file holds an image tower that was trained into the space of a locked text
encoder (Zhai et al. 2022, "LiT"), so the text side *is* that encoder: same vectors, but an id that
names the file, because region embeddings of another teacher do not fit.

The file's header says (key "teacher", json) ``format`` 1, ``image_tower`` (its settings),
``preprocessing``, ``text_encoder`` (spec), ``text_encoder_id`` and ``logit_scale``. Beside it may
lie FILE.json with facts, whose ``sha256`` must then be the file's.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.encoders.image_text_model import ImagePreprocessing, ImageTextModel
from ovd_d2.encoders.image_towers import build_image_tower
from ovd_d2.encoders.registry import EncoderScheme, build_text_encoder
from ovd_d2.encoders.text_encoder import TextEncoder
from ovd_d2.errors import OVDError, reason
from ovd_d2.files.atomic import atomic_write, check_output
from ovd_d2.files.digests import file_digest

_ID = "mini-teacher"  # in the id of every teacher: the file's digest tells them apart
_HEADER_KEY = "teacher"
_FORMAT = 1
_PACKAGED = Path(__file__).resolve().parent / "weights" / "mini_teacher.safetensors"
_ENTRIES = {
    "format", "image_tower", "preprocessing", "text_encoder", "text_encoder_id", "logit_scale",
}  # fmt: skip
_COUNTER = "num_batches_tracked"  # of batch norms; of no use outside training
_TIMM = "backbone."  # before the names of a timm network's tensors, see TimmImageTower


def teacher_file(rest: str) -> Path:
    """The weights file of "mini-teacher" (``rest`` "") or "exported:FILE", checked.

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
            header = json.loads((file.metadata() or {})[_HEADER_KEY])
        if header["format"] != _FORMAT or not header.keys() >= _ENTRIES:
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
    return f"{_ID}@{file_digest(teacher_file(rest))[:12]}"


class TeacherTextEncoder:
    """A locked text encoder under the id of the teacher that lives in its space.

    Args:
        encoder: the locked one.
        encoder_id: the teacher's.
    """

    def __init__(self, encoder: TextEncoder, encoder_id: str) -> None:
        self.encoder_id = encoder_id
        self.dim = encoder.dim
        self.encode = encoder.encode


def _build_text(rest: str, device: str) -> TeacherTextEncoder:
    path = teacher_file(rest)
    header = read_header(path)
    encoder = build_text_encoder(header["text_encoder"], device)
    if encoder.encoder_id != header["text_encoder_id"]:
        raise OVDError(
            f"{path} was trained in the space of {header['text_encoder_id']}, but "
            f"{header['text_encoder']} is {encoder.encoder_id} here; install that version."
        )
    return TeacherTextEncoder(encoder, encoder_id(rest))


def _build_image_text(rest: str, device: str) -> ImageTextModel:
    """Both sides; computes in fp32."""
    encoder = _build_text(rest, device)
    path = teacher_file(rest)
    header = read_header(path)
    tower = _tower(path, header)
    try:
        settings = dict(header["preprocessing"])
        for key in ("mean", "std"):
            settings[key] = tuple(float(value) for value in settings[key])
        preprocessing = ImagePreprocessing(**settings)
        logit_scale = float(header["logit_scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(path, error) from error
    tower = tower.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return ImageTextModel(
        encoder, tower, preprocessing, device, tower.features, logit_scale=logit_scale
    )


def teacher_tower(spec: str) -> nn.Module:
    """The image tower of "mini-teacher" or "exported:FILE", fp32, with its weights.

    Raises:
        OVDError: no such teacher.
    """
    path = teacher_file(spec.partition(":")[2])
    return _tower(path, read_header(path))


def _tower(path: Path, header: dict[str, Any]) -> nn.Module:
    from safetensors.torch import load_file

    try:
        tower = build_image_tower(header["image_tower"])
        state = {key: _widened(value) for key, value in load_file(path).items()}
        counters = {k: v for k, v in tower.state_dict().items() if k.endswith(_COUNTER)}
        tower.load_state_dict(counters | state)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, error) from error
    return tower


def _unusable(path: Path, error: Exception) -> OVDError:
    return OVDError(
        f"{path} holds no usable image tower ({reason(error)}); export the teacher again."
    )


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def teacher_timm_weights(spec: str, name: str, key: str) -> tuple[Path, dict[str, Tensor]]:
    """The weights of the timm network inside a teacher's image tower, fp32, under timm's names.

    Args:
        spec: "mini-teacher" or "exported:FILE".
        name: the timm model that is to have them.
        key: config key that named ``spec``, for messages.

    Returns:
        the file, and tensor by name; counters of batch norms are not among them.

    Raises:
        OVDError: no such teacher, or its tower is not of that timm model.
    """
    from safetensors.torch import load_file

    path = teacher_file(spec.partition(":")[2])
    tower = read_header(path)["image_tower"]
    if tower.get("kind") != "timm" or tower.get("name") != name:
        raise OVDError(
            f"{key} is {spec}, whose image tower is {tower.get('name', tower.get('kind'))}, not "
            f"{name}: set MODEL.TIMM.NAME to it if timm has it, or take other weights."
        )
    return path, {
        key.removeprefix(_TIMM): _widened(value)
        for key, value in load_file(path).items()
        if key.startswith(_TIMM)
    }


def check_teacher_output(path: Path, inputs: Sequence[str | os.PathLike] = ()) -> None:
    """Looks whether a teacher may be written to ``path`` and its facts beside it.

    Args:
        path: the .safetensors file.
        inputs: files that are read.

    Raises:
        OVDError: another suffix, something that cannot be written, or a json beside it that is of
            something else.
    """
    if path.suffix != ".safetensors":
        raise OVDError(f"--out is {path}; a teacher is written as .safetensors.")
    facts = path.with_suffix(".json")
    for file in (path, facts):
        check_output("--out", file, inputs)
    if path.is_file() or not facts.is_file():
        return  # the json, however damaged, is that of the teacher to be replaced
    try:
        known = "sha256" in json.loads(facts.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        known = False
    if not known:
        raise OVDError(
            f"Cannot write {facts}, the facts of --out: it holds something else, name another file."
        )


def export_teacher(
    path: str | os.PathLike,
    *,
    image_tower: nn.Module,
    settings: dict[str, Any],
    preprocessing: ImagePreprocessing,
    text_encoder: TextEncoder,
    text_encoder_spec: str,
    logit_scale: float,
) -> str:
    """Writes an image tower in fp16 as a file for ``exported:FILE``, atomically.

    Args:
        path: a name that ends in .safetensors.
        image_tower: the trained tower, of width ``text_encoder.dim``.
        settings: what ``build_image_tower`` needs to make it again.
        preprocessing: of its input.
        text_encoder: the locked encoder it was trained with.
        text_encoder_spec: its spec.
        logit_scale: learned factor on the cosine (exp applied), for the record.

    Returns:
        The sha256 of the file.

    Raises:
        OVDError: another suffix, or the file cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    check_teacher_output(path)
    header = {
        "format": _FORMAT,
        "image_tower": settings,
        "preprocessing": asdict(preprocessing),
        "text_encoder": text_encoder_spec,
        "text_encoder_id": text_encoder.encoder_id,
        "logit_scale": logit_scale,
    }
    tensors = {
        key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in image_tower.state_dict().items()
        if not key.endswith(_COUNTER)
    }
    content = save(tensors, {_HEADER_KEY: json.dumps(header, sort_keys=True)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)  # the facts of an older file
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise OVDError(f"cannot write {path} ({error}); choose another place.") from error
    return file_digest(path)


SCHEME = EncoderScheme(encoder_id, _build_text, _build_image_text, rest="FILE")
PACKAGED = replace(SCHEME, rest=None, instead="exported")
