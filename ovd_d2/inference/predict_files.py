"""Prediction of image files; writes pictures and one COCO json."""

import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from ovd_d2 import __version__
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write, check_output, check_output_folder, write_json
from ovd_d2.files.images import list_images, read_image
from ovd_d2.visualization.detections import draw_detections
from ovd_d2.visualization.label_maps import class_shares, draw_label_map
from ovd_d2.visualization.side_by_side import side_by_side

from .label_map_files import ENDING, coco_segments, labels_of, write_labels
from .prediction import Prediction
from .predictor import OpenVocabPredictor

_JPEG_MAX_SIDE = 65_000  # what the format can hold, nearly


@dataclass
class Found:
    """What was found in one file.

    Attributes:
        file: the image.
        counts: name -> how often.
        best: name -> highest score.
        picture: what was drawn; None if nothing was to be.
        shares: of a label map, name -> share of the pixels, 0..1, the largest first; then there are
            no counts and scores.
    """

    file: str
    counts: Counter[str]
    best: dict[str, float]
    picture: Path | None
    shares: dict[str, float] = field(default_factory=dict)


@dataclass
class Report:
    """What came of all files.

    Attributes:
        found: one entry per image that could be read, in order.
        skipped: one sentence per image that could not.
        coco: COCO-style {"info", "images", "categories", "annotations"}; the annotations are COCO
            results (``image_id``, ``category_id``, ``bbox`` x y w h, ``score``, ``segmentation``
            as RLE if there are masks) and carry ``id``, ``area``, ``iscrowd`` too. Of label maps
            there is one per class that is there, without ``score``.
    """

    found: list[Found] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    coco: dict[str, Any] = field(default_factory=dict)


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The files among ``paths`` and those in its folders, each once, in order.

    Raises:
        OVDError: a path is missing, or a folder holds no image.
    """
    return list(dict.fromkeys(file for path in paths for file in list_images(path)))


def predict_files(
    predictor: OpenVocabPredictor,
    files: Sequence[Path],
    *,
    pictures: Path | None,
    json_file: Path | None,
    info: dict[str, Any] | None = None,
    on_image: Callable[[], None] = lambda: None,
    tile: int | None = None,
    overlap: float | None = None,
) -> Report:
    """Predicts ``files`` and writes what was found.

    Every output file is whole or not there. The json comes last; one of an earlier run is removed
    first, so that it never stands beside pictures it does not describe.

    Args:
        predictor: with a vocabulary.
        files: the images.
        pictures: folder for one picture per image, ``NAME.jpg``, and of label maps their numbers
            too, ``NAME_labels.png``; None: none.
        json_file: where the COCO json goes; None: nowhere.
        info: facts for the json's "info".
        on_image: called after every image.
        tile: side of the tiles that large images are cut into, see ``predictor.predict``.
        overlap: of neighbouring tiles, see ``predictor.predict``.

    Raises:
        OVDError: no image could be read, an output would replace an input, or cannot be written.
    """
    targets = check_targets(files, pictures, json_file)
    report = Report(coco=_empty_coco(predictor, info))

    def skip(_source: str, error: OVDError) -> None:
        report.skipped.append(str(error))
        on_image()

    try:
        for prediction in predictor.stream(files, on_error=skip, tile=tile, overlap=overlap):
            if not report.found:
                _prepare(pictures, json_file)
            target = targets.get(Path(prediction.source))
            record = _record if prediction.sem_seg is None else _record_label_map
            report.found.append(record(prediction, predictor, report.coco, target, files))
            on_image()
        if not report.found:
            raise OVDError(" ".join(report.skipped) or "There is no image to predict.")
        if json_file is not None:
            write_json(json_file, report.coco)
    except OSError as error:
        where = error.filename or pictures or json_file
        raise OVDError(f"Cannot write {where}: {error.strerror or error}.") from error
    return report


def check_targets(
    files: Sequence[Path],
    pictures: Path | None,
    json_file: Path | None,
    inputs: Sequence[str | os.PathLike] = (),
) -> dict[Path, Path]:
    """Image -> its picture; of images of one name the second becomes NAME_2.jpg and so on.

    Args:
        files: the images.
        pictures: folder of the pictures; None: there will be none.
        json_file: where the json is to go; None: nowhere.
        inputs: other files that are read.

    Raises:
        OVDError: an output would replace an input or something that is no plain file, or cannot be
            written.
    """
    targets = {} if pictures is None else _pictures(files, pictures)
    real = {os.path.realpath(file) for file in (*files, *inputs)}
    if pictures is not None:
        check_output_folder("--out", pictures)
    for target in targets.values():
        if os.path.realpath(target) in real:
            raise OVDError(
                f"--out {pictures}: {target.name} would replace an input image: choose another "
                "folder."
            )
        check_output("--out", target)
    if json_file is not None:
        check_output("--json", json_file, [*files, *inputs])
        if os.path.realpath(json_file) in {os.path.realpath(target) for target in targets.values()}:
            raise OVDError(f"--json {json_file} is the picture of an image: choose another file.")
    return targets


def _pictures(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    targets: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in files:
        name, number = file.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}_{number}"
        taken.add(name.lower())
        targets[file] = folder / f"{name}.jpg"
    return targets


def titles_of(models: Sequence[str]) -> dict[str, str]:
    """Title -> model: the last part of its name, with a number where there are several of one."""
    titles: dict[str, str] = {}
    for model in models:
        name, number = Path(model.removeprefix("hf:")).resolve().name or "model", 1
        title = name
        while title in titles:
            number += 1
            title = f"{name}_{number}"
        titles[title] = model
    return titles


def write_side_by_side(files: Sequence[Path], out: Path, reports: Mapping[str, Report]) -> int:
    """Writes into ``out`` one picture per image, made of those of several models.

    Args:
        files: the images.
        out: the folder.
        reports: title -> what :func:`predict_files` said of a model, with pictures.

    Returns:
        how many pictures were written.

    Raises:
        OVDError: a picture cannot be written.
    """
    count = 0
    out.mkdir(parents=True, exist_ok=True)
    for file, target in check_targets(files, out, None).items():
        panels = {
            title: read_image(found.picture)
            for title, report in reports.items()
            for found in report.found
            if found.file == str(file)
        }
        if panels:
            _write_jpeg(side_by_side(panels), target)
            count += 1
    return count


def _prepare(pictures: Path | None, json_file: Path | None) -> None:
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.unlink(missing_ok=True)


def _empty_coco(predictor: OpenVocabPredictor, info: dict[str, Any] | None) -> dict[str, Any]:
    names = predictor.vocabulary.names if predictor.vocabulary else ()
    return {
        "info": {"ovd_d2": __version__, **(info or {})},
        "images": [],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(names)],
        "annotations": [],
    }


def _add_image(prediction: Prediction, coco: dict[str, Any]) -> tuple[int, int]:
    """The id of a new image of ``coco``, and that of its first annotation."""
    height, width = prediction.image.shape[:2]
    image_id = len(coco["images"]) + 1
    coco["images"].append(
        {"id": image_id, "file_name": prediction.source, "width": width, "height": height}
    )
    return image_id, len(coco["annotations"]) + 1


def _record(
    prediction: Prediction,
    predictor: OpenVocabPredictor,
    coco: dict[str, Any],
    picture: Path | None,
    _files: Sequence[Path],
) -> Found:
    """Adds an image and its detections to ``coco``, and draws them."""
    coco["annotations"] += coco_annotations(prediction.instances, *_add_image(prediction, coco))
    names = predictor.vocabulary.names
    counts: Counter[str] = Counter()
    best: dict[str, float] = {}
    instances = prediction.instances
    for k, score in zip(instances.pred_classes.tolist(), instances.scores.tolist()):
        counts[names[k]] += 1
        best[names[k]] = max(best.get(names[k], 0.0), score)
    if picture is not None:
        _write_jpeg(draw_detections(prediction.image, instances, names), picture)
    return Found(prediction.source, counts, best, picture)


def _record_label_map(
    prediction: Prediction,
    predictor: OpenVocabPredictor,
    coco: dict[str, Any],
    picture: Path | None,
    files: Sequence[Path],
) -> Found:
    """Adds an image and the classes of its pixels to ``coco``, and draws and writes them."""
    labels, names = labels_of(prediction.sem_seg), predictor.vocabulary.names
    coco["annotations"] += coco_segments(labels, *_add_image(prediction, coco))
    if picture is not None:
        numbers = picture.with_name(picture.stem + ENDING)
        check_output("--out", numbers, files)
        write_labels(numbers, labels, names)
        _write_jpeg(draw_label_map(prediction.image, labels, names), picture)
    shares = {names[k]: share for k, share in class_shares(labels).items()}
    return Found(prediction.source, Counter(), {}, picture, shares)


def coco_annotations(instances: Instances, image_id: int, first_id: int = 1) -> list[dict]:
    """Detections as COCO results with ids; class k becomes category k + 1."""
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from pycocotools import mask as coco_mask

    rows = instances_to_coco_json(instances, image_id)
    for number, row in enumerate(rows):
        x, y, w, h = row["bbox"]
        area = coco_mask.area(row["segmentation"]) if "segmentation" in row else w * h
        row.update(
            id=first_id + number,
            category_id=row["category_id"] + 1,
            area=float(area),
            iscrowd=0,
        )
    return rows


def _write_jpeg(drawn: np.ndarray, target: Path) -> None:
    with atomic_write(target) as file:
        file.write(_encoded(drawn))


def _encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    picture.thumbnail((_JPEG_MAX_SIDE, _JPEG_MAX_SIDE))
    picture.save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
