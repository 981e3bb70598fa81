"""Text heads with a large logit scale: what clipping mends, and who says so when it is off."""

import math

import numpy as np
import pytest
import torch
from tiny_detector import register, run_trainer, tiny_config, write_dataset

from ovd_d2.engine import NonFiniteLossError, OpenVocabTrainer

DIM = 16


@pytest.fixture(scope="module")
def text_head(tmp_path_factory):
    """Options of a tiny detector with a text head, from scratch, batch 4, 20 warm-up iterations."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    write_dataset(folder)
    register(folder)
    table = folder / "embeddings.npy"
    np.save(table, np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32))
    return (
        "MODEL.ROI_HEADS.NAME", "OpenVocabROIHeads", "MODEL.OPEN_VOCAB.EMBED_DIM", DIM,
        "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", table, "MODEL.OPEN_VOCAB.LOGIT_SCALE", 100.0,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "SOLVER.IMS_PER_BATCH", 4,
        "SOLVER.WARMUP_ITERS", 20, "SOLVER.STEPS", "()",
    )  # fmt: skip


def clip(kind):
    """Options that limit gradients to 1.0, each parameter's ("norm"), all together ("full_model")
    or each value."""
    return ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind,
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0)  # fmt: skip


def late_loss(cfg, iterations=50):
    """The median loss of the last ten iterations."""
    torch.manual_seed(1)
    losses = []

    class Watched(OpenVocabTrainer):
        def build_hooks(self):
            return super().build_hooks()[:2]  # timing and schedule; nothing is written

        def after_step(self):
            super().after_step()
            losses.append(self.storage.latest()["total_loss"][0])

    Watched(cfg).train()
    assert len(losses) == iterations
    return float(np.median(losses[-10:]))


def test_a_scale_of_100_trains_with_clipping_where_it_fails_without(tmp_path, text_head):
    """As Detectron2's own classifier trains (second line) at a rate that is usual for it."""
    schedule = ("SOLVER.BASE_LR", 0.01, "SOLVER.MAX_ITER", 50, "SEED", 1)
    stock = late_loss(tiny_config(tmp_path, *text_head, *schedule,
                                  "MODEL.ROI_HEADS.NAME", "StandardROIHeads"))  # fmt: skip
    bare = late_loss(tiny_config(tmp_path, *text_head, *schedule))
    clipped = late_loss(tiny_config(tmp_path, *text_head, *schedule, *clip("norm")))
    assert stock < 3 and clipped < 5 < bare, (stock, bare, clipped)


@pytest.mark.parametrize("clipped", ["", "value", "full_model"])
@pytest.mark.parametrize("scale", [None, 1.0, 50.0])
def test_the_remedy_names_logit_scale_and_clipping_where_they_help(
    tmp_path, text_head, scale, clipped
):
    head = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads") if scale is None else (
        "MODEL.OPEN_VOCAB.LOGIT_SCALE", scale)  # fmt: skip

    class Poisoned(OpenVocabTrainer):
        def before_train(self):
            super().before_train()
            self.model.roi_heads.box_predictor.loss_weight = {"loss_cls": math.nan}

    cfg = tiny_config(tmp_path, *text_head, *head, *(clip(clipped) if clipped else ()))
    with pytest.raises(NonFiniteLossError) as caught:
        run_trainer(cfg, trainer_class=Poisoned)
    message = str(caught.value)
    by_norm = clipped == "full_model"
    assert ("SOLVER.CLIP_GRADIENTS.ENABLED True" in message) == (not clipped)
    assert ('SOLVER.CLIP_GRADIENTS.CLIP_TYPE "full_model"' in message) == (not by_norm)
    assert ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE" in message) == by_norm
    assert ("LOGIT_SCALE, which is 50" in message) == (scale == 50.0 and not by_norm)
    assert "SOLVER.BASE_LR" in message and "SOLVER.WARMUP_ITERS" in message
    assert message.endswith("look at those images.")
