"""A model that learns from a teacher's regions, and the store they come from, must fit."""

import logging

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.errors import OVDError
from ovd_d2.region_store import RegionStore

logger = logging.getLogger(__name__)


def check_teacher(cfg: CfgNode, model: nn.Module) -> None:
    """Compares ``model`` with the region store of ``cfg`` before training starts.

    Args:
        cfg: reads ``DATASETS.REGION_STORE`` and ``INPUT.MAPPER``.
        model: a detector, not wrapped by DDP.

    Raises:
        OVDError: the model needs regions and there is no store, or the store is missing,
            unfinished, or made by another encoder than the class embeddings (both are named).
    """
    heads = getattr(model, "roi_heads", None)
    needed = getattr(heads, "needs_teacher_regions", False)
    if not cfg.DATASETS.REGION_STORE:
        if needed and cfg.INPUT.MAPPER == "OpenVocabDatasetMapper":
            raise OVDError(
                "The model learns from a teacher's regions (MODEL.REGION_DISTILLATION), but "
                "DATASETS.REGION_STORE is empty: name a store made with `ovd regions build`."
            )
        return
    store = RegionStore(cfg.DATASETS.REGION_STORE)
    if needed:
        heads.check_teacher(store.facts.encoder_id)
    else:
        logger.warning(
            "DATASETS.REGION_STORE is %s, but this model does not learn from it: set "
            "MODEL.REGION_DISTILLATION.WEIGHT, or leave the store out to load faster.",
            cfg.DATASETS.REGION_STORE,
        )
