"""Images, vocabularies and labels from wherever they are told."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tiny_detector import TRAIN, register, write_dataset

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.pseudo_labelling.label_sources import (
    LabelReader,
    fingerprint,
    load_images,
    load_vocabulary,
)

VOCABULARY = Vocabulary.from_names(["red", "green", "blue cup", "aerosol_can"])


def records(*names):
    return [{"image_id": n, "file_name": f"/d/{name}"} for n, name in enumerate(names, start=1)]


def read(spec, images, **options):
    return LabelReader(images, VOCABULARY, **options).read(spec)


@pytest.fixture
def folder(tmp_path):
    """Images in class folders, and other files."""
    root = tmp_path / "images"
    for name in ("red/b.png", "red/a.PNG", "aerosol.n.02/c.jpg", "n0001/d.jpg", "x/green/e.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(root / name)
    (root / "red/notes.txt").write_text("no image")
    return root


def test_images_of_a_folder_have_stable_ids(folder):
    first = load_images("", str(folder))
    assert [r["image_id"] for r in first] == [1, 2, 3, 4, 5]
    relative = [r["file_name"].removeprefix(f"{folder}/") for r in first]
    assert relative == sorted(relative) and len(relative) == 5
    assert load_images("", str(folder)) == first


def test_images_of_a_data_set_keep_their_ids(tmp_path):
    write_dataset(tmp_path / "data", count=3)
    register(tmp_path / "data")
    found = load_images(TRAIN, "")
    assert [r["image_id"] for r in found] == [1, 2, 3]
    assert DatasetCatalog.get(TRAIN)[0]["file_name"] == found[0]["file_name"]


def test_bad_images(tmp_path, folder):
    for arguments in (("", ""), (TRAIN, str(folder))):
        with pytest.raises(OVDError, match="either --dataset NAME or --images FOLDER"):
            load_images(*arguments)
    with pytest.raises(OVDError, match="there is no such folder"):
        load_images("", str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OVDError, match="holds no image"):
        load_images("", str(tmp_path / "empty"))
    with pytest.raises(OVDError, match="--dataset names the dataset 'nonsense'"):
        load_images("nonsense", "")


def test_vocabulary_and_category_ids(tmp_path):
    vocabulary, ids = load_vocabulary("", "coco_2017_ovd_val")
    assert len(vocabulary) == 65 and ids[:3] == [1, 2, 3] and max(ids) == 90
    assert load_vocabulary("dataset:coco_2017_ovd_val", "")[1] == ids
    assert load_vocabulary("a, b", "coco_2017_ovd_val")[1] == [1, 2]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"categories": [{"id": 9, "name": "b"}, {"id": 4, "name": "a"}]}))
    vocabulary, ids = load_vocabulary(str(path), "")
    assert vocabulary.names == ("a", "b") and ids == [4, 9]
    with pytest.raises(OVDError, match="--images needs --vocab"):
        load_vocabulary("", "")


def test_captions_of_a_jsonl_are_those_of_whole_images(tmp_path, caplog):
    lines = [
        {"file_name": "x/1.jpg", "caption": "Red things"},
        {"file_name": "x/1.jpg", "caption": "two blue cups"},
        {"file_name": "x/1.jpg", "caption": "a green one", "box": [0, 0, 4, 4]},
        {"file_name": "y/1.jpg", "caption": "nothing known"},
        {"file_name": "strange.jpg", "caption": "red"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.WARNING):
        found = read(f"captions:{path}", records("x/1.jpg", "y/1.jpg", "z.jpg"))
    assert found == {1: (0, 2)} and "1 captions of images that are not here" in caplog.text
    path.write_text(json.dumps({"file_name": "1.jpg", "caption": "red"}))
    with pytest.raises(OVDError, match=r"2 images are called 1\.jpg"):
        read(f"captions:{path}", records("x/1.jpg", "y/1.jpg"))


def test_captions_of_a_csv_and_phrases_that_are_no_class(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("file_name,caption\n1.jpg,a red herring\n2.jpg,red\n")
    images = records("1.jpg", "2.jpg")
    assert read(f"captions:{path}", images) == {1: (0,), 2: (0,)}
    assert read(f"captions:{path}", images, other_phrases=["red herring"]) == {2: (0,)}


def test_captions_of_coco(tmp_path):
    annotations = [{"image_id": 2, "caption": "green"}, {"image_id": 9, "caption": ""}]
    images = [{"id": 2, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}]
    content = {"annotations": annotations, "images": images}
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    images = records("a.jpg", "b.jpg")
    assert read(f"captions:{path}", images, dataset="d") == {2: (1,)}  # by id
    assert read(f"captions:{path}", images, folder="/d") == {1: (1,)}  # by name
    for broken in ({"annotations": [{"image_id": 1}]}, {"annotations": 3}, [], {}):
        path.write_text(json.dumps(broken))
        with pytest.raises(OVDError, match=r"captions\.json is no captions file of COCO"):
            read(f"captions:{path}", images, dataset="d")
    path.write_text(json.dumps({"annotations": content["annotations"]}))
    with pytest.raises(OVDError, match="which --images needs"):
        read(f"captions:{path}", images, folder="/d")


def test_labels_of_folders(folder, tmp_path, caplog):
    images = load_images("", str(folder))
    names = {r["image_id"]: r["file_name"].removeprefix(f"{folder}/") for r in images}
    with caplog.at_level(logging.WARNING):
        found = read("folders", images, folder=str(folder))
    assert {names[k]: v for k, v in found.items()} == {
        "red/a.PNG": (0,), "red/b.png": (0,), "aerosol.n.02/c.jpg": (3,), "x/green/e.jpg": (1,),
    }  # fmt: skip
    assert "1 folders are named after no class of the vocabulary, such as n0001" in caplog.text
    (tmp_path / "names.json").write_text('{"n0001": "blue_cups"}')
    found = read("folders", images, folder=str(folder), folder_names=str(tmp_path / "names.json"))
    assert len(found) == 5 and (2,) in found.values()
    (tmp_path / "names.json").write_text('{"n0001": 3}')
    with pytest.raises(OVDError, match="must hold {folder: name}"):
        read("folders", images, folder=str(folder), folder_names=str(tmp_path / "names.json"))


def test_the_name_of_the_root_folder_is_no_label(tmp_path):
    root = tmp_path / "red"
    root.mkdir()
    Image.new("RGB", (8, 6)).save(root / "a.png")
    with pytest.raises(OVDError, match="gives none of the 1 images a label"):
        read("folders", load_images("", str(root)), folder=str(root))


def test_labels_of_a_json(tmp_path):
    path = tmp_path / "l.json"
    path.write_text(json.dumps({"1": ["red", "Green"], "b.jpg": ["blue cups"], "no.jpg": ["red"]}))
    assert read(f"json:{path}", records("a.jpg", "b.jpg")) == {1: (0, 1), 2: (2,)}
    for broken, message in (
        ({"1": ["reed"]}, "label 'reed', which is no class"),
        ({"1": "red"}, "not a list of names"),
        ([], "must hold"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(OVDError, match=message):
            read(f"json:{path}", records("a.jpg"))


def test_labels_of_the_data_set(tmp_path):
    write_dataset(tmp_path / "data", count=4)
    register(tmp_path / "data")
    images = load_images(TRAIN, "")
    vocabulary, _ = load_vocabulary("", TRAIN)
    found = LabelReader(images, vocabulary, dataset=TRAIN).read("dataset")
    for record in images:
        wanted = tuple(sorted({a["category_id"] for a in record["annotations"]}))
        assert found[record["image_id"]] == wanted
    other = LabelReader(images, Vocabulary.from_names(["blue"]), dataset=TRAIN).read("dataset")
    blue = MetadataCatalog.get(TRAIN).thing_classes.index("blue")
    assert set(other) == {k for k, classes in found.items() if blue in classes}
    with pytest.raises(OVDError, match="classes of the annotations of --dataset"):
        LabelReader(images, vocabulary, folder="x").read("dataset")


@pytest.mark.parametrize("spec", ["", "captions", "captions:", "json", "folder", "tags:x"])
def test_unknown_kinds_are_refused(spec):
    with pytest.raises(OVDError, match="is unknown: use captions:FILE"):
        read(spec, records("a.jpg"))


@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.txt"])
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(OVDError, match=name):
        read(f"captions:{tmp_path / name}", records("a.jpg"), dataset="d")


def test_the_fingerprint_tells_images_and_labels_apart():
    one, two = records("a.jpg", "b.jpg"), records("a.jpg", "c.jpg")
    prints = {
        fingerprint(one, None), fingerprint(two, None), fingerprint(one, {1: (0,)}),
        fingerprint(one, {1: (1,)}), fingerprint(one, {2: (1,)}),
    }  # fmt: skip
    assert len(prints) == 5
