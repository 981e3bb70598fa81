"""Files of image labels: as a data set, and as target rows of the mapper."""

import importlib.util
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_files import NAMES, write_labels
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.build import build_train_loader, check_registered
from ovd_d2.data.datasets.image_labels import load_image_labels, register_image_labels
from ovd_d2.data.mappers.class_alignment import class_map
from ovd_d2.data.mappers.detection import OpenVocabDatasetMapper, build_mapper, read_image
from ovd_d2.data.prefetch import read_record as read_for_regions
from ovd_d2.errors import OVDError
from ovd_d2.region_store import RegionStoreWriter, StoreFacts
from ovd_d2.structures import (
    PartialMasks,
    RegionEmbeddings,
    Supervision,
    is_box_supervised,
    rows_with,
)

# ruff: noqa: NPY002 (Detectron2's augmentations draw from the global generator)

LABEL, BOX, REGION = Supervision.IMAGE_LABEL, Supervision.BOX, Supervision.TEACHER_REGION
DIM = 4


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 3
    return cfg


def changed(path, change):
    """The file after ``change`` of its content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_records(tmp_path):
    labels = load_image_labels(write_labels(tmp_path))
    assert labels.names == NAMES
    assert [r["image_id"] for r in labels.records] == [1, 2, 3, 4, 5, 6]
    record = labels.records[1]
    assert record["file_name"] == str(tmp_path / "pictures/1.png")
    assert (record["height"], record["width"]) == (48, 64)
    (annotation,) = record["annotations"]
    assert annotation.keys() == {"bbox", "bbox_mode", "category_id", "supervision"}
    assert annotation["category_id"] == 1 and annotation["supervision"] == 1
    assert type(annotation["supervision"]) is int
    assert annotation["bbox_mode"] == BoxMode.XYWH_ABS


def test_classes_are_in_the_order_of_the_file(tmp_path):
    path = changed(write_labels(tmp_path), lambda c: c["categories"].reverse())
    labels = load_image_labels(path)
    assert labels.names == NAMES[::-1]
    assert [r["annotations"][0]["category_id"] for r in labels.records] == [2, 1, 0, 2, 1, 0]


@pytest.mark.parametrize("absolute", [True, False])
def test_where_images_are(tmp_path, absolute, monkeypatch):
    path = write_labels(tmp_path / "here")
    root = str(tmp_path / "here/pictures") if absolute else "../here/pictures"
    (tmp_path / "there").mkdir()
    moved = path.rename(tmp_path / "there/labels.json")
    changed(moved, lambda c: c["info"].update(image_root=root))
    monkeypatch.chdir(tmp_path / "there")
    for name in (moved, "labels.json"):
        records = load_image_labels(name).records
        assert read_image(records[0]["file_name"], "RGB").shape == (48, 64, 3)


def test_labels_without_a_box_are_counted(tmp_path, caplog):
    def change(content):
        del content["annotations"][0]["bbox"]
        content["annotations"][1]["bbox"] = None
        content["annotations"][2]["bbox"][2] = 0
        content["annotations"].append({**content["annotations"][3], "category_id": 10, "id": 99})
        del content["annotations"][-1]["bbox"]  # image 4 has another label, with a box
        content["images"].append({**content["images"][0], "id": 50})  # no label at all

    path = changed(write_labels(tmp_path), change)
    with caplog.at_level(logging.WARNING):
        records = load_image_labels(path).records
    assert [r["image_id"] for r in records] == [4, 5, 6]
    assert [len(r["annotations"]) for r in records] == [1, 1, 1]
    assert "4 of 7 labels have no box" in caplog.text and "4 of 7 images" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_image_labels(write_labels(tmp_path / "whole"))
    assert not caplog.records


def test_a_record_knows_nothing_of_the_others(tmp_path):
    """With a map of all ids in each, 1.4 million records would not fit into any memory."""
    few = load_image_labels(write_labels(tmp_path / "few_", 3)).records
    many = load_image_labels(write_labels(tmp_path / "many", 300)).records
    sizes = [len(pickle.dumps(records[1], -1)) for records in (few, many)]
    assert sizes[0] == sizes[1]
    assert sizes[0] - len(few[1]["file_name"]) < 260


BAD_BOX = "annotation 3 has the bbox .*; it must be"
BAD = [
    (lambda c: c.pop("info"), "lacks the entry 'info'"),
    (lambda c: c["info"].update(kind="coco"), "no file of image labels.*'coco'.*ovd pseudo-label"),
    (lambda c: c["info"].pop("kind"), "no file of image labels"),
    (lambda c: c["info"].update(image_root=3), "not in the expected format"),
    (lambda c: c.pop("categories"), "lacks the entry 'categories'"),
    (lambda c: c.update(categories=[]), "has no categories"),
    (lambda c: c["categories"][0].update(name=""), "name of category 10 is no text"),
    (lambda c: c["categories"][0].update(id=20), "two categories of the same id"),
    (lambda c: c["annotations"][2].update(category_id=7), "annotation 3 is of category 7, which"),
    (lambda c: c["annotations"][2].update(image_id=70), "annotation 3 is of image 70, which"),
    (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), BAD_BOX),
    (lambda c: c["annotations"][2].update(bbox=[1, 2, 3, float("nan")]), BAD_BOX),
    (lambda c: c["annotations"][2].update(bbox=[1, 2, 3, float("inf")]), BAD_BOX),
    (lambda c: c["annotations"][2].update(bbox=[1, 2, 3, "4"]), BAD_BOX),
    (lambda c: c["annotations"][2].update(bbox={}), BAD_BOX),
    (lambda c: c["annotations"][2].pop("image_id"), "lacks the entry 'image_id'"),
    (lambda c: c["annotations"].append(3), "not in the expected format"),
    (lambda c: c["annotations"].clear(), "holds no image with annotations"),
    (lambda c: c["images"].clear(), "is of image 1, which"),
    (lambda c: c["images"][1].update(id=1), "image id 1 comes twice"),
    (lambda c: c["images"][1].update(id=1.5), "image id 1.5 comes twice or is neither"),
    (lambda c: c["images"][1].update(height=0), "image 2 is 64 x 0 pixels"),
    (lambda c: c["images"][1].update(width=None), "image 2 is None x 48 pixels"),
    (lambda c: c["images"][1].update(file_name=""), "image 2 has no file_name"),
    (lambda c: c["info"].update(image_root="elsewhere"), "image folder .*elsewhere is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_files_are_refused_in_one_sentence(tmp_path, change, message):
    path = changed(write_labels(tmp_path), change)
    with pytest.raises(OVDError, match=message) as caught:
        load_image_labels(path)
    assert (
        "\n" not in str(caught.value) and "labels.json" in str(caught.value) or "folder" in message
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b"null", b"{}"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    with pytest.raises(OVDError, match=r"labels\.json"):
        load_image_labels(path)
    with pytest.raises(OVDError, match=r"nowhere\.json is missing"):
        load_image_labels(tmp_path / "nowhere.json")
    with pytest.raises(OVDError, match="is missing"):
        load_image_labels(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    where=st.sampled_from(["info", "images", "categories", "annotations"]), value=VALUES,
    key=st.sampled_from(["id", "image_id", "category_id", "bbox", "file_name", "height", "name",
                         "image_root", "kind", "dataset", None]),
)  # fmt: skip
def test_any_damage_is_a_sentence_or_harmless(tmp_path, where, value, key):
    path = tmp_path / "labels.json"
    if not (tmp_path / "pictures").exists():
        write_labels(tmp_path, 2)
        path.rename(tmp_path / "whole.json")
    content = json.loads((tmp_path / "whole.json").read_text())
    part = content[where] if where == "info" else content[where][0]
    if key is None:
        content[where] = value
    else:
        part[key] = value
    path.write_text(json.dumps(content))
    try:
        labels = load_image_labels(path)
    except OVDError:
        return
    for record in labels.records:
        for annotation in record["annotations"]:
            assert 0 <= annotation["category_id"] < len(labels.names)
            assert np.isfinite(annotation["bbox"]).all() and min(annotation["bbox"][2:]) > 0


def test_named_in_the_config(cfg, tmp_path):
    path = write_labels(tmp_path)
    cfg.DATASETS.TRAIN = (f"labels:{path}",)
    assert not register_image_labels("coco_2017_train")
    batch = next(iter(build_train_loader(cfg)))
    for sample in batch:
        targets = sample["instances"]
        assert targets.supervision.tolist() == [LABEL]
        assert targets.supervision.dtype == torch.int64
        assert targets.gt_classes.tolist() == [(sample["image_id"] - 1) % 3]
        assert not is_box_supervised(targets)
    assert MetadataCatalog.get(f"labels:{path}").thing_classes == list(NAMES)
    with pytest.raises(OVDError, match=r"DATASETS.TRAIN names the dataset 'lables:x'"):
        check_registered("DATASETS.TRAIN", ["lables:x"])
    cfg.DATASETS.TRAIN = (f"labels:{tmp_path}/nowhere.json",)
    with pytest.raises(OVDError, match=r"nowhere\.json is missing.*section 'Image labels'"):
        build_train_loader(cfg)


def test_the_readme_has_the_section():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "datasets/README.md").read_text()
    assert "## Image labels\n" in text


# ---- rows of the mapper


def record(tmp_path, kinds, image_id=1, **changes):
    """An image 64 x 48 with one annotation per kind; None: an annotation without the key."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    annotations = []
    for i, kind in enumerate(kinds):
        x, y, w, h = 4 + 5 * i, 6, 20, 30
        one = {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i}
        if kind is not None:
            one["supervision"] = int(kind)
        if kind != LABEL:
            one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append(one)
    return {"file_name": str(tmp_path / "image.png"), "image_id": image_id, "width": 64,
            "height": 48, "annotations": annotations, **changes}  # fmt: skip


def targets_of(cfg, sample):
    return build_mapper(cfg, is_train=True)(sample)["instances"]


@pytest.mark.parametrize("masks", [False, True])
def test_without_tags_nothing_changes(cfg, tmp_path, masks):
    cfg.MODEL.MASK_ON = masks
    targets = targets_of(cfg, record(tmp_path, [None, None]))
    assert set(targets.get_fields()) == {"gt_boxes", "gt_classes"} | (
        {"gt_masks"} if masks else set()
    )


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("kinds", [[LABEL, None, LABEL], [None, BOX, LABEL], [BOX, BOX], [LABEL]])
def test_boxes_and_labels_on_one_image(cfg, tmp_path, kinds, mask_format):
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    targets = targets_of(cfg, record(tmp_path, kinds)).to("cpu")
    order = sorted(range(len(kinds)), key=lambda i: kinds[i] == LABEL)
    assert targets.gt_classes.tolist() == order
    assert targets.supervision.tolist() == [int(kinds[i] or BOX) for i in order]
    expected = [[8 + 10 * i, 12, 48 + 10 * i, 72] for i in order]
    torch.testing.assert_close(targets.gt_boxes.tensor, torch.tensor(expected).float())
    boxed = rows_with(targets, BOX)
    if len(boxed):
        assert not isinstance(boxed.gt_masks, PartialMasks)
        assert len(boxed.gt_masks) == len(boxed)
    else:
        assert not targets.has("gt_masks")
    if LABEL in kinds and len(boxed):
        with pytest.raises(OVDError, match="no mask"):
            targets.gt_masks.crop_and_resize(targets.gt_boxes.tensor, 7)


def store_of(folder, image_ids, name="tiny"):
    boxes = torch.tensor([[0.0, 0, 30, 20], [10, 10, 60, 40]])
    facts = StoreFacts.for_dataset(
        name, image_ids, encoder_id="teacher@1", dim=DIM, crop_rule="1x", proposals="gt"
    )
    embeddings = torch.nn.functional.normalize(torch.ones(2, DIM), dim=1).half()
    with RegionStoreWriter(folder, facts) as writer:
        for image_id in image_ids:
            writer.append(image_id, RegionEmbeddings(boxes, embeddings))
    return str(folder)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kinds", [[LABEL, None], [LABEL], [None], []])
def test_labels_and_teacher_regions_on_one_image(cfg, tmp_path, kinds, masks):
    cfg.MODEL.MASK_ON = masks
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATASETS.REGION_STORE = store_of(tmp_path / "store", [1])
    targets = targets_of(cfg, record(tmp_path, kinds))
    expected = sorted(int(kind or BOX) for kind in kinds) + [REGION] * 2
    assert targets.supervision.tolist() == expected
    assert targets.teacher_embedding.shape == (len(kinds) + 2, DIM)
    assert not targets.teacher_embedding[: len(kinds)].any()
    assert targets.teacher_embedding[len(kinds) :].all()
    assert targets.gt_classes.tolist()[len(kinds) :] == [-1, -1]
    if masks and None in kinds:
        assert len(targets.gt_masks) == len(targets)
        assert isinstance(rows_with(targets, BOX).gt_masks, BitMasks)
        assert isinstance(rows_with(targets, LABEL).gt_masks, PartialMasks) == (LABEL in kinds)
    assert is_box_supervised(targets) == (kinds != [LABEL])


@pytest.mark.parametrize("masks", [False, True])
def test_labels_follow_crops(cfg, tmp_path, masks):
    """Boxes of labels are clipped; an image that loses its labels is no background."""
    if masks:
        pytest.importorskip("shapely")
    cfg.MODEL.MASK_ON = masks
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [0.4, 0.4]
    mapper = build_mapper(cfg, is_train=True)
    lost, both = 0, 0
    for seed in range(30):
        np.random.seed(seed)
        sample = mapper(record(tmp_path, [LABEL]))
        if sample is None:
            lost += 1
        else:
            boxes = sample["instances"].gt_boxes
            assert len(boxes) == 1 and boxes.nonempty().all()
            height, width = sample["image"].shape[1:]
            assert boxes.tensor.min() >= 0
            assert boxes.tensor[0, 2] <= width and boxes.tensor[0, 3] <= height
        np.random.seed(seed)
        targets = mapper(record(tmp_path, [BOX, LABEL]))["instances"]
        assert targets.supervision.tolist() in ([BOX, LABEL], [BOX], [LABEL], [])
        both += len(targets) == 2
    assert 0 < lost < 30 and both


def test_an_image_of_crowds_has_no_rows(cfg, tmp_path):
    sample = record(tmp_path, [None])
    sample["annotations"][0]["iscrowd"] = 1
    for jitter in (False, True):
        cfg.INPUT.SCALE_JITTER.ENABLED = cfg.MODEL.MASK_ON = jitter
        if jitter and importlib.util.find_spec("shapely") is None:
            continue
        assert len(targets_of(cfg, sample)) == 0


@pytest.mark.parametrize("kind", [2, 7, "label"])
def test_a_strange_tag_is_refused(cfg, tmp_path, kind):
    sample = record(tmp_path, [None])
    sample["annotations"][0]["supervision"] = kind
    with pytest.raises(OVDError, match=r"image\.png has supervision"):
        targets_of(cfg, sample)


def test_a_store_for_label_files(cfg, tmp_path):
    path = write_labels(tmp_path / "all")
    cfg.DATASETS.TRAIN = (f"labels:{path}",)
    cfg.DATASETS.REGION_STORE = store_of(tmp_path / "same", range(1, 7), "other")
    assert len(next(iter(build_train_loader(cfg)))) == 2  # the very images
    cfg.DATASETS.REGION_STORE = store_of(tmp_path / "few", range(1, 6), "other")
    with pytest.raises(OVDError, match="no regions of 1 of the 6 images .*, such as image 6"):
        build_train_loader(cfg)
    # More images than are labelled: only if the file says that the ids are of that data set.
    cfg.DATASETS.REGION_STORE = store_of(tmp_path / "more", range(1, 9), "other")
    with pytest.raises(OVDError, match="built for data set other"):
        build_train_loader(cfg)
    path = write_labels(tmp_path / "said")
    changed(path, lambda c: c["info"].update(dataset="other"))
    cfg.DATASETS.TRAIN = (f"labels:{path}",)
    assert next(iter(build_train_loader(cfg)))[0]["instances"].has("teacher_embedding")


def test_a_store_needs_image_ids(cfg, tmp_path):
    sample = record(tmp_path, [None])
    del sample["image_id"]
    DatasetCatalog.register("without_ids", lambda: [sample])
    try:
        cfg.DATASETS.TRAIN = ("without_ids",)
        cfg.DATASETS.REGION_STORE = store_of(tmp_path / "store", [1])
        with pytest.raises(OVDError, match="without_ids has no image_id"):
            build_train_loader(cfg)
    finally:
        DatasetCatalog.remove("without_ids")


# ---- classes


@pytest.fixture
def named(cfg, tmp_path):
    """An open-vocabulary config on labels of green, red and blue."""
    cfg.DATASETS.TRAIN = (f"labels:{write_labels(tmp_path)}",)
    cfg.MODEL.ROI_HEADS.NAME = "OpenVocabROIHeads"
    check_registered("DATASETS.TRAIN", cfg.DATASETS.TRAIN)
    return cfg


def test_classes_are_those_of_the_vocabulary(named):
    named.MODEL.OPEN_VOCAB.VOCABULARY = "red,green,yellow,blue"
    assert class_map(named) == [1, 0, 3]
    for _, sample in zip(range(6), (s for b in build_train_loader(named) for s in b)):
        name = NAMES[(sample["image_id"] - 1) % 3]
        place = ["red", "green", "yellow", "blue"].index(name)
        assert sample["instances"].gt_classes.tolist() == [place]
    assert OpenVocabDatasetMapper(named, False).class_map is None


@pytest.mark.parametrize("vocabulary", ["", "green,red,blue", "green,red,blue,yellow"])
def test_classes_that_are_in_place_cost_nothing(named, vocabulary):
    named.MODEL.OPEN_VOCAB.VOCABULARY = vocabulary
    assert class_map(named) is None


def test_classes_that_the_vocabulary_lacks_are_named(named):
    named.MODEL.OPEN_VOCAB.VOCABULARY = "red,yellow"
    with pytest.raises(OVDError, match=r"DATASETS\.TRAIN labels:.* 'green', 'blue', which") as e:
        build_train_loader(named)
    assert "MODEL.OPEN_VOCAB.VOCABULARY" in str(e.value) and "\n" not in str(e.value)


def test_other_models_keep_their_classes(named):
    named.MODEL.OPEN_VOCAB.VOCABULARY = "red,yellow"
    named.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    assert class_map(named) is None
    named.MODEL.ROI_HEADS.NAME = "NobodyKnowsThem"
    assert class_map(named) is None


def test_data_without_names_keep_their_classes(named, tmp_path):
    DatasetCatalog.register("nameless", lambda: [record(tmp_path, [None])])
    try:
        named.DATASETS.TRAIN = ("nameless",)
        named.MODEL.OPEN_VOCAB.VOCABULARY = "red,yellow"
        assert class_map(named) is None
        named.DATASETS.TRAIN = ()
        assert class_map(named) is None
    finally:
        DatasetCatalog.remove("nameless")


def test_regions_keep_their_missing_class(named, tmp_path):
    named.DATASETS.REGION_STORE = store_of(tmp_path / "store", range(1, 7))
    named.MODEL.OPEN_VOCAB.VOCABULARY = "red,green,yellow,blue"
    sample = next(iter(build_train_loader(named)))[0]
    assert sample["instances"].gt_classes.tolist()[1:] == [-1, -1]


def test_one_data_set_has_one_list_of_classes(cfg, tmp_path):
    first, second = (
        write_labels(tmp_path / "a"),
        write_labels(tmp_path / "b", names=("x", "y", "z")),
    )
    cfg.DATASETS.TRAIN = (f"labels:{first}", f"labels:{second}")
    with pytest.raises(OVDError, match=r"different classes.*DATASETS\.SOURCES"):
        build_train_loader(cfg)


# ---- EXIF


def turned_image(folder, orientation):
    """A jpeg 64 x 48 as stored with its EXIF orientation, and what viewers show of it."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[8:24, 4:36] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    (folder / "pictures").mkdir()
    Image.fromarray(pixels).save(folder / "pictures/turned.jpg", exif=exif, quality=95)
    turn = {1: lambda p: p, 3: lambda p: np.rot90(p, 2), 6: lambda p: np.rot90(p, -1),
            8: np.rot90, 5: lambda p: p.transpose(1, 0, 2)}[orientation]  # fmt: skip
    return turn(pixels)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_labels_regions_and_training_see_the_same_frame(cfg, tmp_path, orientation):
    shown = turned_image(tmp_path, orientation)
    rows, columns = np.nonzero(shown[..., 0])
    x, y = int(columns.min()), int(rows.min())
    box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
    height, width = shown.shape[:2]
    image = {"id": 1, "file_name": "turned.jpg", "height": height, "width": width}
    label = {"id": 1, "image_id": 1, "category_id": 10, "bbox": box}
    content = {"info": {"kind": "ovd_d2 image labels", "image_root": "pictures"}, "images": [image],
               "categories": [{"id": 10, "name": "white"}], "annotations": [label]}  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(content))
    (made,) = load_image_labels(tmp_path / "labels.json").records

    def inside_and_outside(pixels, box):
        x0, y0, x1, y1 = (round(v) for v in box)
        inside = np.zeros(pixels.shape[:2], dtype=bool)
        inside[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = True
        outside = np.ones(pixels.shape[:2], dtype=bool)
        outside[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = False
        return pixels[inside].mean(), pixels[outside].mean()

    seen = read_for_regions(made).permute(1, 2, 0).numpy()
    assert seen.shape == shown.shape
    xyxy = [x, y, x + box[2], y + box[3]]
    white, black = inside_and_outside(seen, xyxy)
    assert white > 240 and black < 15
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    for seed in range(4):
        np.random.seed(seed)
        sample = build_mapper(cfg, is_train=True)(made)
        pixels = sample["image"].permute(1, 2, 0).numpy()
        white, black = inside_and_outside(pixels, sample["instances"].gt_boxes.tensor[0].tolist())
        assert white > 240 and black < 15
    # A size in the frame of the file, not of the viewer, is refused instead of trained on.
    if (height, width) != (48, 64):
        with pytest.raises(OVDError, match="48 x 64 pixels, annotated as 64 x 48"):
            build_mapper(cfg, is_train=True)({**made, "height": 48, "width": 64})


def test_no_box_of_the_transform_is_needed(cfg):
    from ovd_d2.data.mappers.target_rows import boxes_in_frame

    boxes, left = boxes_in_frame(torch.zeros(0, 4).double(), T.NoOpTransform(), (3, 4))
    assert boxes.shape == (0, 4) and boxes.dtype == torch.float32 and len(left) == 0
