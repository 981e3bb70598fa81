"""Users' own labelled images become two COCO json files, and a report that says what they hold."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovd_d2.data.datasets.coco_files import PREFIX
from ovd_d2.data.datasets.own_data import (
    Checked,
    Labels,
    check_labels,
    few_shot,
    read_labels,
    split_off,
)
from ovd_d2.data.named_datasets import register_named_files
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write, write_json
from ovd_d2.visualization.dataset_pictures import draw_samples, plot_class_counts

# Given a title and a number of steps: a context whose value is called after each step.
Bar = Callable[[str, int], AbstractContextManager[Callable[[], Any]]]
TRAIN, VAL = "train.json", "val.json"
REPORT, SAMPLES, COUNTS = "report.txt", "labelled_images.jpg", "class_counts.png"
_CLASSES_SAID = 20  # of the report; the file has all
_FEW = 5  # boxes of a class: fewer are worth a word


@dataclass(frozen=True)
class PreparedData:
    """What came of the data.

    Attributes:
        train: name of the training set, "coco:FOLDER:FILE".
        val: the same, of the validation set.
        images: of the training set.
        names: of its classes.
        left_out: how many things were left out.
    """

    train: str
    val: str
    images: int
    names: tuple[str, ...]
    left_out: int


def prepare_data(
    source: Path,
    folder: Path,
    *,
    val: Path | None = None,
    images: Path | None = None,
    kind: str = "",
    shots: int = 0,
    seed: int = 0,
    say: Callable[[str], None],
    bar: Bar,
) -> PreparedData:
    """Reads and checks the data, splits off validation images where there are none, and writes
    ``folder``: train.json and val.json (COCO), the report, and two pictures.

    Training classes are those with a box in training; validation also has those that only it shows.

    Args:
        source: see :func:`~ovd_d2.data.datasets.own_data.read_labels`.
        folder: to write; made if need be.
        val: validation data, in any format; None: what ``source`` brings along, or a part of it.
        images: folder of the images, where a json does not lie beside them.
        kind: format of ``source``; "": looked for.
        shots: train on so many images of each class; 0: on all.
        seed: of split and shots.
        say: shows a line.
        bar: shows progress.

    Raises:
        OVDError: nothing of it can be used; nothing has been written then.
    """
    found, by_split = read_labels(source, kind=kind, images=images)
    if val is not None:
        by_split["val"] = read_labels(val, images=images)[1]["train"]
    data = _check(by_split, bar)
    train, held_out = data["train"], data.get("val")
    lines = [f"{source} ({found})"]
    if held_out is None:
        train, held_out = split_off(train, seed=seed)
        same = train is held_out
        lines.append(
            "validation: the training images themselves, there are too few to spare one"
            if same
            else f"validation: {len(held_out.images)} images split off, seed {seed}"
        )
    else:
        train = _without(train, held_out, data["train"])
    if shots:
        train = few_shot(train, shots, seed=seed)
        lines.append(f"training: images with {shots} of each class drawn, seed {seed}")
    prepared = _write(folder, train, held_out, sum(d.remarks.count_left_out for d in data.values()))
    lines += _report(train, held_out)
    lines += [line for split in data.values() for line in split.remarks.lines()]
    with atomic_write(folder / REPORT) as file:
        file.write(("\n".join(lines) + "\n").encode())
    classes = [line for line in lines if line.startswith("class ")]
    for line in lines:
        if line not in classes[_CLASSES_SAID:]:
            say(line)
    if len(classes) > _CLASSES_SAID:
        say(f"... {len(classes) - _CLASSES_SAID} more classes in {REPORT}")
    _draw(folder, prepared, train, held_out)
    say(f"{folder}: {REPORT}, {SAMPLES}, {COUNTS}, {TRAIN}, {VAL}")
    return prepared


def _check(by_split: dict[str, Labels], bar: Bar) -> dict[str, Checked]:
    total = sum(len(labels.images) for labels in by_split.values())
    with bar("images", total) as step:
        return {name: check_labels(labels, on_image=step) for name, labels in by_split.items()}


def _without(train: Checked, held_out: Checked, said_by: Checked) -> Checked:
    """Training images that do not validate too."""
    theirs = {os.path.realpath(path) for path in held_out.paths()}
    kept = []
    for image in train.images:
        path = str(train.root / image["file_name"])
        if os.path.realpath(path) in theirs:
            said_by.remarks.left_out("training images validate too and are not trained on", path)
        else:
            kept.append(image["id"])
    if len(kept) == len(train.images):
        return train
    train = train.of_images(kept)
    if not train.annotations:
        raise OVDError("All training images are validation images too: give other ones.")
    return train


def _write(folder: Path, train: Checked, val: Checked, left_out: int) -> PreparedData:
    seen = [name for name, (boxes, _) in train.counts().items() if boxes]
    of_val = [name for name, (boxes, _) in val.counts().items() if boxes]
    names = {TRAIN: seen, VAL: list(dict.fromkeys([*seen, *of_val]))}
    folder.mkdir(parents=True, exist_ok=True)
    registered = {}
    for file, data in ((TRAIN, train), (VAL, val)):
        write_json(folder / file, data.content(names[file]))
        registered[file] = f"{PREFIX}{data.root}:{(folder / file).absolute()}"
        register_named_files(registered[file])
    return PreparedData(
        registered[TRAIN], registered[VAL], len(train.images), tuple(seen), left_out
    )


def _report(train: Checked, val: Checked) -> list[str]:
    """Counts by class, and what is worth knowing about them."""
    of_train, of_val = train.counts(), val.counts()
    names = list(dict.fromkeys([*of_train, *of_val]))
    lines = [
        f"training: {len(train.images)} images, {len(train.annotations)} boxes; validation: "
        f"{len(val.images)} images, {len(val.annotations)} boxes"
    ]
    none, few, unseen = [], [], []
    for name in names:
        (boxes, images), (val_boxes, val_images) = (
            of_train.get(name, (0, 0)),
            of_val.get(name, (0, 0)),
        )
        if not (boxes or val_boxes):
            none.append(name)
            continue
        lines.append(
            f"class {name}: {boxes} boxes in {images} images, "
            f"validation {val_boxes} in {val_images}"
        )
        if 0 < boxes < _FEW:
            few.append(name)
        if boxes and not val_boxes:
            unseen.append(name)
    for title, found in (
        ("classes without any box are not used", none),
        (f"classes have fewer than {_FEW} boxes to train on", few),
        ("classes have no box in validation, so that nothing measures them", unseen),
    ):
        if found:
            lines.append(f"note: {len(found)} {title}: {', '.join(found[:10])}")
    return lines


def _draw(folder: Path, prepared: PreparedData, train: Checked, val: Checked) -> None:
    draw_samples(prepared.train, folder / SAMPLES)
    of_train, of_val = train.counts(), val.counts()
    counts = {
        name: (of_train.get(name, (0, 0))[0], of_val.get(name, (0, 0))[0])
        for name in dict.fromkeys([*of_train, *of_val])
    }
    plot_class_counts({name: both for name, both in counts.items() if any(both)}, folder / COUNTS)
