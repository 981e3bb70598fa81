"""Golden files of GroupViT, and their public names of parameters as ours."""

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "groupvit"


def golden(name):
    """Arrays of a file as tensors; names stay numpy's."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {
            key: torch.from_numpy(value) if value.dtype.kind in "fi" else value
            for key, value in file.items()
        }


def below(arrays, prefix):
    """What stands under a prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }


def close(found, wanted, tolerance, what=""):
    """Largest difference, relative to the largest number."""
    found, wanted = found.detach().double(), wanted.double()
    assert found.shape == wanted.shape, what
    size = max(wanted.abs().max().item(), 1e-12)
    difference = (found - wanted).abs().max().item() / size
    assert difference <= tolerance, f"{what}: {difference:.2e}"
