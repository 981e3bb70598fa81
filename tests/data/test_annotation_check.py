"""Annotation files are checked in one pass, whoever opens them."""

import json
import logging
import math
import os
import re
import time

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from ovd_d2.config import add_ovd_config
from ovd_d2.data.build import build_train_loader, check_registered
from ovd_d2.data.datasets.annotation_check import LABELS, check_annotations
from ovd_d2.data.datasets.annotation_files import read_annotations, read_json
from ovd_d2.data.datasets.coco_files import load_coco_file
from ovd_d2.data.datasets.image_labels import load_image_labels
from ovd_d2.data.datasets.lvis import load_lvis_v1
from ovd_d2.data.datasets.record_check import checked_results
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.coco_open_vocab import CheckedCOCOEvaluator
from ovd_d2.proposals.results_file import ResultsFile
from ovd_d2.pseudo_labelling import read_label_file

MASK = {"size": [40, 50], "counts": [0, 100, 1900]}
NAN, INF = float("nan"), float("inf")


def content():
    """Two images with a box each, one with a polygon, and a crowd of run lengths."""
    images = [
        {"id": i, "file_name": f"{i}.png", "coco_url": f"http://x/images/{i}.png", "height": 40,
         "width": 50} for i in (1, 2)
    ]  # fmt: skip
    polygon = [[1, 1, 9, 1, 9, 9]]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [2, 3, 8.5, 8], "area": 64,
         "iscrowd": 0, "segmentation": polygon},
        {"id": 3, "image_id": 2, "category_id": 2, "bbox": [0, 0, 3, 40], "area": 100,
         "iscrowd": 1, "segmentation": MASK},
    ]  # fmt: skip
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(("ant", "bee"))]
    info = {"kind": "ovd_d2 image labels", "image_root": "images"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path


def through_coco_files(path, folder):
    name = f"coco:{folder}/images:{path}"
    check_registered("DATASETS.TRAIN", [name])
    try:
        return load_coco_file(name, str(path), str(folder / "images"))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def through_detectron2s_own(path, folder):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.DATASETS.TRAIN = ("stock",)
    cfg.DATALOADER.NUM_WORKERS = 0
    try:
        register_coco_instances("stock", {}, str(path), str(folder / "images"))
        build_train_loader(cfg)
    finally:
        DatasetCatalog.remove("stock")
        MetadataCatalog.remove("stock")


def through_the_evaluator(path, folder):
    try:
        MetadataCatalog.get("truth").set(json_file=str(path))
        CheckedCOCOEvaluator("truth", use_fast_impl=False)
    finally:
        MetadataCatalog.remove("truth")


def through_lvis(path, folder):
    return load_lvis_v1(str(path), str(folder))


def through_labels(path, folder):
    return load_image_labels(path)


def through_label_tools(path, folder):
    return read_label_file(path)


DOORS = [through_coco_files, through_detectron2s_own, through_the_evaluator, through_lvis,
         through_labels, through_label_tools]  # fmt: skip


def written(folder, change):
    whole = content()
    changed = change(whole)
    path = folder / "labels.json"
    path.write_text(changed if isinstance(changed, str) else json.dumps(whole))
    return path


def on_box(**values):
    return lambda c: c["annotations"][1].update(values)


def on_image(**values):
    return lambda c: c["images"][1].update(values)


BOX = r"annotation 2 has the bbox .*; it must be \[x, y, width, height\]"
MASKS = "annotation 2 has "
CASES = {
    "bbox nan": (on_box(bbox=[1, NAN, 3, 4]), BOX),
    "bbox inf": (on_box(bbox=[1, 2, INF, 4]), BOX),
    "bbox negative": (on_box(bbox=[1, 2, -3, 4]), BOX),
    "bbox of 5": (on_box(bbox=[1, 2, 3, 4, 5]), BOX),
    "bbox of 3": (on_box(bbox=[1, 2, 3]), BOX),
    "bbox text": (on_box(bbox="wide"), BOX),
    "bbox of text": (on_box(bbox=[1, 2, 3, "4"]), BOX),
    "bbox of bools": (on_box(bbox=[1, 2, 3, True]), BOX),
    "bbox dict": (on_box(bbox={"x": 1}), BOX),
    "bbox huge": (on_box(bbox=[1, 2, 3, 10**300]), BOX),
    "bbox deep": (on_box(bbox=[[[[[[1]]]]]]), BOX),
    "category unknown": (on_box(category_id=9), "annotation 2 is of category 9, which"),
    "category 0": (on_box(category_id=0), "annotation 2 is of category 0, which"),
    "category negative": (on_box(category_id=-1), "annotation 2 is of category -1, which"),
    "category null": (on_box(category_id=None), "annotation 2 is of category None, which"),
    "category list": (on_box(category_id=[1]), r"annotation 2 is of category \[1\], which"),
    "image unknown": (on_box(image_id=9), "annotation 2 is of image 9, which"),
    "image null": (on_box(image_id=None), "annotation 2 is of image None, which"),
    "image twice": (on_image(id=1), "image id 1 comes twice"),
    "image id null": (on_image(id=None), "image id None comes twice or is neither"),
    "image id huge": (on_image(id=10**40), "image id a number of more than 20 digits comes twice"),
    "width 0": (on_image(width=0), "image 2 is 0 x 40 pixels large"),
    "width text": (on_image(width="wide"), "image 2 is 'wide' x 40 pixels large"),
    "width negative": (on_image(width=-5), "image 2 is -5 x 40 pixels large"),
    "width missing": (lambda c: c["images"][1].pop("width"), "image 2 lacks the entry 'width'"),
    "no categories": (lambda c: c.update(categories=[]), "has no categories"),
    "category id twice": (lambda c: c["categories"][1].update(id=1), "two categories of the same"),
    "category nameless": (lambda c: c["categories"][1].update(name=3), "name of category 2 is no"),
    "area nan": (on_box(area=NAN), "annotation 2 has the area nan"),
    "iscrowd text": (on_box(iscrowd="no"), "annotation 2 has iscrowd 'no'"),
    "mask text": (on_box(segmentation="all"), MASKS + "the segmentation 'all'"),
    "polygon nan": (on_box(segmentation=[[1, 2, 3, 4, 5, NAN]]), MASKS + "the segmentation"),
    "polygon nan, huge": (on_box(segmentation=[[1, NAN, 10**400, 4, 5, 6]]), MASKS),
    "polygon of text": (on_box(segmentation=[[1, 2, 3, 4, 5, "6"]]), MASKS + "the segmentation"),
    "RLE negative": (on_box(segmentation={"size": [-40, 50], "counts": [0]}), MASKS + "a run-len"),
    "RLE huge": (on_box(segmentation={"size": [10**9, 10**9], "counts": "35<"}), MASKS + "a run-l"),
    "RLE short": (on_box(segmentation={"size": [40, 50], "counts": [3, 5]}), "do not fill its 40"),
    "RLE negative run": (on_box(segmentation={**MASK, "counts": [-5, 2005]}), "do not fill its 40"),
    "RLE of junk": (on_box(segmentation={**MASK, "counts": "\x7f\x7f\x7f"}), "do not fill its 40"),
    "RLE without counts": (on_box(segmentation={"size": [40, 50]}), "do not fill its 40"),
    "keypoints of 2": (on_box(keypoints=[1, 2]), MASKS + "the keypoints"),
    "no mapping": (lambda c: c["annotations"].append(3), "number 4 is 3: not in the expected fo"),
    "deep": (lambda c: "[" * 100_000, "labels.json"),
    "many digits": (lambda c: '{"images": ' + "9" * 5000 + "}", "labels.json"),
    "list": (lambda c: "[]", "labels.json"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_meant_is_refused(folder, door, case):
    change, message = CASES[case]
    path = written(folder, change)
    with pytest.raises(OVDError, match=message) as caught:
        door(path, folder)
    assert "labels.json" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("door", DOORS)
def test_a_sound_file_passes(folder, door, caplog):
    with caplog.at_level(logging.WARNING):
        door(written(folder, lambda c: None), folder)
    assert "left out" not in caplog.text


@pytest.mark.parametrize("nothing", [None, [], {}, ""])
def test_an_object_without_mask_has_none(folder, nothing):
    path = written(folder, on_box(segmentation=nothing))
    assert "segmentation" not in through_coco_files(path, folder)[1]["annotations"][0]


def test_wrong_entries_are_counted_and_the_first_are_named(folder):
    def change(c):
        c["annotations"] = [{**c["annotations"][0], "id": i, "bbox": [1]} for i in range(10, 15)]

    with pytest.raises(OVDError) as caught:
        read_annotations(written(folder, change), None)
    message = str(caught.value)
    assert message.count("has the bbox") == 3 and "annotation 10" in message
    assert "and 2 more of the kind. Correct or remove them." in message


def test_what_is_left_out_is_said_once(folder, caplog):
    def change(c):
        c["annotations"] += [
            {**c["annotations"][0], "id": 4, "bbox": [1, 1, 0, 5]},
            {**c["annotations"][0], "id": 5, "bbox": [1, 1, 5, 0]},
            {**c["annotations"][0], "id": 6, "bbox": [60, 1, 5, 5]},
            {**c["annotations"][1], "id": 7, "segmentation": [[1, 2, 3, 4]]},
            {**c["annotations"][1], "id": 8, "segmentation": [[1, 2, 3, 4], [1, 1, 9, 1, 9, 9]]},
        ]

    path = written(folder, change)
    with caplog.at_level(logging.WARNING):
        records = through_coco_files(path, folder)
    assert len(caplog.records) == 4
    assert "2 boxes have no area and are left out of training, such as annotation 4" in caplog.text
    assert "1 boxes lie outside of their images" in caplog.text
    assert "1 objects are left out: none of their polygons" in caplog.text
    assert "1 objects have a polygon of fewer than three points" in caplog.text
    assert sum(len(record["annotations"]) for record in records) == 7  # as Detectron2: without 7


def test_records_are_detectron2s(folder):
    from detectron2.data.datasets.coco import load_coco_json

    def change(c):
        c["annotations"][0]["keypoints"] = [1, 2, 2, 0, 0, 0]
        c["annotations"][0]["segmentation"] = [[1, 2, 3, 4], [1, 1, 9, 1, 9, 9]]

    path = written(folder, change)
    name = f"coco:{folder}/images:{path}"
    check_registered("DATASETS.TRAIN", [name])
    stock = load_coco_json(str(path), str(folder / "images"), "stock_coco")
    assert DatasetCatalog.get(name) == stock
    ours, theirs = MetadataCatalog.get(name), MetadataCatalog.get("stock_coco")
    assert ours.thing_classes == theirs.thing_classes == ["ant", "bee"]
    assert ours.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id
    assert ours.evaluator_type == "coco" and ours.get("is_novel") is None


def test_categories_may_say_what_is_novel(folder):
    path = written(folder, lambda c: c["categories"][1].update(is_novel=True))
    name = f"coco:{folder}/images:{path}"
    check_registered("DATASETS.TRAIN", [name])
    DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).is_novel == [False, True]


@pytest.mark.parametrize("name", ["coco:", "coco:images", "coco::labels.json", "coco:images:"])
def test_a_part_of_the_name_is_missing(name):
    with pytest.raises(OVDError, match="must be coco:IMAGE_FOLDER:LABELS.json"):
        check_registered("DATASETS.TRAIN", [name])


def test_evaluation_of_files_without_area_crowds_and_ids_from_1(folder):
    """pycocotools would raise for two of them, and never find the object of id 0."""

    def change(c):
        c["annotations"] = [{**a, "id": i} for i, a in enumerate(c["annotations"][:2])]
        for annotation in c["annotations"]:
            del annotation["area"], annotation["iscrowd"]

    path = written(folder, change)
    name = f"coco:{folder}/images:{path}"
    check_registered("DATASETS.TEST", [name])
    DatasetCatalog.get(name)
    evaluator = CheckedCOCOEvaluator(name, distributed=False, use_fast_impl=False)
    evaluator.reset()
    for image_id, box, category in ((1, [1, 1, 9, 9], 0), (2, [2, 3, 10.5, 11], 1)):
        found = Instances((40, 50))
        found.pred_boxes = Boxes(torch.tensor([box]))
        found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([category])
        evaluator.process([{"image_id": image_id}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_users_own_records_are_checked(tmp_path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TRAIN = ("users_own",)
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    MetadataCatalog.get("users_own").thing_classes = ["ant"]
    changes = {"bbox": ([1, 2, NAN, 4], [1, 2, -1, 4], np.array([1, 2, INF, 4]), [1, 2]),
               "category_id": (1, -1, None, 0.5)}  # fmt: skip
    try:
        for key, values in changes.items():
            for value in values:
                wrong = [dict(box), {**box, key: value}]
                record = {"file_name": "a.png", "image_id": 7, "height": 9, "width": 9}
                DatasetCatalog.register(
                    "users_own", lambda r=record, w=wrong: [{**r, "annotations": w}]
                )
                with pytest.raises(
                    OVDError, match=f"data set users_own: annotation 1 of image 7 has .*{key}"
                ):
                    build_train_loader(cfg)
                DatasetCatalog.remove("users_own")
        good = [dict(box), {**box, "bbox": np.array([0, 0, 5, 5]), "bbox_mode": BoxMode.XYXY_ABS}]
        DatasetCatalog.register("users_own", lambda: [{**record, "annotations": good}])
        build_train_loader(cfg)
    finally:
        DatasetCatalog.remove("users_own")
        MetadataCatalog.remove("users_own")


# ---- detections


RESULT = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    "change",
    [{"bbox": [1, 2, NAN, 4]}, {"bbox": [1, 2, -3, 4]}, {"bbox": [1, 2, 3]}, {"bbox": None},
     {"bbox": {}}, {"bbox": "wide"}, {"bbox": [1, 2, 3, 10**300]}, {"score": NAN},
     {"score": "high"}, {"score": INF}, {"image_id": None}, {"image_id": []}, {"image_id": 1.5}],
)  # fmt: skip
def test_results_that_cannot_be_meant(tmp_path, change):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT, {**RESULT, **change}]))
    with pytest.raises(OVDError, match=r"results.json: entry 1 is no result: its"):
        ResultsFile(str(path), "json", image_ids=[1], topk=5)
    with pytest.raises(OVDError, match=r"results.json: entry 1 is no result: its"):
        ResultsFile(str(path), "json", category_ids=(1,), needs_scores=True)


def test_categories_of_results(tmp_path, caplog):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT, {**RESULT, "category_id": 9}]))
    with caplog.at_level(logging.WARNING):
        ResultsFile(str(path), "json", category_ids=(1,), needs_scores=True)
    assert "1 results are of categories that nobody asked for, such as entry 1" in caplog.text
    path.write_text(json.dumps([{**RESULT, "category_id": None}]))
    with pytest.raises(OVDError, match="its category_id is None"):
        ResultsFile(str(path), "json", category_ids=(1,), needs_scores=True)
    assert len(checked_results([{**RESULT, "category_id": None}], "x", scored=True)) == 1


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for read in (read_json, read_label_file, lambda p: read_annotations(p, None)):
        with pytest.raises(OVDError, match="no plain file but a pipe"):
            read(tmp_path / "pipe.json")


# ---- any damage

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@seed(20)
@settings(
    max_examples=120, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    door=st.sampled_from(DOORS), part=st.sampled_from(["images", "annotations", "categories"]),
    key=st.sampled_from(["id", "image_id", "category_id", "bbox", "segmentation", "keypoints",
                         "area", "iscrowd", "file_name", "coco_url", "height", "name", "is_novel",
                         "neg_category_ids", None]),
    value=JUNK,
)  # fmt: skip
def test_any_damage_is_a_sentence_or_harmless(tmp_path, door, part, key, value):
    (tmp_path / "images").mkdir(exist_ok=True)

    def change(whole):
        if key is None:
            whole[part] = value
        else:
            whole[part][-1][key] = value

    path = written(tmp_path, change)
    message = "labels.json"
    try:
        door(path, tmp_path)
    except OVDError as error:
        message = str(error)
    assert re.search(r"labels\.json|stock|folder", message)


@seed(21)
@settings(max_examples=80, deadline=None)
@given(key=st.sampled_from(["image_id", "bbox", "score", "category_id"]), value=JUNK)
def test_results_are_checked_or_usable(key, value):
    try:
        (entry,) = checked_results([{**RESULT, key: value}], "x", scored=True, category_ids={1})
    except OVDError:
        return
    assert all(math.isfinite(number) for number in (*entry["bbox"], entry["score"]))


def test_a_million_boxes_take_seconds():
    """A fortieth of LVIS's training set, with its 60 numbers per polygon."""
    polygon = [[float(i % 40) for i in range(60)]]
    images = [{"id": i, "file_name": "x", "height": 40, "width": 50} for i in range(10_000)]
    annotations = [
        {"id": i, "image_id": i % 10_000, "category_id": 1, "bbox": [1.5, 2.5, 3.0, 4.0],
         "area": 12.0, "segmentation": polygon} for i in range(30_000)
    ]  # fmt: skip
    whole = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    start = time.process_time()
    check_annotations(whole, "x")
    check_annotations(whole, "x", LABELS)
    assert time.process_time() - start < 4


def test_compressed_masks_are_read_as_pycocotools_reads_them(folder):
    rng = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 1):
        pixels = np.asfortranarray((rng.random((40, 50)) < share).astype(np.uint8))
        mask = mask_utils.encode(pixels)
        mask["counts"] = mask["counts"].decode()
        read_annotations(written(folder, on_box(segmentation=mask)), None)
        mask["counts"] = mask["counts"][:-1] or "0"
        with pytest.raises(OVDError, match="do not fill"):
            read_annotations(written(folder, on_box(segmentation=mask)), None)
