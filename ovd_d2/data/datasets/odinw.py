"""ODinW, "object detection in the wild": 13 or 35 small detection data sets (Li et al. 2022, GLIP,
appendix E; Li et al. 2022, ELEVATER).

Names, folders and classes are in odinw.json, by the names of GLIP's configs. Class names are those
of the annotation files; what prompts make of them is in its "prompts": of the paper, which has six
data sets, and of the repository's configs for all 35, which differ by spaces alone.
"""

import functools
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.annotation_check import FileKind
from ovd_d2.data.datasets.annotation_files import check_records, read_annotations
from ovd_d2.data.datasets.annotation_records import coco_records
from ovd_d2.errors import OVDError

README_SECTION = "ODinW"
SUITES = ("odinw_13", "odinw_35")

_FILE = FileKind(blank_names=True)  # a class of ChessPieces is two spaces
_FOLDERS = {"train": "train", "val": "valid", "test": "test", "minival": "mini_val"}
_ANNOTATIONS = "annotations_without_background.json"
_FEW_SHOT = re.compile(r"(odinw_.+_(?:train|val|minival))_(\d+)shot(?:_seed(\d+))?")


@dataclass(frozen=True)
class ODinWDataset:
    """One of the 35 data sets.

    Attributes:
        name: that of GLIP's config.
        folder: under "odinw/".
        classes: K names; class c has the category id c + 1.
        paper_name: in the tables of GLIP's paper; "" if it is not one of the 13.
        minival: it has a split "minival", a part of "val", by which GLIP's configs evaluate.
        test_is_val: the test split is the validation split.
        layout: "one folder" if all splits share it, "folders" if each has one.
    """

    name: str
    folder: str
    classes: tuple[str, ...]
    paper_name: str = ""
    minival: bool = False
    test_is_val: bool = False
    layout: str = "folders"

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", "val", "test" and perhaps "minival"."""
        return tuple(split for split in _FOLDERS if split != "minival" or self.minival)

    def json_file(self, split: str) -> str:
        """The annotation file under the folder of all data sets; images lie beside it."""
        if self.layout == "one folder":
            return f"odinw/{self.folder}/{split}_{_ANNOTATIONS}"
        split = "val" if split == "test" and self.test_is_val else split
        return f"odinw/{self.folder}/{_FOLDERS[split]}/{_ANNOTATIONS}"

    def registered(self, split: str) -> str:
        """The name under which a split is registered; "default" is that of GLIP's configs."""
        if split == "default":
            split = "minival" if self.minival else "val"
        if split not in self.splits:
            raise OVDError(
                f"ODinW's {self.name} has no split {split!r}: use one of {', '.join(self.splits)}."
            )
        return f"odinw_{self.name}_{split}"


@functools.cache
def _facts() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@functools.cache
def odinw_suite(suite: str = "odinw_35") -> dict[str, ODinWDataset]:
    """The data sets of "odinw_13" (the paper's) or "odinw_35" (ELEVATER's), by name.

    Raises:
        OVDError: there is no such suite.
    """
    if suite not in SUITES:
        raise OVDError(f"suite is {suite!r}: use one of {', '.join(SUITES)}.")
    found = {
        name: ODinWDataset(name, **{**entry, "classes": tuple(entry["classes"])})
        for name, entry in _facts()["datasets"].items()
    }
    return {n: d for n, d in found.items() if suite == "odinw_35" or d.paper_name}


def odinw_prompts(name: str, source: str = "paper") -> dict[str, dict[str, str]]:
    """What captions say in place of class names.

    Args:
        name: of a data set, as in :func:`odinw_suite`.
        source: "paper" or "repository"; "none" for the plain names.

    Returns:
        class -> {"prefix", "name", "suffix"}: prefix + name + suffix is written, of which only the
        name is the class. Classes that are not in it stay as they are.

    Raises:
        OVDError: there is no such data set or source.
    """
    sources = _facts()["prompts"]
    if name not in odinw_suite():
        raise OVDError(f"name is {name!r}, which is no data set of ODinW; see odinw_suite().")
    if source != "none" and source not in sources:
        raise OVDError(f"source is {source!r}: use one of {', '.join(sources)}, none.")
    return {} if source == "none" else sources[source].get(name, {})


def read_odinw_json(json_file: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """The content of an annotation file whose categories are ``classes``, ids from 1.

    Raises:
        OVDError: it is missing or broken, or has other categories.
    """
    content = read_annotations(json_file, README_SECTION, _FILE, needs_annotations=False)
    ids = sorted(category["id"] for category in content["categories"])
    if ids != list(range(1, len(classes) + 1)):
        raise OVDError(
            f"{json_file} has {len(ids)} categories with ids {ids[0]} to {ids[-1]}, but this data "
            f"set has {len(classes)}, from 1 on: use the file that section '{README_SECTION}' of "
            "datasets/README.md names."
        )
    return content


def load_odinw(
    json_file: str, classes: tuple[str, ...], *, shots: int | None = None
) -> list[dict[str, Any]]:
    """Records in Detectron2's format.

    Args:
        json_file: annotations; images lie beside it.
        classes: K names.
        shots: only the images of :func:`few_shot_images`, in its order; None for all.

    Raises:
        OVDError: the file is missing, broken or empty, or has other categories.
    """
    content = read_odinw_json(json_file, classes)
    contiguous = {index + 1: index for index in range(len(classes))}
    records = coco_records(content, os.path.dirname(json_file), contiguous)
    if shots is not None:
        by_id = {record["image_id"]: record for record in records}
        records = [by_id[image_id] for image_id in few_shot_images(content, shots)]
    check_records(records, json_file, README_SECTION)
    return records


def few_shot_images(content: Mapping[str, Any], shots: int, shuffle_seed: int = 0) -> list[Any]:
    """The images that GLIP's loaders draw for training with few shots.

    An image is taken if one of its categories still needs an image, and counts for all of its
    categories. So a category has at least ``shots`` images, as far as there are any, not boxes.

    Args:
        content: of a COCO json; not modified.
        shots: images of each category, at least 1.
        shuffle_seed: 0 takes images in the order of their ids, as the grounding loader does with
            every seed; another one shuffles them first, as the plain detection loader does.

    Returns:
        Image ids, in the order in which they are taken. Images are left out that have no box or
        only boxes of which a side is at most one pixel.

    Raises:
        OVDError: ``shots`` is below 1.
    """
    if shots < 1:
        raise OVDError(f"shots is {shots}: give at least 1.")
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    order = sorted(i for i, found in of_image.items() if any(min(a["bbox"][2:]) > 1 for a in found))
    if shuffle_seed:
        random.Random(shuffle_seed).shuffle(order)
    needed = {category["id"]: shots for category in content["categories"]}
    taken = []
    for image_id in order:
        categories = {a["category_id"] for a in of_image[image_id]}
        if any(needed[category] > 0 for category in categories):
            taken.append(image_id)
            for category in categories:
                needed[category] -= 1
    return taken


def register_odinw(root: str) -> None:
    """Registers ``odinw_NAME_SPLIT`` for all splits of the 35 data sets under ``root``; reads no
    annotations."""
    for dataset in odinw_suite().values():
        for split in dataset.splits:
            json_file = os.path.join(root, dataset.json_file(split))
            _register(dataset.registered(split), json_file, dataset)


def _register(name: str, json_file: str, dataset: ODinWDataset, shots: int | None = None) -> None:
    DatasetCatalog.register(name, lambda: load_odinw(json_file, dataset.classes, shots=shots))
    metadata = MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=os.path.dirname(json_file),
        thing_classes=list(dataset.classes),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(dataset.classes))},
        readme_section=README_SECTION,
        odinw_name=dataset.name,
    )
    if shots is None:  # with shots, the file has images that are not in the data set
        metadata.set(evaluator_type="coco")


def register_odinw_few_shot(name: str) -> bool:
    """Registers a few-shot data set by its name: "odinw_NAME_train_3shot_seed30" is the published
    file fewshot_train_shot3_seed30.json beside the annotations, "odinw_NAME_train_3shot" are the
    images of :func:`few_shot_images`. "val" and "minival" can stand in place of "train".

    Returns:
        whether ``name`` is of that form; if not, nothing happens.
    """
    match = _FEW_SHOT.fullmatch(name)
    if match is None or match[1] not in DatasetCatalog.list():
        return False
    if name not in DatasetCatalog.list():
        full, shots, seed = MetadataCatalog.get(match[1]), int(match[2]), match[3]
        dataset = odinw_suite()[full.odinw_name]
        if seed is None:
            _register(name, full.json_file, dataset, shots)
        else:
            split = match[1].rpartition("_")[2]
            file = f"fewshot_{split}_shot{shots}_seed{seed}.json"
            _register(name, os.path.join(full.image_root, file), dataset)
    return True
