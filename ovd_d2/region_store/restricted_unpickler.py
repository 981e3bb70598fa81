"""Reading foreign pickles without running them.

A pickle is a program that may call anything importable. This reader calls nothing but the few
functions below, which rebuild plain arrays; every other name ends the reading. Not even numpy's and
torch's own constructors are called with what the file says: shapes are checked against the bytes
that are there.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ovd_d2.errors import OVDError


def read_restricted_pickle(path: Path) -> Any:
    """The content of a pickle of dicts, lists, tuples, strings, bytes, numbers and arrays.

    Numpy arrays and torch tensors (CPU, dense) come back as numpy arrays of numbers or bools.

    Raises:
        OVDError: unreadable, damaged, or made of anything else; ``path`` and the reason are named.
            Nothing of the file was run.
    """
    try:
        with open(path, "rb") as file:
            return _finished(RestrictedUnpickler(file).load())
    except Exception as error:  # a damaged pickle raises whatever its program meets
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OVDError(f"pickle {path} is refused: {reason}") from error


class RestrictedUnpickler(pickle.Unpickler):
    """``pickle.Unpickler`` for plain data; arrays come as :class:`_Array` until ``_finished``."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not plain data (arrays, tensors, lists, "
                "dicts, numbers, strings)"
            )
        return known


class _DataType:
    """Stands for ``numpy.dtype``: a number's or bool's kind, size and byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or code[:1] not in ("f", "i", "u", "b") or len(code) > 3:
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it holds an array of records, not of numbers")
        self.order = state[1]

    def numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """Stands for ``numpy.ndarray`` while its state is not there yet."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: bytes, dtype: _DataType, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(dtype, _DataType) or not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an array of objects, not of numbers")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise pickle.UnpicklingError(f"it holds an array of shape {shape!r}")
    if math.prod(shape) * dtype.numpy().itemsize != len(content):
        raise pickle.UnpicklingError(f"its array of shape {shape} has {len(content)} bytes")
    flat = np.frombuffer(content, dtype.numpy())
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: bytes, dtype: _DataType, shape: tuple, order: str) -> np.ndarray:
    return _array(content, dtype, shape, order)


def _scalar(dtype: _DataType, content: bytes) -> Any:
    return _array(content, dtype, (), "C").item()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how protocols 0 to 2 write bytes
        raise pickle.UnpicklingError(f"it holds text in {encoding!r}")
    return text.encode("latin1")


def _storage(content: bytes) -> torch.TypedStorage:
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise pickle.UnpicklingError("it holds a tensor without a plain storage")
    return storage


def _tensor(
    storage: torch.TypedStorage, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
    flat = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
    tensor = flat.as_strided(size, stride, offset)  # checks that all of it is in the storage
    if math.prod(size) > len(flat):  # expanded: a small file must not become a large array
        raise pickle.UnpicklingError("it holds a tensor larger than its storage")
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor.clone()
    return tensor.numpy()


_NDARRAY = object()  # only ever an argument of _reconstruct
_KNOWN: dict[tuple[str, str], Callable | object] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DataType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1,
}


def _finished(content: Any) -> Any:
    """``content`` with its stand-ins replaced by arrays."""
    if isinstance(content, _Array):
        if content.value is None:
            raise pickle.UnpicklingError("it holds an array without content")
        return content.value
    if isinstance(content, list | tuple):
        return type(content)(_finished(value) for value in content)
    if isinstance(content, dict):
        return {_finished(key): _finished(value) for key, value in content.items()}
    if content is None or isinstance(content, bool | int | float | str | bytes | np.ndarray):
        return content
    raise pickle.UnpicklingError(f"it holds a bare {type(content).__name__}")
