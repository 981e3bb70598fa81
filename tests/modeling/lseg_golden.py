"""The numbers of tests/golden/lseg, and weights in them under our names."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden/lseg"


@cache
def golden(name: str) -> dict[str, torch.Tensor]:
    """The numbers of a file; names of parameters stay arrays."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return {k: v if v.dtype.kind == "U" else torch.from_numpy(v) for k, v in arrays.items()}


def below(values: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the largest difference is within ``tolerance`` of the largest value."""
    found, expected = found.detach().float(), expected.float()
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6)
