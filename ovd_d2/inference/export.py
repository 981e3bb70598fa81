"""Exports a checkpoint as a small folder that :class:`OpenVocabPredictor` loads anywhere."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor

from ovd_d2 import __version__
from ovd_d2.checkpoint import read_weights_file
from ovd_d2.config import add_ovd_config
from ovd_d2.config_file import load_config
from ovd_d2.data.build import check_registered
from ovd_d2.data.mixing import training_datasets
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_new_folder, new_folder, write_json
from ovd_d2.language import ConceptDictionary, TextEmbeddingBank
from ovd_d2.modeling import get_vocabulary

from .arguments import check_score_threshold
from .model_folders import (
    CONCEPTS,
    CONFIG,
    DICTIONARY_KEY,
    FACTS,
    KNOWN_ROWS,
    PROMPTS,
    VOCABULARY,
    WEIGHTS,
)
from .predictor import OpenVocabPredictor
from .ruled_detector import shares_probability
from .score_threshold import LOWEST, choose_score_threshold

# What of a config decides how pictures are predicted.
_KEPT = ("VERSION", "MODEL", "INPUT.FORMAT", "INPUT.SQUARE", "INPUT.MIN_SIZE_TEST",
         "INPUT.MAX_SIZE_TEST", "INPUT.MAX_PIXELS", "TEST.DETECTIONS_PER_IMAGE")  # fmt: skip
# Parts of MODEL that point to files, or that only training reads.
_DROPPED = (
    "MODEL.DEVICE", "MODEL.TIMM.FREEZE_STAGES",
    "MODEL.OPEN_VOCAB.VOCABULARY", "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.LOAD_PROPOSALS", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.RPN.POSITIVE_FRACTION",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "MODEL.RPN.SMOOTH_L1_BETA",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
)  # fmt: skip


def export_model(
    checkpoint: str | os.PathLike,
    config_file: str | os.PathLike,
    out: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    score_threshold: str | float = "",
    notes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes ``out``: weights in fp16, config, vocabulary and facts; see ``model_folders``.

    Vectors (biases, normalisation) stay fp32, and so does a matrix that fp16 cannot hold. The
    folder appears whole or not at all.

    Args:
        checkpoint: ``.pth`` or ``.safetensors``; of a checkpoint the weights alone are taken.
            ``results.json`` and ``metrics.json`` beside it go into the facts.
        config_file: the yaml it was trained with.
        out: a new folder.
        overrides: KEY, value, KEY, value, ...: what differs from the yaml.
        score_threshold: what ``ovd predict`` drops detections below: a number, or a data set with
            boxes on which to choose it; "": not said.
        notes: more entries for the facts, such as "learned_from" (see ``model_folders``).

    Returns:
        the facts, as in ``facts.json``.

    Raises:
        OVDError: the checkpoint does not fit the config, ``out`` is there already, or a bad
            threshold.
    """
    out, checkpoint = Path(out), Path(checkpoint)
    check_new_folder("--out", out)
    cfg = load_config(os.fspath(config_file), list(overrides))
    if not cfg.MODEL.OPEN_VOCAB.VOCABULARY:
        check_registered(f"{config_file}: DATASETS.TRAIN", cfg.DATASETS.TRAIN[:1])
    predictor = OpenVocabPredictor(cfg, checkpoint, device="cpu")
    if get_vocabulary(predictor.model) is None:
        raise OVDError(
            f"{config_file}: the names of its classes cannot be had here: prepare its data set, or "
            "set MODEL.OPEN_VOCAB.VOCABULARY."
        )
    extra = {**threshold_facts(cfg, checkpoint, score_threshold), **(notes or {})}
    with new_folder("--out", out) as folder:
        return _write(folder, predictor, cfg, checkpoint, extra)


def threshold_facts(cfg: CfgNode, checkpoint: Path | str, wanted: str | float) -> dict[str, Any]:
    """What a model's facts say of the threshold that is ``wanted``: a number, a data set on which
    to choose it, or "", nothing.

    Raises:
        OVDError: as :func:`choose_score_threshold`.
    """
    if wanted == "":
        return {}
    try:
        return {"score_threshold": check_score_threshold(float(wanted))}
    except ValueError as error:
        if isinstance(error, OVDError):
            raise
    predictor = OpenVocabPredictor(cfg, checkpoint, device="cpu", score_threshold=LOWEST)
    return choose_score_threshold(predictor, wanted)


def _write(
    folder: Path,
    predictor: OpenVocabPredictor,
    cfg: CfgNode,
    checkpoint: Path,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    from safetensors.torch import save

    state = {name: _small(value) for name, value in predictor.model.state_dict().items()}
    content = save(state)
    (folder / WEIGHTS).write_bytes(content)
    write_json(folder / VOCABULARY, get_vocabulary(predictor.model).to_dict())
    if shares_probability(predictor.model) and isinstance(predictor.words, TextEmbeddingBank):
        predictor.words.write(folder / KNOWN_ROWS, get_vocabulary(predictor.model))
    dropped = _DROPPED
    for file, key in PROMPTS.items():
        if (source := Path(_get(cfg, key))).is_file():
            shutil.copyfile(source, folder / file)
            dropped = (*dropped, key)  # the file in the folder stands for it
    if spec := _get(cfg, DICTIONARY_KEY):
        ConceptDictionary.load(spec).save(folder / CONCEPTS)
        dropped = (*dropped, DICTIONARY_KEY)
    (folder / CONFIG).write_text(_inference_yaml(cfg, dropped), encoding="utf-8")
    facts = {
        "ovd_d2": __version__,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
        "text_encoder": cfg.MODEL.OPEN_VOCAB.TEXT_ENCODER if predictor.encoder_id else "",
        "text_encoder_id": predictor.encoder_id,
        "classes": len(get_vocabulary(predictor.model)),
        "train_datasets": training_datasets(cfg),
        **training_facts(checkpoint),
    }
    facts = {**extra, **facts}  # what was measured here cannot be overwritten
    write_json(folder / FACTS, facts)
    return facts


def _small(value: Tensor) -> Tensor:
    """fp32 matrices as fp16 where their numbers allow, everything else as it is."""
    value = value.detach().cpu().contiguous()
    if value.dtype != torch.float32 or value.dim() < 2:
        return value.clone()
    half = value.half()
    return half if half.isfinite().all() else value.clone()


def training_facts(checkpoint: Path) -> dict[str, Any]:
    """Iterations, seconds and AP, as far as the run's folder tells; null for what it does not."""
    iteration = read_weights_file(os.fspath(checkpoint)).get("iteration")
    results = _read_json(checkpoint.with_name("results.json")) or {}
    # The checkpointer counts from 0, results.json says how many steps there were.
    iterations = iteration + 1 if isinstance(iteration, int) else None
    fits = iterations is None or results.get("iteration") in (None, iterations)
    return {
        "iterations": iterations if iterations is not None else results.get("iteration"),
        "train_seconds": _train_seconds(checkpoint.with_name("metrics.json"), iterations),
        "results": results.get("results") if fits else None,
    }


def _train_seconds(metrics: Path, iterations: int | None) -> float | None:
    """Seconds spent in steps up to ``iterations``: mean step time of each record x its steps."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    seconds, last = 0.0, -1
    for line in lines:
        record = _parse(line) or {}
        now = record.get("iteration", -1)
        if "time" in record and last < now < (iterations or now + 1):
            seconds += record["time"] * (now - last)
            last = now
    return round(seconds, 1) or None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _parse(text: str) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _inference_yaml(cfg: CfgNode, dropped: Sequence[str]) -> str:
    """What differs from the defaults among the keys that prediction reads, without those
    ``dropped``."""
    import yaml

    defaults = get_cfg()
    add_ovd_config(defaults)
    kept: dict[str, Any] = {}
    for key, value in _leaves(cfg, ""):
        under_kept = any(key == k or key.startswith(k + ".") for k in _KEPT)
        if not under_kept or key in dropped or key.endswith((".WEIGHTS", "LOSS_WEIGHT")):
            continue
        if value == _get(defaults, key) and key != "VERSION":
            continue
        *path, last = key.split(".")
        node = kept
        for part in path:
            node = node.setdefault(part, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(kept, sort_keys=True)


def _leaves(node: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in node.items():
        if isinstance(value, CfgNode):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
