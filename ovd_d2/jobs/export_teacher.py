"""Exports a trained CLIP model as a teacher for ``exported:FILE``, its facts beside it."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ovd_d2.config_file import load_config
from ovd_d2.data.build import check_registered
from ovd_d2.data.mixing import training_datasets
from ovd_d2.encoders import ImageTextModel, build_image_text_model
from ovd_d2.encoders.exported import check_teacher_output, export_teacher
from ovd_d2.encoders.text_towers import LockedTextTower
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.labelled_crops import encode_crops, load_labelled_crops, name_crops
from ovd_d2.files.atomic import missing_folders, remove_empty, write_json
from ovd_d2.inference.export import training_facts
from ovd_d2.inference.open_detector import inference_config, open_detector
from ovd_d2.language import TextEmbeddingBank
from ovd_d2.modeling import CLIP

logger = logging.getLogger(__name__)


def export_checkpoint(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    *,
    datasets: Sequence[str] | None = None,
    notes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Writes ``out`` (.safetensors, fp16) and the facts beside it (.json).

    Args:
        checkpoint: of a CLIP model with a locked text tower; ``config.yaml`` lies beside it.
        out: the file to write.
        datasets: labelled crops on which the *written* file is evaluated; None: DATASETS.TEST.
        notes: more entries for the facts, such as licences.

    Returns:
        The facts.

    Raises:
        OVDError: no config, another model, or a data set that is not there.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    config = checkpoint.parent / "config.yaml"
    if not checkpoint.is_file() or not config.is_file():
        missing = config if checkpoint.is_file() else checkpoint
        raise OVDError(f"{missing} does not exist; name a checkpoint beside its config.yaml.")
    check_teacher_output(out, [checkpoint, config])
    cfg = inference_config(load_config(str(config)), "cpu")
    names = list(cfg.DATASETS.TEST if datasets is None else datasets)
    check_registered("--evaluate", names)
    model = _load(cfg, checkpoint)
    with _published(out) as partial:
        facts = _write(partial, cfg, checkpoint, model, names)
        facts |= {key: text for key, text in (notes or {}).items() if key not in facts}
        write_json(partial.with_suffix(".json"), facts)
    return facts


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A file to write, with its facts beside it; both take the places of ``out`` and its facts when
    the block ends, and are gone if it fails."""
    made = missing_folders(out.parent)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".teacher-", dir=out.parent) as folder:
            partial = Path(folder) / "teacher.safetensors"
            yield partial
            out.with_suffix(".json").unlink(missing_ok=True)
            partial.replace(out)
            partial.with_suffix(".json").replace(out.with_suffix(".json"))
    except BaseException:
        remove_empty(made)
        raise


def _write(
    out: Path, cfg: CfgNode, checkpoint: Path, model: CLIP, names: Sequence[str]
) -> dict[str, Any]:
    """Writes the teacher and evaluates what was written; its facts."""
    digest = export_teacher(
        out,
        image_tower=model.image_tower,
        settings=model.settings,
        preprocessing=model.preprocessing,
        text_encoder=model.text_tower.encoder,
        text_encoder_spec=cfg.MODEL.CLIP.TEXT_TOWER.removeprefix("locked:"),
        logit_scale=model.logit_scale.exp().item(),
    )
    exported = build_image_text_model(f"exported:{out}")
    return {
        "sha256": digest,
        "encoder_id": exported.encoder_id,
        "bytes": out.stat().st_size,
        "image_tower": model.settings,
        "text_encoder": model.text_tower.encoder.encoder_id,
        "training": _training_facts(checkpoint),
        "zero_shot_in_percent": {
            f"{name}, crops of {scale} x the box": _accuracy(exported, cfg, name, scale)
            for name in names for scale in (1.0, 1.5)
        },
    }  # fmt: skip


def _load(cfg: CfgNode, checkpoint: Path) -> CLIP:
    model = open_detector(cfg, checkpoint)
    locked = isinstance(model, CLIP) and isinstance(model.text_tower, LockedTextTower)
    if not locked or model.text_tower.projection is not None:
        raise OVDError(
            f"{checkpoint} is not of a CLIP model with a locked text tower without projection "
            "(MODEL.CLIP.TEXT_TOWER locked:ENCODER, EMBED_DIM its width): only such a tower can "
            "share an encoder's class embeddings."
        )
    return model


def _accuracy(
    model: ImageTextModel, cfg: CfgNode, dataset: str, crop_scale: float
) -> dict[str, float]:
    keys = cfg.MODEL.OPEN_VOCAB
    crops = load_labelled_crops(dataset)
    embeddings = encode_crops(
        model.encode_pixels, model.preprocessing, crops, crop_scale=crop_scale
    )
    bank = TextEmbeddingBank(model.text_encoder, keys.PROMPTS, keys.USE_SYNONYMS)
    return name_crops(embeddings, crops, bank)


def _training_facts(checkpoint: Path) -> dict[str, Any]:
    """What was trained on what, how long."""
    from ovd_d2 import __version__

    cfg = load_config(str(checkpoint.with_name("config.yaml")))
    length = training_facts(checkpoint)
    data = []
    for name in training_datasets(cfg):
        facts: dict[str, Any] = {"name": name}
        manifest = Path(MetadataCatalog.get(name).get("json_file", "")).parent / "manifest.json"
        if manifest.is_file():
            content = json.loads(manifest.read_text(encoding="utf-8"))
            wanted = ("version", "revision", "images_sha256")
            facts |= {key: content[key] for key in wanted if key in content}
        data.append(facts)
    return {
        "ovd_d2": __version__,
        "torch": str(torch.__version__),
        "seed": cfg.SEED,
        "iterations": length["iterations"],
        "pairs_per_batch": cfg.SOLVER.IMS_PER_BATCH,
        "seconds": length["train_seconds"],
        "data": data,
        "weights_before": cfg.MODEL.CLIP.TIMM.WEIGHTS,
        "config": {
            "MODEL.CLIP": json.loads(json.dumps(cfg.MODEL.CLIP)),
            "INPUT.PAIRS": json.loads(json.dumps(cfg.INPUT.PAIRS)),
            "SOLVER": {
                key: cfg.SOLVER[key]
                for key in ("OPTIMIZER", "BASE_LR", "LR_MULTIPLIERS", "WEIGHT_DECAY")
            },
        },
    }
