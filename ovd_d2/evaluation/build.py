"""The evaluator of a data set."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator

from ovd_d2.data.held_out import novel_mask
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.coco_open_vocab import CheckedCOCOEvaluator, COCOOpenVocabEvaluator
from ovd_d2.evaluation.data_set_classes_only import DataSetClassesOnly
from ovd_d2.evaluation.lvis_open_vocab import LVISOpenVocabEvaluator
from ovd_d2.evaluation.zero_shot_classification import ZeroShotClassificationEvaluator


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Builds what ``DefaultTrainer.build_evaluator`` is asked for.

    The data set's ``evaluator_type`` decides: "lvis", "coco_ovd", "coco", "pascal_voc" or
    "classification". Where ``DATASETS.NOVEL_NAMES`` or the metadata mark novel classes, base and
    novel ones are reported apart, with "coco" as well. With ``TEST.DISTRACTORS`` detections of
    other classes do not count.

    Args:
        cfg: reads ``OUTPUT_DIR``, ``TEST.LVIS_BACKEND``, ``TEST.FIXED_AP`` and
            ``TEST.DISTRACTORS``.
        dataset_name: a registered data set.
        output_folder: where predictions go; None for "inference" under ``OUTPUT_DIR``.

    Raises:
        OVDError: the data set is not registered, or its type has no evaluator here.
    """
    if dataset_name not in DatasetCatalog:
        raise OVDError(
            f"DATASETS.TEST names '{dataset_name}', which is not registered: check the spelling, "
            "or import the module that registers it."
        )
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    evaluator = _evaluator_of(cfg, dataset_name, output_folder)
    return DataSetClassesOnly(evaluator, dataset_name) if cfg.TEST.DISTRACTORS else evaluator


def _is_novel(cfg: CfgNode, dataset_name: str) -> tuple[bool, ...] | None:
    """(K,) by ``DATASETS.NOVEL_NAMES`` or the metadata; None if neither says."""
    metadata = MetadataCatalog.get(dataset_name)
    says = any(metadata.get(key) for key in ("is_novel", "novel_classes", "base_classes"))
    if (says or cfg.DATASETS.NOVEL_NAMES) and metadata.get("thing_classes") is None:
        DatasetCatalog.get(dataset_name)  # names its classes
    return novel_mask(cfg, dataset_name) or None


def _evaluator_of(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    is_novel = _is_novel(cfg, dataset_name)
    if evaluator_type == "lvis":
        return LVISOpenVocabEvaluator(
            dataset_name,
            output_dir=output_folder,
            backend=cfg.TEST.LVIS_BACKEND,
            fixed_ap=cfg.TEST.FIXED_AP,
            is_novel=is_novel,
        )
    if evaluator_type == "coco_ovd" or (evaluator_type == "coco" and is_novel):
        return COCOOpenVocabEvaluator(dataset_name, output_dir=output_folder, is_novel=is_novel)
    if evaluator_type == "coco":
        return CheckedCOCOEvaluator(dataset_name, output_dir=output_folder, use_fast_impl=False)
    if evaluator_type == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if evaluator_type == "classification":
        metadata = MetadataCatalog.get(dataset_name)
        return ZeroShotClassificationEvaluator(metadata.thing_classes, is_novel=is_novel)
    raise OVDError(
        f"Data set '{dataset_name}' has evaluator_type {evaluator_type!r} in its metadata, for "
        "which ovd_d2 has no evaluator: override build_evaluator in your trainer."
    )
