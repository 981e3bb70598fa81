"""Drawings: what is chosen, what counts as right, and what bad files say."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from ovd_d2.errors import OVDError
from ovd_d2.visualization import training_plots as visualize
from ovd_d2.visualization.training_plots import Boxes, draw_comparison, plot_loss_curves

NAME = "visualize_test_set"


def annotation(category, box):
    return {"category_id": category, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS}


@pytest.fixture
def dataset(tmp_path):
    """Two images; only the second shows the novel category (index 1)."""
    records = []
    for image_id, categories in ((1, [0, 2]), (2, [1, 2])):
        file = tmp_path / f"{image_id}.png"
        Image.fromarray(np.full((64, 64, 3), 40 * image_id, np.uint8)).save(file)
        annotations = [annotation(k, [8 * i + 4, 10, 20, 30]) for i, k in enumerate(categories)]
        records.append({"image_id": image_id, "file_name": str(file), "annotations": annotations})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["a", "b", "c"], is_novel=[False, True, False])
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def predictions(tmp_path, content):
    file = tmp_path / "lvis_instances_results.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return {"model": file}


def result(category_id=2, **changes):
    return {
        "image_id": 2,
        "category_id": category_id,
        "bbox": [4, 10, 20, 30],
        "score": 0.9,
        **changes,
    }


def test_draws_the_images_with_novel_objects(tmp_path, dataset, monkeypatch):
    panels = []
    draw_panel = visualize.draw_panel
    monkeypatch.setattr(
        visualize, "draw_panel", lambda *args: (panels.append(args), draw_panel(*args))
    )
    found = predictions(tmp_path, [result(), result(category_id=3, image_id=1)])
    draw_comparison(NAME, found, tmp_path / "out.png")
    truth, model = panels  # one row (image 2): ground truth and one model
    assert truth[1][0, 0, 0] == 80
    assert truth[2].classes.tolist() == [1, 2]
    assert truth[2].boxes[0].tolist() == [4, 10, 24, 40]
    assert model[2].classes.tolist() == [1]  # dataset id 2 is class 1
    assert model[2].boxes.tolist() == [[4, 10, 24, 40]]
    with Image.open(tmp_path / "out.png") as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in (visualize.BASE_COLOUR, visualize.NOVEL_COLOUR):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(colours.astype(int) - wanted).max(axis=1) < 12).any()


def test_a_model_without_detections_has_an_empty_panel(tmp_path, dataset):
    draw_comparison(NAME, predictions(tmp_path, []), tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "content", ["{", '{"a": 1}', [result(category_id=9)], [{"image_id": 2}], [result(bbox="x")]]
)
def test_bad_predictions_are_named(tmp_path, dataset, content):
    with pytest.raises(OVDError, match=r"lvis_instances_results\.json"):
        draw_comparison(NAME, predictions(tmp_path, content), tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_missing_files_are_named(tmp_path, dataset):
    with pytest.raises(OVDError, match=r"nowhere\.json cannot be read"):
        draw_comparison(NAME, {"model": tmp_path / "nowhere.json"}, tmp_path / "out.png")
    (tmp_path / "2.png").write_bytes(b"not an image")
    with pytest.raises(OVDError, match=r"Cannot use the image .*2\.png"):
        draw_comparison(NAME, predictions(tmp_path, []), tmp_path / "out.png")


def test_no_novel_object(tmp_path, dataset):
    del dataset[1]
    with pytest.raises(OVDError, match="no image with a novel object"):
        draw_comparison(NAME, predictions(tmp_path, []), tmp_path / "out.png")


def test_best_drops_overlapping_boxes_of_any_class():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 50.0]])
    detections = Boxes(boxes, torch.arange(4), torch.tensor([0.5, 0.9, 0.3, 0.4]))
    assert visualize._best(detections, 2).classes.tolist() == [1, 3]
    assert len(visualize._best(None, 2)) == 0


def test_right_needs_name_and_overlap():
    truth = Boxes(torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30.0]]), torch.tensor([0, 1]))
    shown = Boxes(
        torch.tensor([[0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 24, 24.0]]), torch.tensor([0, 1, 1])
    )
    assert visualize._is_right(shown, truth).tolist() == [True, False, False]
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert visualize._is_right(shown, nothing).tolist() == [False] * 3


def test_loss_curves(tmp_path):
    runs = {
        "a": [{"iteration": i, "total_loss": 2.0, "loss_cls": 1.0, "lr": 0.1} for i in (1, 2)],
        "b": [{"iteration": 1, "total_loss": 2.0, "loss_mask": 1.0}],
        "empty": [],
    }
    plot_loss_curves(runs, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 3 * 300  # three panels: total_loss, loss_cls, loss_mask
    with pytest.raises(OVDError, match="No run has recorded a loss"):
        plot_loss_curves({"empty": []}, tmp_path / "none.png")
