"""PyPI's ``lvis`` 0.5.3 under numpy 1.24 and newer, and with it Detectron2's ``LVISEvaluator``.

``lvis.LVISEval.accumulate`` says ``np.float``, which numpy removed. :func:`mend` gives that one
method its own view of numpy, in which ``float`` is Python's; numpy and every other function of
``lvis`` stay as they are. :func:`install`, which ``import ovd_d2`` calls, lets Detectron2's
evaluator mend ``lvis`` right before it evaluates, so that ``lvis`` is imported no earlier than
without us. Where numpy still has ``float``, or ``lvis`` does not ask for it, nothing changes.
"""

import functools
import types
from typing import Any

import numpy as np


class _NumpyWithFloat:
    """Numpy, and ``float`` as it was before 1.24."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def mend() -> None:
    """Makes ``lvis.LVISEval`` run with the numpy at hand; twice is harmless.

    Raises:
        ImportError: lvis is not installed.
    """
    import lvis.eval

    method = lvis.eval.LVISEval.accumulate
    namespace = method.__globals__
    asks_for_it = "float" in method.__code__.co_names
    if not asks_for_it or namespace.get("np") is not np or hasattr(np, "float"):
        return
    mended = types.FunctionType(
        method.__code__, {**namespace, "np": _NumpyWithFloat()}, method.__name__
    )
    lvis.eval.LVISEval.accumulate = functools.wraps(method)(mended)


def install() -> None:
    """Lets Detectron2's ``LVISEvaluator`` call :func:`mend` before it evaluates."""
    from detectron2.evaluation import lvis_evaluation

    evaluate = lvis_evaluation._evaluate_predictions_on_lvis
    if getattr(evaluate, "mends_lvis", False):
        return

    @functools.wraps(evaluate)
    def mended(*args: Any, **kwargs: Any) -> Any:
        mend()
        return evaluate(*args, **kwargs)

    mended.mends_lvis = True
    lvis_evaluation._evaluate_predictions_on_lvis = mended
