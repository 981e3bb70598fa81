"""Regions of a store as target rows: through every augmentation, with and without masks."""

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances, Keypoints, PolygonMasks
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.build import ResumableLoader
from ovd_d2.data.mappers.detection import OpenVocabDatasetMapper, build_mapper
from ovd_d2.data.mappers.target_rows import no_targets
from ovd_d2.data.mappers.teacher_regions import TeacherRegions
from ovd_d2.errors import OVDError
from ovd_d2.region_store import RegionStoreWriter, StoreFacts
from ovd_d2.structures import PartialMasks, RegionEmbeddings, Supervision, rows_with

# ruff: noqa: NPY002 (Detectron2's augmentations draw from the global generator)

HEIGHT, WIDTH, DIM = 48, 64, 6
BOXES = torch.tensor([[4.0, 6, 24, 36], [0, 0, 64, 48], [40, 2, 60, 20], [50, 40, 64, 48]])


def unit(count, seed=0):
    values = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1).half()


def make_store(path, regions: dict, *, name="tiny", encoder_id="teacher@1"):
    facts = StoreFacts.for_dataset(
        name, list(regions), encoder_id=encoder_id, dim=DIM, crop_rule="1x", proposals="gt"
    )
    with RegionStoreWriter(path, facts) as writer:
        for image_id, (boxes, embeddings) in regions.items():
            writer.append(image_id, RegionEmbeddings(boxes, embeddings))
    return path


@pytest.fixture
def store(tmp_path):
    """Image 1 has the four BOXES, image 2 none, image 3 two hundred."""
    many = torch.rand(200, 2, 2).sort(dim=1).values.flatten(1) * 40
    return make_store(
        tmp_path / "store",
        {1: (BOXES, unit(4)), 2: (BOXES[:0], unit(0)), 3: (many, unit(200, 1))},
    )


def record(tmp_path, image_id=1, **changes):
    path = tmp_path / f"{image_id}.png"
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    box = {"bbox": [4, 6, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1,
           "segmentation": [[4, 6, 24, 6, 24, 36, 4, 36]]}  # fmt: skip
    return {"file_name": str(path), "image_id": image_id, "width": WIDTH, "height": HEIGHT,
            "annotations": [box], **changes}  # fmt: skip


@pytest.fixture
def cfg(store):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.DATASETS.REGION_STORE = str(store)
    return cfg


def regions_of(sample):
    return rows_with(sample["instances"], Supervision.TEACHER_REGION)


def test_rows_of_a_resized_image(cfg, tmp_path):
    targets = build_mapper(cfg, is_train=True)(record(tmp_path))["instances"]
    assert targets.supervision.tolist() == [Supervision.BOX] + [Supervision.TEACHER_REGION] * 4
    assert targets.supervision.dtype == torch.int64
    torch.testing.assert_close(targets.gt_boxes.tensor[1:], BOXES * 2)
    assert targets.teacher_embedding.dtype == torch.float16
    assert torch.equal(targets.teacher_embedding[1:], unit(4))
    assert not targets.teacher_embedding[0].any()
    assert targets.gt_classes.tolist() == [1, -1, -1, -1, -1]


def test_boxes_follow_a_flip(cfg, tmp_path):
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    mapper = build_mapper(cfg, is_train=True)
    mirrored = BOXES.clone()
    mirrored[:, [0, 2]] = WIDTH - BOXES[:, [2, 0]]
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(record(tmp_path))
        boxes = regions_of(sample).gt_boxes.tensor / 2
        flipped = not torch.allclose(boxes, BOXES)
        torch.testing.assert_close(boxes, mirrored if flipped else BOXES)
        # the annotated box has the place of region 0, and flips with it
        torch.testing.assert_close(sample["instances"].gt_boxes.tensor[0] / 2, boxes[0])
        seen.add(flipped)
    assert seen == {True, False}


def test_the_first_regions_or_random_ones(cfg, tmp_path):
    """RKD takes the first of a published file, the best; ViLD draws among 300 anew every time."""
    cfg.DATASETS.REGIONS_PER_IMAGE = 2
    drawn = {choice: set() for choice in ("random", "first")}
    for choice, found in drawn.items():
        cfg.DATASETS.REGIONS_CHOICE = choice
        mapper = build_mapper(cfg, is_train=True)
        for seed in range(12):
            torch.manual_seed(seed)
            embeddings = regions_of(mapper(record(tmp_path))).teacher_embedding
            found.add(tuple(int(i) for i in (embeddings @ unit(4).T).argmax(dim=1)))
    assert drawn["first"] == {(0, 1)} and len(drawn["random"]) > 3
    cfg.DATASETS.REGIONS_CHOICE = "best"
    with pytest.raises(OVDError, match="DATASETS.REGIONS_CHOICE is 'best'"):
        build_mapper(cfg, is_train=True)


def test_boxes_outside_a_crop_are_dropped_and_others_cut(store):
    crop = T.TransformList([T.CropTransform(0, 0, 32, 24)])
    rows = TeacherRegions(store).append_to(no_targets((24, 32)), 1, crop)
    assert rows.gt_boxes.tensor.tolist() == [[4, 6, 24, 24], [0, 0, 32, 24]]
    assert torch.equal(rows.teacher_embedding, unit(4)[:2])
    corner = T.TransformList([T.CropTransform(40, 36, 8, 4)])
    rows = TeacherRegions(store).append_to(no_targets((4, 8)), 1, corner)
    assert rows.gt_boxes.tensor.tolist() == [[0, 0, 8, 4]]


@pytest.mark.skipif(importlib.util.find_spec("shapely") is None, reason="cuts polygons")
@pytest.mark.parametrize("masks", [False, True])
def test_scale_jitter(cfg, tmp_path, masks):
    cfg.INPUT.SCALE_JITTER.ENABLED = True
    cfg.INPUT.SCALE_JITTER.SIZE = 80
    cfg.MODEL.MASK_ON = masks
    cfg.INPUT.MASK_FORMAT = "bitmask"
    mapper = build_mapper(cfg, is_train=True)
    counts = set()
    for seed in range(12):
        np.random.seed(seed)
        sample = mapper(record(tmp_path))
        regions = regions_of(sample)
        boxes = regions.gt_boxes.tensor
        counts.add(len(boxes))
        assert (boxes >= 0).all() and (boxes <= 80).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        # embeddings stay with their boxes: the largest is always the whole image's
        areas = regions.gt_boxes.area()
        assert torch.equal(regions.teacher_embedding[areas.argmax()], unit(4)[1])
    assert len(counts) > 1


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_regions_have_no_masks(cfg, tmp_path, mask_format):
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    sample = build_mapper(cfg, is_train=True)(record(tmp_path))
    cfg.DATASETS.REGION_STORE = ""
    plain = build_mapper(cfg, is_train=True)(record(tmp_path))["instances"]
    targets = sample["instances"].to("cpu")
    assert isinstance(targets.gt_masks, PartialMasks) and len(targets.gt_masks) == 5
    boxed = rows_with(targets, Supervision.BOX)
    assert type(boxed.gt_masks) is type(plain.gt_masks)
    if mask_format == "bitmask":
        assert torch.equal(boxed.gt_masks.tensor, plain.gt_masks.tensor)
    else:
        assert np.array_equal(boxed.gt_masks.polygons[0][0], plain.gt_masks.polygons[0][0])
    with pytest.raises(OVDError, match="no mask"):
        targets.gt_masks.crop_and_resize(targets.gt_boxes.tensor, 14)


def test_partial_masks_index_like_masks():
    masks = BitMasks(torch.eye(3, dtype=torch.bool)[:, None].expand(3, 4, 3))
    rows = PartialMasks.followed_by_none(masks, 2)
    assert torch.equal(rows[torch.tensor([2, 0])].tensor, masks.tensor[[2, 0]])
    assert torch.equal(rows[1].tensor, masks.tensor[1:2])
    assert torch.equal(rows[:2].tensor, masks.tensor[:2])
    assert len(rows[-1]) == 1 and isinstance(rows[-1], PartialMasks)
    assert isinstance(rows[torch.tensor([True, False, False, True, False])], PartialMasks)
    assert len(rows[torch.tensor([], dtype=torch.int64)].tensor) == 0
    again = pickle.loads(pickle.dumps(rows[1:]))
    assert torch.equal(again[0].tensor, masks.tensor[1:2])
    polygons = PartialMasks.followed_by_none(PolygonMasks([[[0.0, 0, 1, 0, 1, 1]]]), 1)
    assert isinstance(polygons[:1], PolygonMasks)
    assert isinstance(polygons.to("cpu")[torch.tensor([0])], PolygonMasks)


def test_keypoints_and_unknown_fields(store):
    targets = Instances((HEIGHT, WIDTH))
    targets.gt_boxes = no_targets((1, 1)).gt_boxes.__class__(BOXES[:2])
    targets.gt_keypoints = Keypoints(torch.ones(2, 17, 3))
    targets.gt_weights = torch.ones(2)
    rows = TeacherRegions(store).append_to(targets, 1, T.NoOpTransform())
    assert rows.gt_keypoints.tensor[:2].all() and not rows.gt_keypoints.tensor[2:].any()
    assert rows.gt_weights.tolist() == [1, 1, 0, 0, 0, 0]
    targets.gt_names = ["a", "b"]
    with pytest.raises(OVDError, match=r"gt_names.*list"):
        TeacherRegions(store).append_to(targets, 1, T.NoOpTransform())


@pytest.mark.parametrize("annotations", [None, []])
def test_images_without_annotations_still_teach(cfg, tmp_path, annotations):
    sample = record(tmp_path, annotations=annotations)
    if annotations is None:
        del sample["annotations"]
    targets = build_mapper(cfg, is_train=True)(sample)["instances"]
    assert targets.supervision.tolist() == [Supervision.TEACHER_REGION] * 4
    assert len(targets.gt_boxes) == len(targets.gt_classes) == 4


def test_images_without_regions(cfg, tmp_path):
    targets = build_mapper(cfg, is_train=True)(record(tmp_path, 2))["instances"]
    assert targets.supervision.tolist() == [Supervision.BOX]
    assert targets.teacher_embedding.shape == (1, DIM)


def test_at_most_so_many_regions_drawn_anew(cfg, tmp_path):
    cfg.DATASETS.REGIONS_PER_IMAGE = 5
    mapper = build_mapper(cfg, is_train=True)
    torch.manual_seed(0)
    first, second = (regions_of(mapper(record(tmp_path, 3))).teacher_embedding for _ in range(2))
    assert len(first) == len(second) == 5
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, regions_of(mapper(record(tmp_path, 3))).teacher_embedding)
    every = {tuple(row) for row in unit(200, 1).tolist()}
    drawn = [tuple(row) for row in first.tolist()]
    assert len(set(drawn)) == 5 and set(drawn) <= every
    for limit, count in ((0, 200), (300, 200), (200, 200), (199, 199)):
        cfg.DATASETS.REGIONS_PER_IMAGE = limit
        sample = build_mapper(cfg, is_train=True)(record(tmp_path, 3))
        assert len(regions_of(sample)) == count
    cfg.DATASETS.REGIONS_PER_IMAGE = -1
    with pytest.raises(OVDError, match="REGIONS_PER_IMAGE"):
        build_mapper(cfg, is_train=True)


def test_no_regions_at_test_time_or_without_a_store(cfg, tmp_path):
    assert "instances" not in build_mapper(cfg, is_train=False)(record(tmp_path))
    cfg.DATASETS.REGION_STORE = ""
    targets = build_mapper(cfg, is_train=True)(record(tmp_path))["instances"]
    assert not targets.has("supervision") and not targets.has("teacher_embedding")


def test_the_store_is_opened_by_who_reads(store, monkeypatch):
    regions = TeacherRegions(store)
    assert regions._store is None
    regions.append_to(no_targets((HEIGHT, WIDTH)), 1, T.NoOpTransform())
    assert regions._store is not None
    copy = pickle.loads(pickle.dumps(regions))
    assert copy._store is None
    rows = copy.append_to(no_targets((HEIGHT, WIDTH)), 1, T.NoOpTransform())
    assert torch.equal(rows.teacher_embedding, unit(4))


def test_changing_a_sample_does_not_change_the_store(store):
    regions = TeacherRegions(store)
    rows = regions.append_to(no_targets((HEIGHT, WIDTH)), 1, T.NoOpTransform())
    rows.teacher_embedding.zero_()
    rows.gt_boxes.tensor.zero_()
    again = regions.append_to(no_targets((HEIGHT, WIDTH)), 1, T.NoOpTransform())
    assert torch.equal(again.teacher_embedding, unit(4))
    assert torch.equal(again.gt_boxes.tensor, BOXES)


def test_the_same_samples_in_any_number_of_workers(cfg, tmp_path):
    cfg.DATASETS.REGIONS_PER_IMAGE = 7
    records = [record(tmp_path, image_id) for image_id in (1, 2, 3)]
    drawn = []
    for workers in (0, 2):
        loader = ResumableLoader(
            records,
            OpenVocabDatasetMapper(cfg, True),
            make_sampler=lambda seed: iter([0, 1, 2, 2] * 9),
            total_batch_size=2,
            seed=4,
            num_workers=workers,
        )
        batches = iter(loader)
        samples = [sample for _ in range(2) for sample in next(batches)]
        assert [len(regions_of(sample)) for sample in samples] == [4, 0, 7, 7]
        drawn.append(torch.cat([regions_of(sample).teacher_embedding for sample in samples]))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0][4:11], drawn[0][11:])  # the same image, drawn anew


def test_images_must_be_those_of_the_store(store, tmp_path):
    regions = TeacherRegions(store)
    regions.check_images([1, 2, 3], ["other_name"])  # the very images
    regions.check_images([1, 3], ["tiny"])  # the data set, without an empty image
    with pytest.raises(OVDError, match=r"tiny.*1 of the 3 images of coco_train, such as image 9"):
        regions.check_images([1, 2, 9], ["coco_train"])
    with pytest.raises(OVDError, match=r"built for data set tiny.*coco_train"):
        regions.check_images([1, 3], ["coco_train"])
    with pytest.raises(OVDError, match="has no image 9"):
        regions.append_to(no_targets((HEIGHT, WIDTH)), 9, T.NoOpTransform())


def test_a_missing_store_is_named(cfg, tmp_path):
    cfg.DATASETS.REGION_STORE = str(tmp_path / "nowhere")
    with pytest.raises(OVDError, match=r"nowhere.*ovd regions"):
        build_mapper(cfg, is_train=True)(record(tmp_path))
