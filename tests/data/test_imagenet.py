"""ImageNet from folders: labels, names, held-out images, and what is refused."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets import imagenet
from ovd_d2.errors import OVDError
from ovd_d2.language.imagenet_names import imagenet1k_names, imagenet1k_synsets

README = Path(__file__).parents[2] / "datasets" / "README.md"
SYNSETS = imagenet1k_synsets()


@pytest.fixture
def folder(tmp_path):
    """Three classes, the second without image."""
    for label, count in ((3, 60), (5, 0), (999, 2)):
        of_class = tmp_path / SYNSETS[label]
        of_class.mkdir()
        for number in range(count):
            (of_class / f"{SYNSETS[label]}_{number}.JPEG").touch()
        (of_class / "notes.txt").touch()
    return tmp_path


def test_labels_are_places_of_synsets(folder, caplog):
    records = imagenet.load_imagenet(folder)
    assert [r["label"] for r in records] == [3] * 60 + [999] * 2
    assert [r["image_id"] for r in records] == list(range(62))
    assert all(Path(r["file_name"]).parent.name == SYNSETS[r["label"]] for r in records)
    assert "images of 2 classes; all 1000 compete" in caplog.text


def test_held_out_and_the_rest_are_all(folder):
    parts = {p: imagenet.load_imagenet(folder, p) for p in ("all", "held out", "rest")}
    names = {part: {r["file_name"] for r in records} for part, records in parts.items()}
    assert names["held out"] | names["rest"] == names["all"]
    assert not names["held out"] & names["rest"]
    assert [r["label"] for r in parts["held out"]] == [3] * 50 + [999] * 2


def test_other_layouts_are_refused(tmp_path, folder):
    with pytest.raises(OVDError, match="nowhere cannot be read .*section 'ImageNet'"):
        imagenet.load_imagenet(tmp_path / "nowhere")
    (folder / "ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(OVDError, match="holds ILSVRC2012_val_00000001.JPEG, which is no class"):
        imagenet.load_imagenet(folder)
    empty = tmp_path / "empty"
    (empty / SYNSETS[0]).mkdir(parents=True)
    with pytest.raises(OVDError, match="holds no image"):
        imagenet.load_imagenet(empty)


def test_names_come_from_open_clip_or_a_file(tmp_path, monkeypatch):
    edited = [f"thing {label}" for label in range(1000)]
    edited[657] = edited[744] = "missile"
    edited[836] = edited[837] = "sunglasses"
    stand_in = ModuleType("open_clip")
    stand_in.IMAGENET_CLASSNAMES = edited
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    names = imagenet1k_names(tmp_path / "classes.txt")
    assert len(set(names)) == 1000 and names[0] == "thing 0"
    assert (names[657], names[744]) == ("missile", "projectile")
    assert (names[836], names[837]) == ("sunglass", "sunglasses")
    (tmp_path / "classes.txt").write_text("\n".join(f"mine {i}" for i in range(1000)))
    assert imagenet1k_names(tmp_path / "classes.txt")[999] == "mine 999"
    (tmp_path / "classes.txt").write_text("one\ntwo")
    with pytest.raises(OVDError, match="classes.txt has 2 names; it needs 1000"):
        imagenet1k_names(tmp_path / "classes.txt")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(OVDError, match="pip install open_clip_torch, or write them into"):
        imagenet1k_names(tmp_path / "other.txt")


@pytest.mark.parametrize("name", imagenet.SPLITS)
def test_registered_and_documented(name):
    metadata = MetadataCatalog.get(name)
    assert name in DatasetCatalog and metadata.evaluator_type == "classification"
    assert Path(metadata.image_root).parts[-2] == "imagenet"
    readme = README.read_text()
    assert f"## {metadata.readme_section}\n" in readme and f"`{name}`" in readme
