"""Reading foreign pickles without running them.

A pickle is a program that may call anything importable. This reader calls nothing but the few
functions below, which rebuild plain arrays; every other name ends the reading. Not even numpy's and
torch's own constructors are called with what the file says: shapes are checked against the bytes
that are there. Nor can a small file take much memory: what is built of it is counted against its
size.
"""

import io
import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, BinaryIO

import numpy as np
import torch

from ovd_d2.errors import OVDError

# What a file may become: bytes of arrays and text for each of its bytes, and a little in any case.
_BYTES_PER_BYTE = 4
_BYTES_IN_ANY_CASE = 1 << 20
_BYTES_OF_ENTRY = 100  # of a dict
# Values, each counted as often as something holds it: honest files have fewer than bytes.
_VALUES_PER_BYTE = 16


def read_restricted_pickle(path: Path) -> Any:
    """The content of a pickle of dicts, lists, tuples, strings, bytes, numbers and arrays.

    Numpy arrays and torch tensors (CPU, dense) come back as numpy arrays of numbers or bools.

    Raises:
        OVDError: unreadable, damaged, or made of anything else; ``path`` and the reason are named.
            Nothing of the file was run.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = RestrictedUnpickler(file, size).load()
            return _Finisher(_VALUES_PER_BYTE * size).finished(content)
    except Exception as error:  # a damaged pickle raises whatever its program meets
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OVDError(f"pickle {path} is refused: {reason}") from error


class RestrictedUnpickler(pickle._Unpickler):
    """``pickle.Unpickler`` for plain data; arrays come as :class:`_Array` until ``_Finisher``.

    It is Python's own and not the C one, which allocates whatever number a pickle names.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        """
        Args:
            file: at the beginning of the pickle.
            size: of the file in bytes.
        """
        super().__init__(file)
        self._left = _BYTES_PER_BYTE * size + _BYTES_IN_ANY_CASE

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not plain data (arrays, tensors, lists, "
                "dicts, numbers, strings)"
            )
        return partial(self._charged, known) if isinstance(known, FunctionType) else known

    def _charged(self, function: Callable, *args: Any) -> Any:
        """``function(*args)``, its size taken from what is left for the file."""
        result = function(*args)
        if isinstance(result, torch.TypedStorage):
            self._left -= len(args[0])  # torch has found all of it there
        elif isinstance(result, np.ndarray | bytes):
            self._left -= len(result) if isinstance(result, bytes) else result.nbytes
        elif isinstance(result, OrderedDict):
            self._left -= _BYTES_OF_ENTRY * len(result)
        if self._left < 0:
            raise pickle.UnpicklingError("it would take far more memory than the file is large")
        return result


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


def _ordered_dict(entries: Any = ()) -> OrderedDict:
    return OrderedDict(entries)


def _storage(content: bytes) -> torch.TypedStorage:
    if content[:2] == b"PK":  # torch's zip files may be compressed; pickles of tensors hold none
        raise pickle.UnpicklingError("it holds a tensor in a zip file")
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
    ("collections", "OrderedDict"): _ordered_dict,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DataType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1,
}


class _Finisher:
    """Replaces stand-ins by arrays.

    Args:
        most: values that there may be, counted as often as something holds them: whoever walks
            through them later meets them that often.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._done: dict[int, tuple[Any, int]] = {}  # id of what is held by the content -> ...

    def finished(self, content: Any) -> Any:
        """``content`` with arrays in it; what was shared still is."""
        value, _ = self._finish(content)
        return value

    def _finish(self, content: Any) -> tuple[Any, int]:
        """The value, and how many values it stands for."""
        if id(content) in self._done:
            return self._done[id(content)]
        if isinstance(content, _Array):
            if content.value is None:
                raise pickle.UnpicklingError("it holds an array without content")
            value, count = content.value, 1
        elif isinstance(content, list | tuple):
            parts = [self._finish(part) for part in content]
            value = type(content)(part for part, _ in parts)
            count = 1 + sum(count for _, count in parts)
        elif isinstance(content, dict):
            pairs = [(self._finish(k), self._finish(v)) for k, v in content.items()]
            value = {key: entry for (key, _), (entry, _) in pairs}
            count = 1 + sum(k + v for (_, k), (_, v) in pairs)
        elif content is None or isinstance(content, bool | int | float | str | bytes | np.ndarray):
            return content, 1
        else:
            raise pickle.UnpicklingError(f"it holds a bare {type(content).__name__}")
        if count > self._most:
            raise pickle.UnpicklingError("it holds the same lists in each other without end")
        self._done[id(content)] = (value, count)
        return value, count
