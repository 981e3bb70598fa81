"""Pictures of labelled data."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from own_images import write_coco
from PIL import Image

from ovd_d2.data.named_datasets import register_named_files
from ovd_d2.errors import OVDError
from ovd_d2.visualization.dataset_pictures import draw_samples, plot_class_counts


@pytest.fixture
def dataset(tmp_path):
    path = write_coco(tmp_path)
    name = f"coco:{tmp_path}/images:{path}"
    register_named_files(name)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(("num", "rows"), [(3, 1), (20, 4), (99, 4)])
def test_images_in_rows(tmp_path, dataset, num, rows):
    draw_samples(dataset, tmp_path / "sheet.png", num_images=num)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.height == pytest.approx(rows * 2.4 * 110, abs=2)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == (255, 0, 0)).all(axis=1).any()  # a red circle is in it


def test_no_such_data_set(tmp_path):
    with pytest.raises(OVDError, match="draw_samples names the dataset 'nowhere'"):
        draw_samples("nowhere", tmp_path / "sheet.png")


def test_a_bar_for_each_class(tmp_path):
    plot_class_counts({"a": (3, 1), "b": (0, 2)}, tmp_path / "two.png")
    plot_class_counts({f"class {k}": (k, 0) for k in range(200)}, tmp_path / "many.png")
    two, many = (Image.open(tmp_path / f"{name}.png") for name in ("two", "many"))
    assert many.height > 5 * two.height
