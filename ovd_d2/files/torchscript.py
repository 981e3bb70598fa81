"""The tensors of a TorchScript archive, read without running what is in it.

``torch.jit.load`` compiles the code of an archive and may run some of it. Here the code is left
out, and modules are stand-ins that hold their attributes and do nothing.
"""

import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

_STATE = ("data.pkl", "version", "byteorder")
# What archives name: their own classes, and helpers that restore lists of numbers.
_OF_ARCHIVES = ("__torch__.", "torch.jit._pickle.")


class _Inert:
    """In the place of a module or another object of an archive."""

    def __new__(cls, *args: Any) -> "_Inert":
        made = object.__new__(cls)
        made.state = {}
        return made

    def __init__(self, *args: Any) -> None:
        """Whatever it is called with is dropped."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether a file is an archive of ``torch.jit.save``."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Parameters, buffers and other tensors of the module in ``path``, by name, on the CPU.

    Raises:
        ValueError: it names classes that no TorchScript archive needs, or holds no module.
        Exception: whatever zipfile and torch raise on damaged files.
    """
    content = _without_code(path)
    named = get_unsafe_globals_in_checkpoint(content)
    strange = [name for name in named if not name.startswith(_OF_ARCHIVES)]
    if strange:
        raise ValueError(f"it names {strange[0]}, which is not part of TorchScript")
    content.seek(0)
    stand_ins = [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in named]
    with safe_globals(stand_ins):
        module = torch.load(content, map_location="cpu", weights_only=True)
    if not isinstance(module, _Inert):
        raise ValueError(f"it holds a {type(module).__name__}, not a module")
    return dict(_tensors(module, ""))


def _without_code(path: str | os.PathLike) -> io.BytesIO:
    """The archive as ``torch.save`` would have written it."""
    kept = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(kept, "w") as target:
        for name in source.namelist():
            inside = name.partition("/")[2]
            if inside in _STATE or inside.startswith("data/"):
                target.writestr(name, source.read(name))
    kept.seek(0)
    return kept


def _tensors(module: _Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
        elif isinstance(value, _Inert):
            yield from _tensors(value, f"{prefix}{name}.")
