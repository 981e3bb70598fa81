"""Converts checkpoints of MAVL (MDef-DETR) to ours, with a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ovd_d2.checkpoint import (
    check_weights_name,
    from_mavl,
    read_with_inert_objects,
    state_dict_in,
    write_state_dict,
)
from ovd_d2.checkpoint.inert_objects import Inert
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write, check_output
from ovd_d2.jobs.convert_checkpoint import Conversion

# What a checkpoint of its training holds beside weights: settings, and numbers of the optimizer.
_CLASSES = ("argparse.Namespace", "pathlib.", "numpy.", "collections.defaultdict")
_HEADS = {"HEADS": 8, "FUSION_HEADS": 8}  # of the released models; weights do not tell them
_SEEN_TOGETHER = "POINTS * HEADS"
_IN_FEATURES = ["res3", "res4", "res5"]


def convert_mavl(source: Path, out: Path, *, ema: bool = False) -> Conversion:
    """A checkpoint of MAVL, with or without language, as ours, and a config beside it.

    Args:
        source: .pth or .safetensors. Nothing in it is run, though files of its training hold a
            Namespace.
        out: .pth or .safetensors; the config is ``out`` with ".yaml" at the end.
        ema: take the averaged weights, under "model_ema".

    Raises:
        OVDError: what is wrong with a file; nothing is written then.
    """
    check_weights_name(str(out))
    config = out.with_suffix(".yaml")
    check_output("--out", out)
    check_output("the config of --out", config)
    if out.resolve() == source.resolve():
        raise OVDError(f"--out {out} is the file that is converted: choose another name.")
    content = read_with_inert_objects(str(source), _CLASSES)
    found = from_mavl(state_dict_in(_wanted(content, source, ema), str(source)))
    keys = _keys(found.shape, _settings(content))
    depth = keys.pop("DEPTH")
    shown = ", ".join(f"{key} {value}" for key, value in keys.items())
    facts = [f"ResNet-{depth}; MODEL.MAVL: {shown}"]
    if found.left_out:
        facts.append(
            f"left out {len(found.left_out)} tensors: heads that are saved once for each layer, "
            "and what nothing reads"
        )
    if not ema and isinstance(content, Mapping) and content.get("model_ema") is not None:
        facts.append("it has averaged weights too: --ema takes them")
    write_state_dict(str(out), found.weights)
    with atomic_write(config) as file:
        file.write(yaml.safe_dump(_config(out.name, depth, keys), sort_keys=False).encode())
    facts.append(f"wrote {config}, for `ovd predict` and train_net.py --eval-only")
    return Conversion(len(found.weights), tuple(facts))


def _config(weights: str, depth: int, keys: dict[str, Any]) -> dict[str, Any]:
    """A config of detection with these weights, as configs/mavl/mavl_r101.yaml has it."""
    return {
        "VERSION": 2,
        "MODEL": {
            "META_ARCHITECTURE": "MAVL",
            "WEIGHTS": weights,
            "MASK_ON": False,
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
            "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
            "RESNETS": {
                "DEPTH": depth,
                "NORM": "FrozenBN",
                "STRIDE_IN_1X1": False,
                "OUT_FEATURES": _IN_FEATURES,
            },
            "TEXT_BACKBONE": {"MODEL": "hf:FacebookAI/roberta-base", "MAX_TOKENS": 512},
            "OPEN_VOCAB": {"VOCABULARY": "later"},
            "MAVL": {"IN_FEATURES": _IN_FEATURES, "WHOLE_PIXELS_TEST": True, **keys},
        },
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 100000},
        "DATASETS": {"TRAIN": [], "TEST": []},
    }


def _wanted(content: Any, source: Path, ema: bool) -> Any:
    """What of the file holds the weights."""
    if not ema:
        return content
    averaged = content.get("model_ema") if isinstance(content, Mapping) else None
    if averaged is None:
        raise OVDError(f"{source} holds no averaged weights (model_ema): leave --ema out.")
    return averaged


def _settings(content: Any) -> dict[str, Any]:
    """The Namespace that training was started with; {} if there is none."""
    settings = content.get("args") if isinstance(content, Mapping) else None
    state = settings.state if isinstance(settings, Inert) else None
    return state if isinstance(state, dict) else {}


def _keys(shape: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``MODEL.MAVL``."""
    heads = dict(_HEADS)
    if isinstance(settings.get("nheads"), int):
        heads["HEADS"] = settings["nheads"]
    samples = shape[_SEEN_TOGETHER]
    if samples % heads["HEADS"]:
        raise OVDError(
            f"The weights have {samples} samples a level for all heads, which {heads['HEADS']} "
            "heads do not divide: they are of a model of another kind."
        )
    found = {key: value for key, value in shape.items() if key != _SEEN_TOGETHER}
    found |= {"HEADS": heads["HEADS"], "POINTS": samples // heads["HEADS"]}
    if found["LANGUAGE"]:
        found["FUSION_HEADS"] = heads["FUSION_HEADS"]
    return found
