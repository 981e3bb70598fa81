"""State dicts with the keys and shapes of released checkpoints, and made-up values."""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from ovd_d2 import add_ovd_config

CONFIGS = Path(__file__).parents[2] / "configs"
GOLDEN = Path(__file__).parents[1] / "golden" / "rkd" / "state_dict_shapes.json"
SHAPES = json.loads(GOLDEN.read_text())
# Released configuration -> (our recipe, weight transfer)
RECIPES = {
    "LVIS_OVD_Base_RKD": ("rkd/lvis_r50_fpn_rkd.yaml", False),
    "LVIS_OVD_RKD_PIS_WeightTransfer": ("rkd/lvis_r50_fpn_rkd_pis_wt.yaml", True),
    "COCO_OVD_RKD_PIS_WeightTransfer": ("rkd/coco_r50_c4_rkd_pis_wt.yaml", True),
}
CLASSIFIER = "roi_heads.box_predictor.cls_score."


def released(name: str) -> dict[str, torch.Tensor]:
    """A state dict as released under ``name``. Large tensors share memory: half a gigabyte of
    random numbers would be slow; each key has values of its own all the same."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(14_000_000, generator=generator)
    state = {}
    for place, (key, shape) in enumerate(SHAPES[name].items()):
        size = torch.Size(shape).numel()
        state[key] = pool[place : place + size].reshape(shape)
    classes = torch.nn.functional.normalize(state[CLASSIFIER + "zs_weight"], dim=0).clone()
    classes[:, -1] = 0
    state[CLASSIFIER + "zs_weight"] = classes
    counts = torch.randint(0, 2000, (classes.shape[1] - 1,), generator=generator)
    state["roi_heads.box_predictor.freq_weight"] = counts.float() ** 0.5
    return state


def our_config(recipe: str, folder: Path) -> CfgNode:
    """A recipe below configs/ on CPU, with random class embeddings in ``folder``."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file(str(CONFIGS / recipe))
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    table = folder / "embeddings.npy"
    np.save(table, np.random.default_rng(0).normal(size=(len(names), 512)).astype(np.float16))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS = str(table)
    return cfg
