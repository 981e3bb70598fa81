"""A model that learns from a teacher's regions, and the store they come from, must fit."""

import logging

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.data.mixing import read_sources
from ovd_d2.errors import OVDError
from ovd_d2.modeling.classifiers import WeightTransferProjection
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.region_store import RegionStore

logger = logging.getLogger(__name__)


def check_teacher(cfg: CfgNode, model: nn.Module) -> None:
    """Compares ``model`` with the region stores of ``cfg`` before training starts.

    Args:
        cfg: reads ``DATASETS.REGION_STORE`` and ``INPUT.MAPPER``, those of every source if there
            are ``DATASETS.SOURCES``.
        model: a detector, not wrapped by DDP.

    Raises:
        OVDError: the model needs regions and there is no store, or a store is missing, unfinished,
            or made by another encoder than the class embeddings (both are named).
    """
    learner = part_with(model, "needs_teacher_regions")
    needed = learner is not None and learner.needs_teacher_regions
    sources = read_sources(cfg)
    configs = [source.cfg for source in sources] or [cfg]
    if needed and all(_lacks_regions(one) for one in configs):
        raise OVDError(
            "The model learns from a teacher's regions (MODEL.REGION_DISTILLATION), but "
            "DATASETS.REGION_STORE is empty: name a store made with `ovd regions build`."
        )
    for source in sources:
        with source.named_in_errors():
            _check_store(source.cfg, learner if needed else None)
        if needed and _lacks_regions(source.cfg):
            logger.info(
                "Source %r has no DATASETS.REGION_STORE: its batches teach no regions.", source.name
            )
    if not sources:
        _check_store(cfg, learner if needed else None)


def _lacks_regions(cfg: CfgNode) -> bool:
    """Whether no target row can be a teacher's region."""
    return not cfg.DATASETS.REGION_STORE and cfg.INPUT.MAPPER == "OpenVocabDatasetMapper"


def _check_store(cfg: CfgNode, learner: nn.Module | None) -> None:
    """Compares the store of ``cfg``, if there is one, with the part that is to learn from it."""
    if not cfg.DATASETS.REGION_STORE:
        return
    store = RegionStore(cfg.DATASETS.REGION_STORE)
    if learner is not None:
        learner.check_teacher(store.facts.encoder_id)
    else:
        logger.warning(
            "DATASETS.REGION_STORE is %s, but this model does not learn from it: set "
            "MODEL.REGION_DISTILLATION.WEIGHT, or leave the store out to load faster.",
            cfg.DATASETS.REGION_STORE,
        )


def check_weight_transfer(model: nn.Module) -> None:
    """Raises OVDError if a projection of weight transfer would be generated from random numbers.

    Args:
        model: a detector right before training, its weights loaded.
    """
    parts = (part for part in model.modules() if isinstance(part, WeightTransferProjection))
    if any(not part.has_distilled for part in parts):
        raise OVDError(
            "MODEL.OPEN_VOCAB.PROJECTION weight_transfer goes on from a distilled projection, but "
            "none was loaded: set MODEL.WEIGHTS to a checkpoint that was trained with PROJECTION "
            "linear and MODEL.REGION_DISTILLATION."
        )
