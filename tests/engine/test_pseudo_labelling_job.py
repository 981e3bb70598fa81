"""The whole job in this process: what is written, gone on with, left out and refused."""

import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from tiny_detector import TRAIN, register, write_dataset
from tiny_image_text import tiny_model

from ovd_d2.errors import OVDError
from ovd_d2.jobs import build_region_store, journalled_images
from ovd_d2.jobs import pseudo_label as module
from ovd_d2.jobs.pseudo_label import LabellingSettings, pseudo_label
from ovd_d2.jobs.store_of_labels import LabelStoreSettings, build_store_of_labels
from ovd_d2.proposals.build import build_region_proposer
from ovd_d2.proposals.queries import AskedInWords, class_queries
from ovd_d2.region_store import RegionStore


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    write_dataset(tmp_path / "data", count=6)
    register(tmp_path / "data")
    return DatasetCatalog.get(TRAIN)


class Fake:
    """Boxes and scores by query; knows nothing of "every blue"."""

    name = "fake@1"

    def __init__(self):
        self.asked = []
        self.dies_after = None

    def __call__(self, image, queries):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        self.asked.append(tuple(queries))
        height, width = image.shape[1:]
        one = (torch.tensor([[1.0, 2, width, height]]), torch.tensor([0.9]))
        none = (torch.zeros(0, 4), torch.zeros(0))
        by_query = {"every red": one, "every blue": none}
        low = (one[0] * 0.5, one[1] * 0.1)
        return [by_query.get(query, low) for query in queries]


@pytest.fixture
def fake(monkeypatch):
    detector = Fake()

    def build(spec, vocabulary, category_ids, *, queries, **more):
        if vocabulary is None:
            return AskedInWords(detector, queries or ("all objects",))
        return AskedInWords(detector, class_queries(vocabulary))

    monkeypatch.setattr(module, "build_label_proposer", build)
    return detector


def settings(tmp_path, **changes):
    options = {"detector": "hf:fake", "labels": "dataset", "dataset": TRAIN, **changes}
    return LabellingSettings(out=tmp_path / "out/labels.json", **options)


def content(tmp_path):
    return json.loads((tmp_path / "out/labels.json").read_text())


def test_labels_of_a_data_set(tmp_path, records, fake):
    told = []
    report = pseudo_label(settings(tmp_path), lambda *n: told.append(n))
    found = content(tmp_path)
    labels = {r["image_id"]: {a["category_id"] for a in r["annotations"]} for r in records}
    total = sum(len(classes) for classes in labels.values())
    blue = sum(2 in classes for classes in labels.values())
    assert blue and (report.labels, report.labels_without_box) == (total, blue)
    assert report.boxes == total - blue == len(found["annotations"])
    assert found["info"]["labels_without_box"] == blue
    assert found["categories"] == [
        {"id": 1, "name": "red"}, {"id": 2, "name": "green"}, {"id": 3, "name": "blue"}
    ]  # fmt: skip
    assert [i["id"] for i in found["images"]] == [k for k, v in labels.items() if v - {2}]
    info = found["info"]
    assert (info["kind"], info["detector"]) == ("ovd_d2 image labels", "fake@1")
    assert info["image_root"] == "../data/images" and info["topk"] == 1
    for annotation in found["annotations"]:
        image = next(i for i in found["images"] if i["id"] == annotation["image_id"])
        x, y, w, h = annotation["bbox"]
        if annotation["category_id"] == 1:
            assert (x, y, x + w, y + h) == (1, 2, image["width"], image["height"])
            assert annotation["score"] == pytest.approx(0.9)
        assert annotation["category_id"] - 1 in labels[annotation["image_id"]]
    assert told[0] == (0, 6) and told[-1] == (6, 6)
    assert not (tmp_path / "out/labels.json.parts").exists()


def test_min_score_leaves_images_out(tmp_path, records, fake):
    report = pseudo_label(settings(tmp_path, min_score=0.5))
    found = content(tmp_path)
    assert {a["category_id"] for a in found["annotations"]} == {1}
    assert report.images == len({a["image_id"] for a in found["annotations"]}) < 6
    assert found["info"]["images_without_box"] == 6 - report.images


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, records, fake):
    whole = settings(tmp_path)
    pseudo_label(whole)
    expected = (tmp_path / "out/labels.json").read_bytes()
    asked = list(fake.asked)
    (tmp_path / "out/labels.json").unlink()
    fake.asked, fake.dies_after = [], 3
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(whole)
    assert not (tmp_path / "out/labels.json").exists()
    with open(tmp_path / "out/labels.json.parts/rank0.jsonl", "ab") as file:
        file.write(b"[99, 48, 64, [[")  # a torn line
    with pytest.raises(OVDError, match="made with min_score null, but this run has 0.5"):
        pseudo_label(settings(tmp_path, min_score=0.5))
    fake.dies_after = None
    report = pseudo_label(whole)
    assert report.done == 3 and fake.asked == asked
    assert (tmp_path / "out/labels.json").read_bytes() == expected


def test_a_finished_file_stays_and_is_not_replaced_by_other_settings(tmp_path, records, fake):
    pseudo_label(settings(tmp_path))
    fake.asked = []
    report = pseudo_label(settings(tmp_path))
    assert report.done == 0 and not fake.asked and report.boxes
    with pytest.raises(OVDError, match="was made with topk 1, but this run has 2"):
        pseudo_label(settings(tmp_path, topk=2))
    fake.name = "fake@2"
    with pytest.raises(OVDError, match='made with detector "fake@1"'):
        pseudo_label(settings(tmp_path))
    (tmp_path / "out/labels.json").write_text("{}")
    with pytest.raises(OVDError, match="is no label file"):
        pseudo_label(settings(tmp_path))


def test_objects_can_be_read_as_proposals(tmp_path, records, fake):
    report = pseudo_label(
        settings(tmp_path, boxes="objects", labels="", queries=("every red", "x"))
    )
    found = content(tmp_path)
    assert found["info"]["kind"] == "ovd_d2 proposals"
    assert found["categories"] == [{"id": 1, "name": "object"}]
    assert report.images == 6 and report.labels == 0
    source = build_region_proposer(f"json:{tmp_path / 'out/labels.json'}", records, 9)
    ((boxes, scores),) = source(records[0], None)
    assert source.has_scores and boxes[0].tolist()[:2] == [1, 2] and len(boxes) == 2
    assert scores.tolist() == pytest.approx([0.9, 0.09])


@pytest.mark.parametrize("boxes", ["labels", "objects"])
def test_a_region_store_of_the_boxes(tmp_path, records, fake, monkeypatch, boxes):
    monkeypatch.setattr(
        build_region_store, "build_image_text_model", lambda spec, device: tiny_model()
    )
    labels = "dataset" if boxes == "labels" else ""
    store = tmp_path / "store"
    told = []
    report = pseudo_label(settings(tmp_path, boxes=boxes, labels=labels))
    second = LabelStoreSettings(tmp_path / "out/labels.json", "tiny", store)
    built = build_store_of_labels(second, lambda *n: told.append(n))
    found = RegionStore(store, expected_image_ids=[r["image_id"] for r in records])
    assert len(found) == 6 and found.facts.dataset_name == TRAIN and told[-1] == (6, 6)
    assert built.regions == report.boxes == found.regions_per_image.sum()
    first = content(tmp_path)["annotations"][0]
    x, y, w, h = first["bbox"]
    boxes = found[first["image_id"]].boxes
    assert (boxes - torch.tensor([x, y, x + w, y + h])).abs().sum(dim=1).min() < 1e-3


def test_a_folder_with_a_turned_image(tmp_path, fake, monkeypatch):
    """EXIF orientation 6: stored 64 x 48, shown 48 x 64; boxes and size are those of the latter."""
    monkeypatch.delenv("RANK", raising=False)
    folder = tmp_path / "photos/red"
    folder.mkdir(parents=True)
    picture = Image.new("RGB", (64, 48))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    monkeypatch.setattr(
        build_region_store, "build_image_text_model", lambda spec, device: tiny_model()
    )
    pseudo_label(
        settings(tmp_path, dataset="", images=str(tmp_path / "photos"), vocabulary="red, green",
                 labels="folders")
    )  # fmt: skip
    build_store_of_labels(
        LabelStoreSettings(tmp_path / "out/labels.json", "tiny", tmp_path / "store")
    )
    found = content(tmp_path)
    assert found["images"] == [{"id": 1, "file_name": "turned.jpg", "height": 64, "width": 48}]
    assert found["annotations"][0]["bbox"] == [1, 2, 47, 62]
    assert found["info"]["image_root"] == "../photos/red"
    store = RegionStore(tmp_path / "store")
    assert list(store) == [1] and store.facts.dataset_name.startswith("labels:")
    assert store[1].boxes.tolist() == [[1, 2, 48, 64]]


def test_an_unreadable_image_is_left_out_and_named(tmp_path, records, fake, monkeypatch, caplog):
    with open(records[3]["file_name"], "wb") as file:
        file.write(b"no image")
    with pytest.raises(OVDError, match="1 of 6 images cannot be read"):
        pseudo_label(settings(tmp_path))
    monkeypatch.setattr(journalled_images, "MAX_UNREADABLE", 0.2)
    with caplog.at_level(logging.WARNING):
        report = pseudo_label(settings(tmp_path))
    assert report.unreadable == (records[3]["file_name"],)
    assert records[3]["file_name"] in caplog.text
    assert records[3]["image_id"] not in [i["id"] for i in content(tmp_path)["images"]]


def test_published_boxes_go_through_the_job(tmp_path, records):
    props = tmp_path / "props"
    props.mkdir()
    for record in records[:2]:
        name = record["file_name"].rsplit("/", 1)[-1].split(".")[0]
        boxes = {1: ([[1, 2, 30, 40]], [0.99]), 2: ([[0, 0, 9, 9]], [0.5])}
        (props / f"{name}.pkl").write_bytes(pickle.dumps(boxes))
    pseudo_label(settings(tmp_path, detector=f"mavl:{props}", min_score=0.95))
    found = content(tmp_path)
    assert {a["category_id"] for a in found["annotations"]} <= {1}
    assert {i["id"] for i in found["images"]} <= {1, 2}
    assert found["info"]["labels_without_box"] > 0


def test_a_run_that_finishes_no_image_leaves_nothing_behind(tmp_path, records, fake):
    fake.dies_after = 0
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(settings(tmp_path))
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_plain_file_is_not_opened(tmp_path, records, fake):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out/labels.json")
    with pytest.raises(OVDError, match="--out.*no plain file"):
        pseudo_label(settings(tmp_path))
    (tmp_path / "out/labels.json").unlink()
    assert not fake.asked and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": "dino"}, "--detector dino is unknown"),
        ({"detector": "hf:"}, "--detector hf: is unknown"),
        ({"boxes": "both"}, "--boxes both: use labels or objects"),
        ({"queries": ("x",)}, "--queries are for --boxes objects"),
        ({"boxes": "objects"}, "--labels are for --boxes labels"),
        ({"boxes": "objects", "labels": "", "queries": ("x",), "detector": "json:x"},
         "json: is not asked in words"),
        ({"labels": ""}, r"--labels \(none\) is unknown"),
        ({"config_file": "x.yaml"}, "--config-file is for --detector model"),
        ({"topk": -1}, "--topk -1"),
        ({"dataset": "nonsense"}, "'nonsense', which is not registered"),
        ({"dataset": ""}, "either --dataset NAME or --images"),
        ({"detector": "mavl:nothing"}, "there is no such file or folder"),
        ({"detector": "json:nothing"}, "--detector json:nothing cannot be read"),
        ({"detector": "model:nothing"}, "--detector model:nothing needs"),
        ({"device": "abacus"}, "--device abacus"),
    ],
)  # fmt: skip
def test_bad_settings_leave_nothing_behind(tmp_path, records, changes, message):
    with pytest.raises(OVDError, match=message):
        pseudo_label(settings(tmp_path, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": ""}, "--region-store needs --encoder"),
        ({"crops": "2x"}, "--crops 2x"),
        ({"out": Path(__file__, "store")}, "--region-store.*no folder"),
    ],
)
def test_bad_settings_of_a_store_are_found_before_there_are_labels(tmp_path, changes, message):
    options = {"labels": tmp_path / "none.json", "encoder": "e", "out": tmp_path / "x", **changes}
    with pytest.raises(OVDError, match=message):
        LabelStoreSettings(**options)
