"""The evaluator of a data set."""

import importlib.util
import logging
import math
import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)

from ovd_d2.data.held_out import novel_mask
from ovd_d2.data.model_kind import gives_image_features, reads_captions
from ovd_d2.data.named_datasets import asks_for_phrases
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.class_agnostic import ClassAgnosticEvaluator
from ovd_d2.evaluation.coco_open_vocab import CheckedCOCOEvaluator, COCOOpenVocabEvaluator
from ovd_d2.evaluation.data_set_classes_only import DataSetClassesOnly
from ovd_d2.evaluation.few_shot_segmentation import FewShotSegmentationEvaluator
from ovd_d2.evaluation.linear_probe_evaluator import LinearProbeEvaluator
from ovd_d2.evaluation.lvis_backends import FIXED_AP_DETS_PER_CATEGORY, check_backend
from ovd_d2.evaluation.lvis_open_vocab import LVISOpenVocabEvaluator
from ovd_d2.evaluation.phrase_grounding import PhraseGroundingEvaluator, phrase_targets
from ovd_d2.evaluation.presence import PresenceEvaluator
from ovd_d2.evaluation.referring_expressions import (
    ReferringExpressionEvaluator,
    expression_targets,
)
from ovd_d2.evaluation.semantic_segmentation import OpenVocabSemSegEvaluator
from ovd_d2.evaluation.zero_shot_classification import ZeroShotClassificationEvaluator
from ovd_d2.language.dataset_classes import class_names

logger = logging.getLogger(__name__)

_PANOPTIC_API = (
    "panopticapi", "pip install git+https://github.com/cocodataset/panopticapi.git"
)  # fmt: skip
_CITYSCAPES_SCRIPTS = ("cityscapesscripts", "pip install cityscapesscripts")
# evaluator_type: the packages (module, command) that its evaluators import when they evaluate
EVALUATOR_TYPES: dict[str, tuple[tuple[str, str], ...]] = {
    "lvis": (),
    "coco_ovd": (),
    "coco": (),
    "pascal_voc": (),
    "classification": (),
    "phrase_grounding": (),
    "refexp": (),
    "sem_seg": (),
    "few_shot_sem_seg": (),
    "coco_panoptic_seg": (_PANOPTIC_API,),
    "ade20k_panoptic_seg": (_PANOPTIC_API,),
    "cityscapes_instance": (_CITYSCAPES_SCRIPTS,),
    "cityscapes_sem_seg": (),
    "cityscapes_panoptic_seg": (_PANOPTIC_API, _CITYSCAPES_SCRIPTS),
}
_OF_BOXES = ("lvis", "coco_ovd", "coco", "pascal_voc")


def check_evaluator(cfg: CfgNode, dataset_name: str) -> None:
    """Raises OVDError if :func:`build_evaluator` has nothing that can evaluate ``dataset_name``:
    it is not registered, its type is unknown, or a package is missing. Reads no file."""
    if dataset_name not in DatasetCatalog:
        raise OVDError(
            f"DATASETS.TEST names '{dataset_name}', which is not registered: check the spelling, "
            "or import the module that registers it."
        )
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in EVALUATOR_TYPES:
        raise OVDError(
            f"Data set '{dataset_name}' has evaluator_type {evaluator_type!r} in its metadata, for "
            f"which ovd_d2 has no evaluator: set one of {', '.join(EVALUATOR_TYPES)}, override "
            "build_evaluator in your trainer, or leave the data set out of DATASETS.TEST."
        )
    for module, command in EVALUATOR_TYPES[evaluator_type]:
        if importlib.util.find_spec(module) is None:
            raise OVDError(
                f"Evaluating '{dataset_name}' ({evaluator_type}) needs {module}: run `{command}`, "
                "or leave the data set out of DATASETS.TEST."
            )
    if asks_for_phrases(dataset_name) and not reads_captions(cfg):
        raise OVDError(
            f"'{dataset_name}' asks for phrases of captions, which MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} does not read: leave it out of DATASETS.TEST, or take "
            "GLIP, DetCLIP or MAVL."
        )
    not_detection = evaluator_type in ("classification", "phrase_grounding", "refexp")
    if (not_detection or evaluator_type.endswith("sem_seg")) and cfg.TEST.DISTRACTORS:
        raise OVDError(
            f"TEST.DISTRACTORS is for detectors, but '{dataset_name}' is for {evaluator_type}: set "
            'it to "".'
        )
    for key in ("PRESENCE", "CLASS_AGNOSTIC"):
        if cfg.TEST[key].ENABLED and evaluator_type not in _OF_BOXES:
            raise OVDError(
                f"TEST.{key} is for {', '.join(_OF_BOXES)}, but '{dataset_name}' is for "
                f"{evaluator_type}: set TEST.{key}.ENABLED False."
            )
    if cfg.TEST.LINEAR_PROBE.ENABLED:
        _check_linear_probe(cfg, dataset_name)
    if evaluator_type == "lvis":
        check_backend(cfg.TEST.LVIS_BACKEND)


def _check_linear_probe(cfg: CfgNode, dataset_name: str) -> None:
    if not gives_image_features(cfg):
        raise OVDError(
            f"TEST.LINEAR_PROBE is for MODEL.META_ARCHITECTURE CLIP, not for "
            f"{cfg.MODEL.META_ARCHITECTURE}: set TEST.LINEAR_PROBE.ENABLED False."
        )
    if MetadataCatalog.get(dataset_name).evaluator_type != "classification":
        raise OVDError(
            f"TEST.LINEAR_PROBE is for data sets of labelled images, and '{dataset_name}' is none: "
            "leave it out of DATASETS.TEST, or set TEST.LINEAR_PROBE.ENABLED False."
        )


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Builds what ``DefaultTrainer.build_evaluator`` is asked for.

    The data set's ``evaluator_type`` decides, one of :data:`EVALUATOR_TYPES`: those of Detectron2's
    own train_net.py, "coco_ovd", "classification", "phrase_grounding", "refexp" and
    "few_shot_sem_seg". Where ``DATASETS.NOVEL_NAMES`` or the metadata mark novel classes, base and
    novel ones are reported apart, with "coco" and "sem_seg" as well. Cityscapes is evaluated by its
    own scripts where they are installed and no class is novel. With ``TEST.DISTRACTORS`` detections
    of other classes do not count. With ``TEST.PRESENCE.ENABLED`` a :class:`PresenceEvaluator` comes
    along, with ``TEST.CLASS_AGNOSTIC.ENABLED`` a :class:`ClassAgnosticEvaluator`.

    Args:
        cfg: reads ``OUTPUT_DIR``, ``TEST.LVIS_BACKEND``, ``TEST.FIXED_AP``,
            ``TEST.KEYPOINT_OKS_SIGMAS``, ``TEST.DISTRACTORS``, ``TEST.ABSENT_CLASSES``,
            ``TEST.LINEAR_PROBE``, ``TEST.PRESENCE`` and ``TEST.CLASS_AGNOSTIC``.
        dataset_name: a registered data set.
        output_folder: where predictions go; None for "inference" under ``OUTPUT_DIR``.

    Raises:
        OVDError: see :func:`check_evaluator`.
    """
    check_evaluator(cfg, dataset_name)
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    alone = cfg.TEST.CLASS_AGNOSTIC.ENABLED and cfg.TEST.CLASS_AGNOSTIC.ONLY
    evaluators = [] if alone else _evaluators_of(cfg, dataset_name, output_folder)
    if cfg.TEST.PRESENCE.ENABLED and not alone:
        threshold, is_novel = cfg.TEST.PRESENCE.THRESHOLD, _is_novel(cfg, dataset_name)
        evaluators.append(
            PresenceEvaluator(
                dataset_name, threshold=None if threshold < 0 else threshold, is_novel=is_novel
            )
        )
    if cfg.TEST.CLASS_AGNOSTIC.ENABLED:
        count_empty = MetadataCatalog.get(dataset_name).evaluator_type == "pascal_voc"
        topk = cfg.TEST.CLASS_AGNOSTIC.TOPK
        evaluators.append(ClassAgnosticEvaluator(dataset_name, topk=topk, count_empty=count_empty))
    evaluator = evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
    return DataSetClassesOnly(evaluator, dataset_name) if cfg.TEST.DISTRACTORS else evaluator


def _is_novel(cfg: CfgNode, dataset_name: str) -> tuple[bool, ...] | None:
    """(K,) by ``DATASETS.NOVEL_NAMES`` or the metadata; None if neither says."""
    metadata = MetadataCatalog.get(dataset_name)
    says = any(metadata.get(key) for key in ("is_novel", "novel_classes", "base_classes"))
    if (says or cfg.DATASETS.NOVEL_NAMES) and class_names(metadata) is None:
        DatasetCatalog.get(dataset_name)  # names its classes
    return novel_mask(cfg, dataset_name) or None


def _evaluators_of(cfg: CfgNode, dataset_name: str, output_folder: str) -> list[DatasetEvaluator]:
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.evaluator_type
    if kind == "phrase_grounding":
        return [PhraseGroundingEvaluator(phrase_targets(DatasetCatalog.get(dataset_name)))]
    if kind == "refexp":
        targets = expression_targets(DatasetCatalog.get(dataset_name))
        return [ReferringExpressionEvaluator(targets)]
    is_novel = _is_novel(cfg, dataset_name)
    if kind == "lvis":
        return [_lvis_evaluator(cfg, dataset_name, output_folder, is_novel)]
    if kind == "coco_ovd" or (kind == "coco" and is_novel):
        return [
            COCOOpenVocabEvaluator(
                dataset_name,
                output_dir=output_folder,
                is_novel=is_novel,
                kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
            )
        ]
    if kind == "pascal_voc":
        return [PascalVOCDetectionEvaluator(dataset_name)]
    if cfg.TEST.LINEAR_PROBE.ENABLED:
        probe = cfg.TEST.LINEAR_PROBE
        return [
            LinearProbeEvaluator(
                dataset_name, output_folder, train=probe.TRAIN, validation=probe.VALIDATION
            )
        ]
    if kind == "classification":
        if class_names(metadata) is None:
            DatasetCatalog.get(dataset_name)  # names its classes
        return [ZeroShotClassificationEvaluator(metadata.thing_classes, is_novel=is_novel)]
    if kind.endswith("sem_seg"):
        return [_label_map_evaluator(cfg, dataset_name, output_folder, is_novel)]
    return _stock_evaluators(cfg, dataset_name, output_folder)


def _stock_evaluators(
    cfg: CfgNode, dataset_name: str, output_folder: str
) -> list[DatasetEvaluator]:
    """Those of boxes, masks and panoptic maps that Detectron2's own train_net.py builds."""
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    evaluators: list[DatasetEvaluator] = []
    if kind in ("coco_panoptic_seg", "ade20k_panoptic_seg"):
        evaluators.append(_of_label_maps(cfg, dataset_name, output_folder, None))
    if kind in ("coco", "coco_panoptic_seg", "ade20k_panoptic_seg"):
        evaluators.append(
            CheckedCOCOEvaluator(
                dataset_name,
                output_dir=output_folder,
                use_fast_impl=False,
                kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
            )
        )
    if kind.endswith("panoptic_seg"):
        evaluators.append(COCOPanopticEvaluator(dataset_name, output_folder))
    if kind == "cityscapes_panoptic_seg":
        evaluators.append(CityscapesSemSegEvaluator(dataset_name))
    if kind in ("cityscapes_instance", "cityscapes_panoptic_seg"):
        evaluators.append(CityscapesInstanceEvaluator(dataset_name))
    return evaluators


def _label_map_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str, is_novel: tuple[bool, ...] | None
) -> DatasetEvaluator:
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    if kind == "few_shot_sem_seg":
        return FewShotSegmentationEvaluator(dataset_name)
    # Cityscapes's own scripts know no novel classes.
    own = kind == "cityscapes_sem_seg" and not is_novel
    if own and importlib.util.find_spec(_CITYSCAPES_SCRIPTS[0]) is not None:
        return CityscapesSemSegEvaluator(dataset_name)
    return _of_label_maps(cfg, dataset_name, output_folder, is_novel)


def _of_label_maps(
    cfg: CfgNode, dataset_name: str, output_folder: str, is_novel: tuple[bool, ...] | None
) -> OpenVocabSemSegEvaluator:
    return OpenVocabSemSegEvaluator(
        dataset_name,
        output_dir=output_folder,
        is_novel=is_novel,
        absent=cfg.TEST.ABSENT_CLASSES,
    )


def _lvis_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str, is_novel: tuple[bool, ...] | None
) -> LVISOpenVocabEvaluator:
    evaluator = LVISOpenVocabEvaluator(
        dataset_name,
        output_dir=output_folder,
        backend=cfg.TEST.LVIS_BACKEND,
        fixed_ap=cfg.TEST.FIXED_AP,
        is_novel=is_novel,
    )
    cap = cfg.TEST.DETECTIONS_PER_IMAGE
    images, classes = evaluator.num_images, evaluator.num_classes
    meant = math.ceil(FIXED_AP_DETS_PER_CATEGORY * classes / images)
    meant = min(meant, classes * cfg.MODEL.RPN.POST_NMS_TOPK_TEST)  # more cannot be found
    if cfg.TEST.FIXED_AP and 0 <= cap < meant:
        logger.warning(
            "TEST.FIXED_AP means the %d best detections of each of the %d classes of '%s', but "
            "TEST.DETECTIONS_PER_IMAGE %d lets through fewer over its %d images: APfixed will be "
            "too low; set TEST.DETECTIONS_PER_IMAGE to %d or more, or -1 for all.",
            *(FIXED_AP_DETS_PER_CATEGORY, classes, dataset_name, cap, images, meant),
        )
    return evaluator
