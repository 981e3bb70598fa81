"""Opening a trained detector: config and weights in, a model in eval mode out.

Letters: H, W height and width of a picture.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import Tensor, nn

from ovd_d2.checkpoint import check_trusted, load_weights, read_weights_file, state_dict_in
from ovd_d2.data.named_datasets import register_named_files
from ovd_d2.errors import OVDError
from ovd_d2.files.images import COLOUR_ORDERS
from ovd_d2.language import LATER, Vocabulary, configured_vocabulary
from ovd_d2.modeling.batch_norm import finish_model
from ovd_d2.modeling.build import explained_build
from ovd_d2.modeling.open_vocabulary import part_with

WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")


def inference_config(cfg: CfgNode, device: str | torch.device) -> CfgNode:
    """A copy of ``cfg`` for building the model where neither data sets nor ImageNet weights are,
    without classes (``set_vocabulary`` gives them) and without images of proposal files.

    Raises:
        OVDError: INPUT.FORMAT is neither RGB nor BGR.
    """
    if cfg.INPUT.FORMAT not in COLOUR_ORDERS:
        raise OVDError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; pictures come as RGB or BGR.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = str(device)
    _forget_weights(cfg.MODEL)
    cfg.MODEL.LOAD_PROPOSALS = False
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = LATER
    cfg.MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS = ""
    return cfg


def _forget_weights(node: CfgNode) -> None:
    """Empties every WEIGHTS: the whole model's own come afterwards."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            _forget_weights(value)
        elif key == "WEIGHTS":
            node[key] = ""


def trained_vocabulary(cfg: CfgNode) -> Vocabulary | None:
    """The classes that a model of ``cfg`` was trained with; None if they cannot be had here.

    Args:
        cfg: as the model was trained with, before :func:`inference_config`.
    """
    spec, train = cfg.MODEL.OPEN_VOCAB.VOCABULARY, cfg.DATASETS.TRAIN[:1]
    try:
        for name in () if spec else train:
            register_named_files(name)
        return configured_vocabulary(spec, train, cfg.DATASETS.NOVEL_NAMES)
    except OVDError:
        return None


def open_detector(
    cfg: CfgNode, weights: str | os.PathLike, trained: Vocabulary | None = None
) -> nn.Module:
    """The model of ``cfg`` with all of its weights, in eval mode, without gradients.

    Args:
        cfg: of :func:`inference_config`; frozen here.
        weights: ``.pth`` (nothing in it is run) or ``.safetensors``; "": the model brings its own.
        trained: :func:`trained_vocabulary`, for models that read other words by what it says of
            them (DetCLIP: definitions).

    Raises:
        OVDError: a part that cannot be built, or a file that cannot be read or is not of the model.
    """
    state = read_state(weights) if weights else None  # a bad file is found before building
    cfg.freeze()
    with explained_build(cfg):
        model = build_model(cfg)
    model = finish_model(model.eval(), cfg)
    if state is not None:
        load_weights(model, state, os.fspath(weights)).check_whole()
    if trained is not None and (reader := part_with(model, "set_trained_vocabulary")):
        reader.set_trained_vocabulary(trained)
    return model.requires_grad_(False)


def read_state(weights: str | os.PathLike) -> dict[str, Tensor]:
    """The model's part of a file of weights.

    Raises:
        OVDError: it cannot be read, or holds no weights.
    """
    weights = os.fspath(weights)
    if not weights.endswith(WEIGHTS_SUFFIXES):
        check_trusted(weights)
        raise OVDError(f"The weights {weights} must be a .pth or .safetensors file.")
    try:
        content = read_weights_file(weights)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OVDError(f"Cannot read the weights {weights}: {reason}.") from error
    return state_dict_in(content, weights)


def to_sample(image: np.ndarray, cfg: CfgNode) -> dict[str, Any]:
    """The model's input of one picture, resized as for evaluation to at least one pixel.

    Args:
        image: (H, W, 3) uint8, RGB.
        cfg: reads ``INPUT.FORMAT``, ``SQUARE``, ``MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``.
    """
    height, width = image.shape[:2]
    pixels = image if cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
    new_height = new_width = cfg.INPUT.SQUARE
    if not cfg.INPUT.SQUARE and cfg.INPUT.MIN_SIZE_TEST > 0:
        new_height, new_width = T.ResizeShortestEdge.get_output_shape(
            height, width, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        )
    if cfg.INPUT.SQUARE or cfg.INPUT.MIN_SIZE_TEST > 0:
        resize = T.ResizeTransform(height, width, max(new_height, 1), max(new_width, 1))
        pixels = resize.apply_image(np.ascontiguousarray(pixels))
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return {"image": tensor, "height": height, "width": width}


def run_files(checkpoint: str, config_file: str = "", *, asked: str = "") -> tuple[Path, Path]:
    """Weights and yaml of a run.

    Args:
        checkpoint: a file of weights, or a folder with model_final.pth.
        config_file: instead of the yaml beside the weights: the one of their name, which
            ``ovd convert mavl`` writes, or config.yaml.
        asked: what named the checkpoint, for the message; "": the checkpoint.

    Raises:
        OVDError: one of them is missing.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = path / "model_final.pth"
    beside = path.with_suffix(".yaml")
    config = Path(config_file or (beside if beside.is_file() else path.parent / "config.yaml"))
    for file in (path, config):
        if not file.is_file():
            raise OVDError(
                f"{asked or checkpoint} needs {file}, which does not exist: give a checkpoint in "
                "the OUTPUT_DIR of train_net.py, or the yaml (config_file)"
            )
    return path, config
