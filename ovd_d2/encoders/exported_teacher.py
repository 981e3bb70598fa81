"""The image side of an exported teacher, and the export itself.

Letters: N images, S side of the input, D embedding width.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.encoders import exported_text as exported_teacher
from ovd_d2.encoders.image_text_model import ImagePreprocessing, ImageTextModel
from ovd_d2.encoders.image_towers import build_image_tower
from ovd_d2.encoders.registry import TextEncoder
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write, check_output
from ovd_d2.files.digests import file_digest

_COUNTER = "num_batches_tracked"  # of batch norms; of no use outside training


def build_exported_teacher(rest: str, device: str = "cpu") -> ImageTextModel:
    """The model of "mini-teacher" (``rest`` "") or "mini-teacher:FILE"; computes in fp32.

    Raises:
        OVDError: missing, changed or damaged file, or a text encoder that does not fit.
    """
    from safetensors.torch import load_file

    encoder = exported_teacher.build(rest, device)
    path = exported_teacher.teacher_file(rest)
    header = exported_teacher.read_header(path)
    try:
        tower = build_image_tower(header["image_tower"])
        state = {key: _widened(value) for key, value in load_file(path).items()}
        counters = {k: v for k, v in tower.state_dict().items() if k.endswith(_COUNTER)}
        tower.load_state_dict(counters | state)
        settings = dict(header["preprocessing"])
        for key in ("mean", "std"):
            settings[key] = tuple(float(value) for value in settings[key])
        preprocessing = ImagePreprocessing(**settings)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise OVDError(
            f"{path} holds no usable image tower ({reason}); export the teacher again."
        ) from error
    tower = tower.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return ImageTextModel(encoder, tower, preprocessing, device, backbone_features=tower.features)


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


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
    """Writes an image tower in fp16 as a file for ``mini-teacher:FILE``, atomically.

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
        "format": exported_teacher.FORMAT,
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
    content = save(tensors, {exported_teacher.HEADER_KEY: json.dumps(header, sort_keys=True)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)  # the facts of an older file
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise OVDError(f"cannot write {path} ({error}); choose another place.") from error
    return file_digest(path)
