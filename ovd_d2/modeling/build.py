"""What Detectron2 raises while it builds a model, as one sentence about the config."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.errors import OVDError

# What bad values of keys come to. A NameError, say, is a mistake in code and keeps its traceback.
_OF_VALUES = (AssertionError, LookupError, ValueError, ArithmeticError, RuntimeError, ImportError)
# Of these, only what libraries raise: in the code of a user's own part they are its mistakes.
_IN_LIBRARIES = (TypeError, AttributeError)
_NO_PARTS = ("torch.", "detectron2.layers")


@contextmanager
def explained_build(cfg: CfgNode) -> Iterator[None]:
    """Inside, a model is built from ``cfg``.

    Raises:
        OVDError: instead of what was raised, naming the part that could not be built.
    """
    try:
        yield
    except OVDError:
        raise
    except (*_OF_VALUES, *_IN_LIBRARIES) as error:
        if isinstance(error, _IN_LIBRARIES) and not _from_library(error.__traceback__):
            raise
        raise OVDError(_sentence(error, cfg)) from error


def _sentence(error: BaseException, cfg: CfgNode) -> str:
    text = " ".join(str(error.args[0] if error.args else "").split())
    if isinstance(error, KeyError) and "registry" in text:
        return f"MODEL names an unknown part: {text}"
    if isinstance(error, KeyError):
        for key, names in _feature_lists(cfg.MODEL, "MODEL."):
            if text in names:
                return f"{key} names {text!r}, which the backbone does not give."
    if not text:  # a bare assertion: its own source line
        text = traceback.extract_tb(error.__traceback__)[-1].line or "no reason given"
    return (
        f"The model cannot be built from this config: {_part(error.__traceback__)} fails with "
        f"{type(error).__name__}: {text.rstrip('.')}; check the keys of MODEL that it reads."
    )


def _feature_lists(node: CfgNode, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _feature_lists(value, f"{prefix}{key}.")
        elif key.endswith("_FEATURES"):
            yield prefix + key, value


def _part(trace: TracebackType | None) -> str:
    """The innermost part of a detector among the frames: its class, or the function that builds
    it."""
    name = "MODEL.META_ARCHITECTURE"
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("cls", frame.f_locals.get("self"))
        kind = owner if isinstance(owner, type) else type(owner)
        function = frame.f_code.co_name
        if owner is not None and function in ("__init__", "from_config"):
            if issubclass(kind, nn.Module) and not kind.__module__.startswith(_NO_PARTS):
                name = kind.__name__
        elif function.startswith("build_") and function != "build_model":
            name = function
        trace = trace.tb_next
    return name


def _from_library(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename if trace is not None else ""
    return f"{os.sep}site-packages{os.sep}" in file
