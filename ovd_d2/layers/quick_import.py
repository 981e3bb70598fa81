"""Detects without importing ``torch._dynamo``, a quarter of the time until a first detection.

torchvision and timm take one function of PyTorch's compiler when they are imported, and with it
thousands of lines that detecting does not run: ``torchvision.ops.roi_align`` asks whether a GPU
can compile, a model of timm has a function that is never compiled. :func:`quick_import` has a
stand-in there meanwhile, with these two functions, which import the compiler when they are called;
asked for anything else, it is replaced. Detectron2's ``Conv2d`` asks at each call whether it is
compiled; :func:`install` lets it ask PyTorch instead.
"""

import functools
import importlib
import sys
import types
from collections.abc import Callable

import torch

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


class _StandIn(types.ModuleType):
    """A module that is imported, and stands in for itself no longer, when asked for something."""

    def __getattr__(self, name: str) -> object:
        searched = name == "__path__" and self.__name__ == COMPILER  # for a module in the package
        if name.startswith("__") and not searched:  # what Python asks of every module
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _take_away() -> None:
    for name in (COMPILER, UTILS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _real(name: str) -> types.ModuleType:
    """The module ``name``, for which nothing stands in from now on."""
    _take_away()
    return importlib.import_module(name)


def _is_compile_supported(device_type: object) -> object:
    """``torch._dynamo.utils.is_compile_supported``, which is imported now."""
    return _real(UTILS).is_compile_supported(device_type)


def _disable(fn: Callable | None = None, recursive: bool = True, **words: object) -> Callable:
    """``torch._dynamo.disable``, which is imported when the function ``fn`` is first called."""
    if not isinstance(fn, types.FunctionType):
        return _real(COMPILER).disable(fn, recursive, **words)

    @functools.cache
    def disabled() -> Callable:
        return _real(COMPILER).disable(fn, recursive, **words)

    @functools.wraps(fn)
    def later(*args: object, **kwargs: object) -> object:
        return disabled()(*args, **kwargs)

    later._torchdynamo_disable = True  # a compiled caller calls it, as it calls what is disabled
    return later


def quick_import(name: str) -> types.ModuleType:
    """``importlib.import_module(name)``, which does not import PyTorch's compiler if it can help.

    Raises:
        ImportError: as ``import`` does.
    """
    if COMPILER in sys.modules or name in sys.modules:
        return importlib.import_module(name)
    package, utils = _StandIn(COMPILER), _StandIn(UTILS)
    package.disable, utils.is_compile_supported = _disable, _is_compile_supported
    sys.modules.update({COMPILER: package, UTILS: utils})
    try:
        return importlib.import_module(name)
    finally:
        _take_away()


def _is_compiling() -> bool:
    """As ``torch._dynamo.is_compiling``."""
    return torch.compiler.is_compiling()


def install() -> None:
    """For ``import ovd_d2``, before anything of Detectron2's models is imported."""
    quick_import("torchvision.ops")
    from detectron2.layers import wrappers

    wrappers.check_if_dynamo_compiling = _is_compiling
