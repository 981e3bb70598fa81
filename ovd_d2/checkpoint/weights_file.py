"""Opening a file of weights without running anything that is inside it."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ovd_d2.errors import OVDError, reason
from ovd_d2.files.atomic import atomic_write
from ovd_d2.files.torchscript import is_torchscript, read_torchscript_tensors

from .fit import describe_tensor

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
    Of a TorchScript archive its tensors by name.

    Raises:
        OVDError: it holds more than tensors, numbers and strings, or it is damaged.
        OSError: it is not there or may not be read.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        if is_torchscript(path):
            return read_torchscript_tensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OVDError(
            f"{path} is not a file of tensors, numbers and strings alone, or it is damaged: "
            "convert it to .safetensors where it was made."
        ) from error
    except OSError:
        raise
    except Exception as error:  # torch and safetensors raise anything on broken data
        raise OVDError(f"{path} cannot be read as weights: {reason(error)}") from error


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name: those under "model" if there is one, else all.

    Args:
        path: .pth or .safetensors; .pkl (of Detectron2) if it is trusted.

    Raises:
        OVDError: an untrusted pickle, a missing or broken file, or no state dict inside.
    """
    check_trusted(path)
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                content = pickle.load(file, encoding="latin1")  # noqa: S301 - declared trusted
        else:
            content = read_weights_file(path)
    except OSError as error:
        raise OVDError(f"{path} cannot be read ({error.strerror or error}).") from error
    except OVDError:  # a ValueError, which says it already
        raise
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError) as error:
        raise OVDError(f"{path} cannot be read as weights: {reason(error)}") from error
    return state_dict_in(content, path)


def state_dict_in(content: Any, path: str) -> dict[str, torch.Tensor]:
    """The tensors by name of what a file of weights held: those under "model", else all.

    Args:
        content: what was read; numpy arrays become tensors.
        path: for messages.

    Returns:
        dense, real tensors; the mapping's own type and ``_metadata`` are kept.

    Raises:
        OVDError: anything else, or nothing at all.
    """
    if isinstance(content, Mapping) and "model" in content:
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise OVDError(
            f'{path} holds no weights of a model, neither by itself nor under "model": give a '
            "file of tensors by name."
        )
    state = OrderedDict()
    for key, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype != object:
            value = torch.from_numpy(np.ascontiguousarray(value))
        unfit = describe_tensor(value)
        if not isinstance(key, str) or unfit:
            raise OVDError(
                f"{path} holds no weights of a model: its entry {key!r} is "
                f"{unfit or 'under no name'}; weights are dense, real tensors by name."
            )
        state[key] = value
    if hasattr(content, "_metadata"):
        state._metadata = content._metadata
    return state


def check_weights_name(path: str) -> None:
    """Raises OVDError for a suffix that :func:`write_state_dict` has no format for."""
    if not path.endswith((".pth", ".safetensors")):
        raise OVDError(f"--out {path} must end in .pth or .safetensors.")


def write_state_dict(path: str, weights: dict[str, torch.Tensor], under: str = "model") -> None:
    """Writes ``weights`` as ``.pth`` or ``.safetensors``; whole or not at all.

    Args:
        path: of the file.
        weights: tensors by name.
        under: the key of a ``.pth`` that holds them.

    Raises:
        OVDError: another suffix, or the file cannot be written.
    """
    # Copies: safetensors refuses tensors that share memory, torch.save would write it all.
    weights = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()
    }
    check_weights_name(path)
    try:
        with atomic_write(path) as file:
            if path.endswith(".pth"):
                torch.save({under: weights}, file)
            else:
                from safetensors.torch import save

                file.write(save(weights))
    except (OSError, RuntimeError) as error:
        raise OVDError(f"{path} cannot be written ({error}): choose another place.") from error
