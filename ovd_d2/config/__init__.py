"""Every configuration key that ovd_d2 adds to Detectron2's defaults, one file per group: its keys
(``add_keys``) and, where values have rules, ``RULES``."""

from detectron2.config import CfgNode as CN

from ovd_d2.config import (
    clip,
    data,
    detclip,
    evaluation,
    glip,
    groupvit,
    huggingface,
    image_branch,
    layers,
    lseg,
    mavl,
    open_vocab,
    region_tasks,
    solver,
    swin,
    text_backbone,
    timm,
    tuning,
)

GROUPS = (
    open_vocab, region_tasks, image_branch, timm, swin, text_backbone, clip, glip, detclip, lseg,
    groupvit, mavl, huggingface, tuning, layers, solver, data, evaluation,
)  # fmt: skip


def add_ovd_config(cfg: CN) -> None:
    """Adds ovd_d2's keys with their defaults to ``cfg``, in place. Safe to call twice."""
    if "OPEN_VOCAB" in cfg.MODEL:
        return
    for group in GROUPS:
        group.add_keys(cfg)
