"""Images and their captions from a folder, a CSV, TSV or JSONL file, or tar shards.

In ``DATASETS.TRAIN`` such data are named by where they are, "pairs:PATH":

* a folder: images with a text file of the same name beside them (cat.jpg, cat.txt), searched in
  all its sub-folders;
* a .csv or .tsv file with a header: a column "file_name", "filepath" or "image", and "caption",
  "title" or "text";
* a .jsonl file, one object per line with "file_name" and "caption", and "box" (x0, y0, x1, y1 in
  pixels) where the caption is about a part of the image;
* a .tar file, a folder of .tar files, or a range "shards/{00000..00099}.tar", as img2dataset
  writes them: see ``tar_shards``.

Relative image names start at the folder of the file.
"""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.tar_shards import expand_shards, load_shards
from ovd_d2.errors import OVDError
from ovd_d2.files.images import SUFFIXES

PREFIX = "pairs:"
_IMAGE_COLUMNS = ("file_name", "filepath", "image")
_CAPTION_COLUMNS = ("caption", "title", "text")


def register_pairs(name: str) -> bool:
    """Registers the data set "pairs:PATH" with Detectron2; files are read when it is used.

    Returns:
        whether ``name`` is of that form; if not, nothing happens.
    """
    if not name.startswith(PREFIX):
        return False
    if name not in DatasetCatalog.list():
        path = name.removeprefix(PREFIX)
        DatasetCatalog.register(name, lambda: load_pairs(path))
        MetadataCatalog.get(name).set(pairs=path)
    return True


def load_pairs(path: str | os.PathLike, image_root: str | os.PathLike = "") -> list[dict[str, Any]]:
    """Records of pairs: ``file_name``, ``image_id`` (number of the record), ``caption``; ``box``
    or ``shard`` where there is one.

    Args:
        path: see the top of this file.
        image_root: where relative image names start; "": the folder of the file.

    Raises:
        OVDError: nothing there, no pair in it, or a line that is no pair, by its number.
    """
    text = os.fspath(path)
    source = Path(text).expanduser()
    shards = expand_shards(text)
    if shards:
        records = load_shards(shards)
    elif source.is_dir():
        records = _from_folder(source)
    elif not source.is_file():
        raise OVDError(f"image-text pairs: {source} does not exist; name a folder or a file.")
    elif source.suffix in (".csv", ".tsv"):
        records = _from_table(source, Path(image_root or source.parent))
    elif source.suffix == ".jsonl":
        records = _from_jsonl(source, Path(image_root or source.parent))
    else:
        raise OVDError(
            f"image-text pairs: {source} is of no known kind; give a folder, .csv, .tsv, .jsonl "
            "or .tar."
        )
    if not records:
        raise OVDError(
            f"image-text pairs: {source} holds no pair; a folder needs images with a .txt file of "
            "the same name."
        )
    for number, record in enumerate(records):
        record["image_id"] = number
    return records


def _from_folder(folder: Path) -> list[dict[str, Any]]:
    records = []
    for path in sorted(folder.rglob("*")):
        caption = path.with_suffix(".txt")
        if path.suffix.lower() in SUFFIXES and caption.is_file():
            try:
                text = caption.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise OVDError(f"{caption} is not readable text ({error}); repair it.") from error
            if text:
                records.append({"file_name": str(path), "caption": text})
    return records


def _from_table(path: Path, root: Path) -> list[dict[str, Any]]:
    records = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            columns = reader.fieldnames or []
            image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
            caption = next((name for name in _CAPTION_COLUMNS if name in columns), None)
            if image is None or caption is None:
                raise OVDError(
                    f"{path} has the columns {', '.join(columns) or 'none'}; it needs one of "
                    f"{', '.join(_IMAGE_COLUMNS)} and one of {', '.join(_CAPTION_COLUMNS)}."
                )
            for row in reader:
                entry = {"file_name": row[image], "caption": row[caption]}
                records.append(_record(entry, f"{path} line {reader.line_num}", root))
    except (UnicodeDecodeError, csv.Error) as error:
        raise OVDError(f"{path} is no readable table ({error}); write it as UTF-8.") from error
    return records


def _from_jsonl(path: Path, root: Path) -> list[dict[str, Any]]:
    records = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise OVDError(
                    f"{path} line {number} is no valid json ({error}); repair or remove it."
                ) from error
            records.append(_record(entry, f"{path} line {number}", root))
    return records


def _record(entry: Any, where: str, root: Path) -> dict[str, Any]:
    """The record of one line; ``where`` names it in messages."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    caption = entry.get("caption") if isinstance(entry, dict) else None
    for key, value in (("file_name", name), ("caption", caption)):
        if not isinstance(value, str) or not value.strip():
            raise OVDError(f"{where} has no {key}; every pair needs file_name and caption.")
    record = {"file_name": str(root / name), "caption": caption.strip()}
    if entry.get("box") is not None:
        record["box"] = _box(entry["box"], where)
    return record


def _box(box: Any, where: str) -> tuple[float, ...]:
    numbers = isinstance(box, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in box
    )
    if not numbers or len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
        raise OVDError(
            f"{where} has the box {box}; it must be [x0, y0, x1, y1] with x0 < x1, y0 < y1."
        )
    return tuple(float(value) for value in box)
