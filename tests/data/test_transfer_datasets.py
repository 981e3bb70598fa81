"""Data sets that a trained model is carried over to by its class names alone."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

import ovd_d2
from ovd_d2.language import Vocabulary

README = Path(__file__).parents[2] / "datasets" / "README.md"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("voc_2007_test", "pascal_voc"), ("coco_2017_val", "coco"), ("objects365_v1_val", "coco")],
)
def test_registered_with_an_evaluator(name, kind):
    assert ovd_d2.__version__
    assert name in DatasetCatalog
    assert MetadataCatalog.get(name).evaluator_type == kind
    assert name in README.read_text()


def test_objects365_says_where_its_files_belong():
    metadata = MetadataCatalog.get("objects365_v1_val")
    assert Path(metadata.json_file).parts[-2:] == ("objects365", "objects365_val.json")
    assert Path(metadata.image_root).parts[-2:] == ("objects365", "val")
    assert f"## {metadata.readme_section}\n" in README.read_text()


@pytest.mark.parametrize("name", ["voc_2007_test", "coco_2017_val"])
def test_no_class_is_novel_elsewhere(name):
    vocabulary = Vocabulary.load(f"dataset:{name}")
    assert len(vocabulary) in (20, 80)
    assert not any(vocabulary.is_novel)


def test_class_names_of_a_json_are_read_when_they_are_wanted(tmp_path):
    """As for Objects365, whose names are nowhere but in its json."""
    categories = [{"id": 7, "name": "Sneakers"}, {"id": 2, "name": "Person"}]
    images = [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}]
    content = {"images": images, "annotations": [], "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_coco_instances("like_objects365", {}, str(tmp_path / "a.json"), str(tmp_path))
    try:
        assert Vocabulary.load("dataset:like_objects365").names == ("Person", "Sneakers")
    finally:
        DatasetCatalog.remove("like_objects365")
        MetadataCatalog.remove("like_objects365")
