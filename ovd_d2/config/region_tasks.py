"""Keys of the losses on regions: MODEL.REGION_DISTILLATION and MODEL.IMAGE_LABELS."""

from detectron2.config import CfgNode as CN


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    _C = cfg.MODEL.REGION_DISTILLATION = CN()
    # Factor on the loss between region embeddings and those of DATASETS.REGION_STORE; 0: none.
    # ViLD 0.5 with R50; with R152 1.0, and 2.0 for the ensemble.
    _C.WEIGHT = 0.0
    # "l1": summed over D (ViLD); "l1_mean": mean over D (RKD); "l2": squared distance of unit
    # vectors (neither paper's). RKD's 0.15 (COCO) and 0.25 (LVIS) times its hidden 100: 15 and 25.
    _C.LOSS = "l1"
    # Factor on the loss between the similarity matrices of all regions of a batch (RKD's
    # inter-embedding relation); 0: none. RKD's released 0.15 (COCO) and 0.13 (LVIS) times 100.
    _C.RELATION_WEIGHT = 0.0
    # "released" (public code: rows of L1 norm 1, sum) or "paper" (rows of L2 norm 1, sum / M^2).
    _C.RELATION = "released"
    _C = cfg.MODEL.IMAGE_LABELS = CN()
    # Factor on the loss of target rows of IMAGE_LABEL, one pseudo box per label (RKD 0.1); 0: such
    # rows teach nothing.
    _C.WEIGHT = 0.0
