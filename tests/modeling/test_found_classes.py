"""Boxes of some classes alone: the others take their share of the softmax and nothing else."""

import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from small_detectors import KINDS, make_batch, make_target
from test_blocked_scoring import SETTINGS, WAYS, detector

from ovd_d2.modeling.detection_choice import changed_choice, detection_choice
from ovd_d2.modeling.roi_heads import blocked_scores, blocked_scoring

__all__ = ["detector"]
COUNT = 137  # of 300 classes; two runs of 64 and part of a third
MOST = 40


def plainly(model, batch):
    """Detectron2's own choice among the first columns of the table of all scores."""
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features)
    boxes, scores = model.roi_heads.boxes_and_scores(images, features, proposals)
    scores = [torch.cat([table[:, :COUNT], table[:, -1:]], dim=1) for table in scores]
    sizes = [p.image_size for p in proposals]
    return fast_rcnn_inference(boxes, scores, sizes, 1e-4, 0.5, MOST)[0]


def assert_same(one, two):
    assert len(one) == len(two) > 5
    torch.testing.assert_close(one.scores, two.scores, rtol=3e-6, atol=0)
    assert torch.equal(one.pred_classes, two.pred_classes)
    torch.testing.assert_close(one.pred_boxes.tensor, two.pred_boxes.tensor)


@pytest.mark.parametrize("way", ["softmax", "names alone", "ensemble"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_classes_of_the_full_softmax(detector, monkeypatch, kind, way):
    model = detector(kind, *WAYS[way])
    batch, choice = make_batch([make_target([], [])] * 2), detection_choice(model)
    with torch.no_grad():
        wanted = plainly(model, batch)
        everything = model(batch)
        with changed_choice(choice, 1e-4, MOST, COUNT):
            found = model(batch)
            monkeypatch.setattr(blocked_scoring, "MOST_DENSE_CLASSES", 299)
            monkeypatch.setitem(blocked_scores._BLOCK_BYTES, "cpu", 4 * 20 * 128)
            in_blocks = model(batch)
        assert choice.found_classes is None
        monkeypatch.undo()
        again = model(batch)
    for one, two, three in zip(wanted, found, in_blocks, strict=True):
        assert_same(one, two["instances"])
        assert_same(one, three["instances"])
        assert int(one.pred_classes.max()) < COUNT
    assert SETTINGS[3] > MOST
    for one, two in zip(everything, again, strict=True):
        assert_same(one["instances"], two["instances"])
        assert int(one["instances"].pred_classes.max()) >= COUNT


@pytest.mark.parametrize("count", [1, 64, 300])
def test_one_class_a_whole_run_and_all(detector, monkeypatch, count):
    model = detector("fpn", *WAYS["ensemble"])
    batch, choice = make_batch([make_target([], [])]), detection_choice(model)
    with torch.no_grad():
        with changed_choice(choice, 1e-6, -1):
            everything = model(batch)[0]["instances"]
        with changed_choice(choice, 1e-6, 200, count):
            found = model(batch)[0]["instances"]
            monkeypatch.setattr(blocked_scoring, "MOST_DENSE_CLASSES", 299)
            in_blocks = model(batch)[0]["instances"]
    wanted = everything[everything.pred_classes < count][:200]
    assert_same(wanted, found)
    assert_same(wanted, in_blocks)
