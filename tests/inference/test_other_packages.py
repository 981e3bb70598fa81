"""Detections as objects of supervision and fiftyone."""

import sys

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from ovd_d2.errors import OVDError
from ovd_d2.inference import Prediction, to_fiftyone, to_supervision

NAMES = ("cat", "red mug", "größe, 7")


def two(masks=True):
    instances = Instances((100, 200))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 20, 60, 40], [0, 0, 200, 100]]))
    instances.scores = torch.tensor([0.75, 0.5])
    instances.pred_classes = torch.tensor([2, 0])
    if masks:
        instances.pred_masks = torch.zeros(2, 100, 200, dtype=torch.bool)
        instances.pred_masks[0, 25:30, 10:60] = True
    return instances


@pytest.mark.parametrize("masks", [True, False])
def test_supervision(masks):
    supervision = pytest.importorskip("supervision")
    found = to_supervision(two(masks), NAMES)
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, [[10, 20, 60, 40], [0, 0, 200, 100]])
    assert found.confidence.tolist() == [0.75, 0.5] and found.class_id.tolist() == [2, 0]
    assert found.data["class_name"].tolist() == ["größe, 7", "cat"]
    assert found[found.confidence > 0.6].data["class_name"].tolist() == ["größe, 7"]
    if masks:
        assert found.mask.dtype == bool and found.mask.sum(axis=(1, 2)).tolist() == [250, 0]
    else:
        assert found.mask is None
    nothing = to_supervision(two(masks)[torch.tensor([], dtype=torch.long)], NAMES)
    assert len(nothing) == 0 and len(nothing.data["class_name"]) == 0
    merged = supervision.Detections.merge([found, nothing])
    assert len(merged) == 2


def test_supervision_draws_them():
    supervision = pytest.importorskip("supervision")
    scene = np.zeros((100, 200, 3), np.uint8)
    drawn = supervision.LabelAnnotator().annotate(scene.copy(), to_supervision(two(), NAMES))
    assert drawn.shape == scene.shape and drawn.any()


@pytest.mark.parametrize("masks", [True, False])
def test_fiftyone(tmp_path, masks):
    fiftyone = pytest.importorskip("fiftyone")
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    prediction = Prediction(str(tmp_path / "a.png"), np.zeros((100, 200, 3), np.uint8), two(masks))
    sample = to_fiftyone(prediction, NAMES, field="ovd")
    assert isinstance(sample, fiftyone.Sample) and sample.filepath == str(tmp_path / "a.png")
    first, second = sample["ovd"].detections
    assert first.bounding_box == pytest.approx([0.05, 0.2, 0.25, 0.2])
    assert second.bounding_box == pytest.approx([0, 0, 1, 1])
    assert (first.label, first.confidence, second.label) == ("größe, 7", 0.75, "cat")
    if masks:
        assert first.mask.shape == (20, 50) and first.mask[5:10].all() and first.mask.sum() == 250
        assert second.mask.shape == (100, 200) and not second.mask.any()
    else:
        assert first.mask is None


@pytest.mark.parametrize("package", ["supervision", "fiftyone"])
def test_what_is_said_without_the_package(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    prediction = Prediction("a.png", np.zeros((100, 200, 3), np.uint8), two())
    calls = {
        "supervision": lambda: to_supervision(two(), NAMES),
        "fiftyone": lambda: to_fiftyone(prediction, NAMES),
    }
    with pytest.raises(OVDError, match=rf"The package {package} is not installed: pip install"):
        calls[package]()


def test_what_cannot_be_turned():
    pytest.importorskip("supervision")
    with pytest.raises(OVDError, match="names has 2 entries, but a detection is of class 2"):
        to_supervision(two(), NAMES[:2])
    with pytest.raises(OVDError, match="Label maps are no detections"):
        to_supervision(torch.zeros(3, 4, 4), NAMES)


def test_fiftyone_needs_a_file():
    pytest.importorskip("fiftyone")
    prediction = Prediction("image 1", np.zeros((100, 200, 3), np.uint8), two())
    with pytest.raises(OVDError, match="image 1 is no file"):
        to_fiftyone(prediction, NAMES)
