"""The real mini benchmark, as built by the package: its files agree with each other."""

import json
import os
import time

import numpy as np
import pycocotools.mask as mask_utils
from detectron2.data import DatasetCatalog
from PIL import Image

from ovd_d2.benchmarks.mini import manifest
from ovd_d2.data.datasets.mini.categories import load_categories
from ovd_d2.data.datasets.mini.registration import load_mini
from ovd_d2.data.datasets.mini.splits import ANNOTATION_SETS, SPLITS


def read(root, name):
    return json.loads((root / "annotations" / f"{name}.json").read_text())


def test_the_built_benchmark_verifies_within_seconds(mini_root):
    start = time.perf_counter()
    assert manifest.problem_with(mini_root) is None
    assert time.perf_counter() - start < 10


def test_annotations_agree_with_the_frozen_facts(mini_root):
    styles = {"val": {"noto"}, "test": {"noto"}}
    for name, split in ANNOTATION_SETS.items():
        data = read(mini_root, name)
        assert [image["id"] for image in data["images"]] == list(SPLITS[split].image_ids())
        novel = {c["id"] for c in data["categories"] if c["frequency"] == "r"}
        assert novel == {i + 1 for i, c in enumerate(load_categories()) if c.is_novel}
        shown = {image["id"]: set() for image in data["images"]}
        for item in data["annotations"]:
            shown[item["image_id"]].add(item["category_id"])
            assert item["style"] in styles.get(name, set(SPLITS[split].styles))
        known = set(range(1, 161)) - (novel if name == "train_base" else set())
        for image in data["images"]:
            assert set(image["neg_category_ids"]) == known - shown[image["id"]]
            assert shown[image["id"]] <= known
        if split == "train":
            counts = {c["id"]: 0 for c in data["categories"]}
            for ids in shown.values():
                for category_id in ids:
                    counts[category_id] += 1
            assert counts == {c["id"]: c["image_count"] for c in data["categories"]}


def test_base_and_all_differ_only_in_novel_boxes(mini_root):
    everything, base = read(mini_root, "train_all"), read(mini_root, "train_base")
    novel = {c["id"] for c in base["categories"] if c["frequency"] == "r"}
    kept = [item for item in everything["annotations"] if item["category_id"] not in novel]
    assert base["annotations"] == kept
    assert len(kept) < len(everything["annotations"])


def test_masks_areas_and_boxes_agree(mini_root):
    for item in read(mini_root, "val")["annotations"][:400]:
        mask = mask_utils.decode(
            mask_utils.merge(mask_utils.frPyObjects(item["segmentation"], 192, 192))
        )
        ys, xs = np.nonzero(mask)
        assert mask.sum() == item["area"] >= 80
        x, y = xs.min(), ys.min()
        assert item["bbox"] == [x, y, xs.max() + 1 - x, ys.max() + 1 - y]


def test_detectron2_lvis_and_coco_read_it(mini_root):
    from lvis import LVIS
    from pycocotools.coco import COCO

    for name in ANNOTATION_SETS:
        path = str(mini_root / "annotations" / f"{name}.json")
        records = load_mini(path, f"{mini_root}/images/")
        assert len(records) == len(LVIS(path).imgs)
        coco = COCO(str(mini_root / "annotations" / f"coco_{name}.json"))
        assert len(coco.anns) == sum(len(record["annotations"]) for record in records)
        assert os.path.isfile(mini_root / "images" / coco.imgs[records[0]["image_id"]]["file_name"])
        with Image.open(records[-1]["file_name"]) as image:
            assert image.size == (192, 192) and image.mode == "RGB"
    assert len(DatasetCatalog.get("mini_v1_val")) == 400


def test_pairs_cover_all_categories_of_training_images_only(mini_root):
    pairs = [json.loads(line) for line in (mini_root / "pairs.jsonl").read_text().splitlines()]
    objects = [pair for pair in pairs if "box" in pair]
    assert len(pairs) - len(objects) == 1200
    assert len(objects) == len(read(mini_root, "train_all")["annotations"])
    assert {pair["category_ids"][0] for pair in objects} == set(range(1, 161))
    categories = load_categories()
    for pair in pairs:
        assert pair["file_name"].startswith("train/")
        for category_id in pair["category_ids"]:
            names = categories[category_id - 1].synonyms
            assert any(name in pair["caption"] for name in names)
    for pair in objects:
        x0, y0, x1, y1 = pair["box"]
        assert 0 <= x0 < x1 <= 192 and 0 <= y0 < y1 <= 192
