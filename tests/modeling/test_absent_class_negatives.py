"""Only classes known to be absent are negatives of an image, where a list says which are."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from plain_detclip import plain_losses_of_boxes
from small_detclip import boxes_of, detclip_config, no_boxes, sample, small_detclip
from small_glip import small_glip
from test_detclip import TEXTS, assert_equal_with_gradients, double_boxes, training

from ovd_d2.modeling import DetCLIP
from ovd_d2.structures.class_numbering import mark_numbering, numbering_of


def test_losses_of_detclip(monkeypatch):
    """Of cat, red mug, owl (novel) and zebra crossing; those of the other images of the batch are
    no negatives either."""
    model = training(monkeypatch)
    batch = [
        sample(seed=1, instances=double_boxes(gt_classes=[0, 3]), absent_classes=[1]),
        sample(seed=2, instances=no_boxes(), absent_classes=[]),
        sample(seed=3, instances=double_boxes(gt_classes=[1, 1]), absent_classes=[2, 0]),
        sample(seed=4, instances=double_boxes(gt_classes=[1, 0])),
    ]
    names = [["cat", "zebra crossing"], [], ["red mug", "red mug"], ["red mug", "cat"]]
    hidden = [set(), {*TEXTS}, {"zebra crossing"}, set()]
    wanted = plain_losses_of_boxes(model, batch, names, TEXTS, hidden)
    assert_equal_with_gradients(model, model(batch), wanted)


def test_a_batch_of_which_nothing_is_known_still_has_all_gradients():
    model = small_detclip().train()
    losses = model([sample(instances=no_boxes(), absent_classes=[])])
    sum(losses.values()).backward()
    assert losses["loss_alignment"].item() == 0
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "classes, absent, in_caption",
    [([0, 1], [], {0, 1}), ([0, 0], [2], {0, 2}), ([1, 1], None, {0, 1, 2})],
)
def test_captions_of_glip(monkeypatch, classes, absent, in_caption):
    model = small_glip(monkeypatch)
    model.all_negatives_probability = 1.0
    lists = {} if absent is None else {"absent_classes": torch.tensor(absent, dtype=torch.int64)}
    image = sample(instances=boxes_of(gt_classes=classes), **lists)
    (caption,), _ = model._training_captions([image])
    assert set(caption.phrases()) == {model.vocabulary.names[k] for k in in_caption}


def test_glip_trains_on_an_image_of_which_nothing_is_known(monkeypatch):
    model = small_glip(monkeypatch).train()
    losses = model([sample(instances=no_boxes(), absent_classes=[])])
    assert all(value.isfinite() for value in losses.values())


def test_lists_are_numbered_as_the_boxes():
    """Those of the data set cat, owl, mug where a mapper has not marked the rows as mapped."""
    name = "absent_classes_of_model"
    MetadataCatalog.get(name).thing_classes = ["cat", "owl", "mug"]
    try:
        cfg = detclip_config("mug, owl, emu, cat")
        cfg.DATASETS.TRAIN = (name,)
        model = DetCLIP(cfg)
        unmarked = sample(instances=boxes_of(gt_classes=[1, 1]), absent_classes=[0])
        marked = sample(instances=boxes_of(gt_classes=[1, 1]), absent_classes=torch.tensor([0]))
        mark_numbering(marked["instances"], numbering_of(model.vocabulary.names))
        targets, negatives = model._class_targets([unmarked, marked])
    finally:
        MetadataCatalog.remove(name)
    assert [rows.gt_classes.tolist() for rows in targets] == [[1, 1], [1, 1]]
    assert [known.tolist() for known in negatives] == [[1, 3], [0, 1]]
