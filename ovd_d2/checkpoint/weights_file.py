"""Opening a file of weights without running anything that is inside it."""

import os
import pickle
from typing import Any

import torch

from ovd_d2.errors import OVDError

# Set to 1 (train_net.py --trust does) to let pickles be opened.
TRUST_VARIABLE = "OVD_D2_TRUST_PICKLE"


def check_trusted(path: str) -> None:
    """Raises OVDError for a pickle (``.pkl``) that the user has not declared trustworthy."""
    is_pickle = path.split("?")[0].endswith(".pkl")
    if is_pickle and os.environ.get(TRUST_VARIABLE) != "1":
        raise OVDError(
            f"{path} is a pickle, which can run any code when it is opened: if you trust its "
            f"origin, pass --trust (or set {TRUST_VARIABLE}=1), or convert it to .safetensors."
        )


def read_weights_file(path: str) -> dict[str, Any]:
    """What a ``.safetensors`` file, or one that ``torch.save`` wrote, holds; tensors on the CPU.

    Raises:
        OVDError: it holds more than tensors, numbers and strings, or it is damaged.
        OSError: it is not there or may not be read.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OVDError(
            f"{path} is not a file of tensors, numbers and strings alone, or it is damaged: "
            "convert it to .safetensors where it was made."
        ) from error
    except OSError:
        raise
    except Exception as error:  # torch and safetensors raise anything on broken data
        raise OVDError(f"{path} cannot be read as weights: {error}") from error
