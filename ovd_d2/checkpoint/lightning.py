"""Weights in checkpoints of PyTorch Lightning, without Lightning and without running anything."""

import zipfile
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ovd_d2.errors import OVDError

from .weights_file import read_weights_file, state_dict_in

_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.")


class _Inert:
    """Stands for a class of Lightning's, by whose types old versions name their callbacks."""

    def __init__(self, *args: Any) -> None:
        pass


def read_lightning_state_dict(path: str) -> dict[str, torch.Tensor]:
    """The tensors under "state_dict" (Lightning), else "model", else all.

    Classes of Lightning that the file names become empty stand-ins; any other class is refused.

    Args:
        path: .ckpt, .pth or .safetensors.

    Raises:
        OVDError: a missing or broken file, one that names other classes, or no state dict inside.
    """
    try:
        with safe_globals([(type("Inert", (_Inert,), {}), name) for name in _named_in(path)]):
            content = read_weights_file(path)
    except OSError as error:
        raise OVDError(f"{path} cannot be read ({error.strerror or error}).") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = dict(content["state_dict"])
    return state_dict_in(content, path)


def _named_in(path: str) -> list[str]:
    """Lightning's classes that a file of ``torch.save`` names; nothing is loaded for it."""
    if path.endswith(".safetensors") or not zipfile.is_zipfile(path):
        return []
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # broken: reading says so
        return []
    return [name for name in names if name.startswith(_PACKAGES)]
