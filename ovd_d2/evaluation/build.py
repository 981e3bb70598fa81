"""The evaluator of a data set."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.coco_open_vocab import COCOOpenVocabEvaluator
from ovd_d2.evaluation.data_set_classes_only import DataSetClassesOnly
from ovd_d2.evaluation.lvis_open_vocab import LVISOpenVocabEvaluator
from ovd_d2.evaluation.zero_shot_classification import ZeroShotClassificationEvaluator


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Builds what ``DefaultTrainer.build_evaluator`` is asked for.

    The data set's ``evaluator_type`` decides: "lvis", "coco_ovd", "coco", "pascal_voc" or
    "classification". With ``TEST.DISTRACTORS`` detections of other classes do not count.

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


def _evaluator_of(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type == "lvis":
        return LVISOpenVocabEvaluator(
            dataset_name,
            output_dir=output_folder,
            backend=cfg.TEST.LVIS_BACKEND,
            fixed_ap=cfg.TEST.FIXED_AP,
        )
    if evaluator_type == "coco_ovd":
        return COCOOpenVocabEvaluator(dataset_name, output_dir=output_folder)
    if evaluator_type == "coco":
        return COCOEvaluator(dataset_name, output_dir=output_folder, use_fast_impl=False)
    if evaluator_type == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if evaluator_type == "classification":
        metadata = MetadataCatalog.get(dataset_name)
        return ZeroShotClassificationEvaluator(
            metadata.thing_classes, is_novel=metadata.get("is_novel")
        )
    raise OVDError(
        f"Data set '{dataset_name}' has evaluator_type {evaluator_type!r} in its metadata, for "
        "which ovd_d2 has no evaluator: override build_evaluator in your trainer."
    )
