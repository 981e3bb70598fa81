"""Weights in checkpoints of PyTorch Lightning, without Lightning and without running anything."""

import torch

from .inert_objects import read_with_inert_objects
from .weights_file import state_dict_in

# Old versions name their callbacks by type.
_CLASSES = ("pytorch_lightning.", "lightning.", "lightning_fabric.")


def read_lightning_state_dict(path: str) -> dict[str, torch.Tensor]:
    """The tensors under "state_dict" (Lightning), else "model", else all.

    Args:
        path: .ckpt, .pth or .safetensors.

    Raises:
        OVDError: a missing or broken file, one that names classes which are not Lightning's, or no
            state dict inside.
    """
    content = read_with_inert_objects(path, _CLASSES)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = dict(content["state_dict"])
    return state_dict_in(content, path)
