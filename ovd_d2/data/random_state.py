"""The random state of a process: saved in checkpoints, kept from side work, seeded per sample."""

# ruff: noqa: NPY002 (the global numpy generator is what Detectron2's augmentations use)

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """The state of Python's, numpy's and torch's generators (CPU and the current GPU).

    Returns:
        plain ints, strings and tensors, so that ``torch.load(weights_only=True)`` reads it back.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts back what :func:`capture` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace outside."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Random numbers inside are a function of ``key`` alone; the state outside does not move.

    Covers Python, numpy and torch on the CPU: all that dataset mappers use.

    Args:
        key: non-negative ints, such as (seed, position of the sample in the stream).
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
