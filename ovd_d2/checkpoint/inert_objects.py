"""Checkpoints that hold objects of other packages beside their tensors, opened without running
anything of them.

``torch.load(weights_only=True)`` refuses such a file. Here classes that the caller expects in it
are replaced by a stand-in that keeps what it is given and does nothing else; their package need not
be there.
"""

import zipfile
from collections.abc import Sequence
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ovd_d2.errors import OVDError

from .weights_file import check_trusted, read_weights_file

# What an OmegaConf configuration and measured numbers beside it name.
CLASSES_OF_SETTINGS = (
    *("omegaconf.", "numpy.", "typing.Any", "collections.defaultdict"),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
)


class Inert:
    """In the place of an object of such a class.

    Attributes:
        state: what the object would have been restored from; None for nothing.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        made = object.__new__(cls)
        made.state = None
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Whatever it is called with is dropped."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items are dropped, of dicts; and of lists, below."""

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


def read_with_inert_objects(path: str, of: Sequence[str]) -> Any:
    """What a file of ``torch.save`` or a ``.safetensors`` file holds, tensors on the CPU; objects
    of the classes ``of`` come as :class:`Inert`.

    Args:
        path: of the file.
        of: names of classes ("typing.Any") and of packages ("omegaconf."). A file that names any
            other class is refused.

    Raises:
        OVDError: a pickle (.pkl), a missing or damaged file, or one that names other classes.
    """
    check_trusted(path)
    named = [name for name in _named_in(path) if name in of or name.startswith(_packages(of))]
    try:
        with safe_globals([(type(name.rpartition(".")[2], (Inert,), {}), name) for name in named]):
            return read_weights_file(path)
    except OSError as error:
        raise OVDError(f"{path} cannot be read ({error.strerror or error}).") from error


def _packages(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name.endswith("."))


def _named_in(path: str) -> list[str]:
    """Classes that a file of ``torch.save`` names; nothing is loaded for it."""
    if path.endswith(".safetensors") or not zipfile.is_zipfile(path):
        return []
    try:
        return get_unsafe_globals_in_checkpoint(path)
    except Exception:  # broken: reading says so
        return []


def plain_settings(value: Any) -> Any:
    """An OmegaConf configuration among what :func:`read_with_inert_objects` gave, as dicts, lists
    and plain values; references ("${...}") stay as they are written, and what is no part of one is
    None."""
    if isinstance(value, Inert):
        state = value.state
        if not isinstance(state, dict):
            return None
        return plain_settings(state.get("_content", state.get("_val")))
    if isinstance(value, dict):
        return {str(key): plain_settings(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_settings(one) for one in value]
    return value if isinstance(value, str | int | float | bool) else None
