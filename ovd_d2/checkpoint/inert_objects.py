"""Checkpoints that hold objects of other packages beside their tensors, opened without running
anything of them.

``torch.load(weights_only=True)`` refuses such a file. Here every class that it names is replaced by
a stand-in that keeps what it is given and does nothing else; the package itself need not be there.
"""

from typing import Any

import torch

from ovd_d2.errors import OVDError

from .weights_file import check_trusted, read_weights_file


class Inert:
    """In the place of an object of an unknown class.

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


def read_with_inert_objects(path: str) -> Any:
    """What a file of ``torch.save`` or a ``.safetensors`` file holds, tensors on the CPU; objects
    that are neither tensors nor plain data come as :class:`Inert`.

    Raises:
        OVDError: a pickle (.pkl), a missing or damaged file, one of the oldest format of torch, or
            one that asks for more than objects of classes.
    """
    check_trusted(path)
    try:
        if path.endswith(".safetensors"):
            return read_weights_file(path)
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in named]
        with torch.serialization.safe_globals(stand_ins):
            return read_weights_file(path)
    except OVDError:
        raise
    except OSError as error:
        raise OVDError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:  # no zip file, as torch has written since 1.6
        raise OVDError(f"{path} cannot be read as weights: {error}") from error


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
