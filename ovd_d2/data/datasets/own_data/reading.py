"""Which format a file or folder has, and its labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovd_d2.data.datasets.annotation_files import read_json
from ovd_d2.errors import OVDError

from .coco import looks_like_coco, read_coco
from .label_studio import looks_like_label_studio, read_label_studio
from .labels import Labels
from .voc import looks_like_voc, read_voc
from .yolo import looks_like_yolo, read_yolo

KINDS = ("coco", "yolo", "voc", "label-studio")
_OF_JSON: dict[str, Callable[[Any, Path, Path | None], Labels]] = {
    "coco": read_coco, "label-studio": read_label_studio
}  # fmt: skip
_VAL_FOLDERS = ("valid", "val", "validation")


def read_labels(
    source: Path, *, kind: str = "", images: Path | None = None
) -> tuple[str, dict[str, Labels]]:
    """The format of ``source``, and its labels by split: "train" and perhaps "val".

    Args:
        source: a COCO json or one of Label Studio, a YOLO or Pascal VOC folder, a data.yaml, or a
            folder with such things in train/ and valid/.
        kind: one of :data:`KINDS`; "": looked for.
        images: folder of the images, for a json and Pascal VOC; None: looked for beside it.

    Raises:
        OVDError: it is not there, of no such format, or nothing of it can be used.
    """
    if kind and kind not in KINDS:
        raise OVDError(f"kind is {kind!r}; it must be {', '.join(KINDS)}.")
    if not source.exists():
        raise OVDError(f"There is no {source}: give a file or folder of labelled images.")
    if images is not None and not images.is_dir():
        raise OVDError(f"images is {images}, which is no folder.")
    if source.is_file() and source.suffix.lower() in (".yaml", ".yml"):
        return "yolo", read_yolo(source)
    if source.is_file():
        return _read_json(source, kind, images)
    if kind in ("", "yolo") and looks_like_yolo(source):
        return "yolo", read_yolo(source)
    if kind in ("", "voc") and looks_like_voc(source):
        return "voc", read_voc(source, images)
    files = sorted(source.glob("*.json"))
    if files and kind in ("", *_OF_JSON):
        return _read_jsons(files, source, kind, images)
    return _read_split_folders(source, kind, images)


def _read_json(file: Path, kind: str, images: Path | None) -> tuple[str, dict[str, Labels]]:
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise OVDError(f"{file} is no readable json ({error}): correct it.") from error
    if not kind:
        kind = "label-studio" if looks_like_label_studio(content) else "coco"
        if kind == "coco" and not looks_like_coco(content):
            raise OVDError(
                f"{file} is neither a COCO json (a mapping of images, categories and annotations) "
                "nor an export of Label Studio (a list of tasks)."
            )
    if kind not in _OF_JSON:
        raise OVDError(f"{file} is a json; kind {kind} is a folder: leave the kind out.")
    return kind, {"train": _OF_JSON[kind](content, file, images)}


def _read_jsons(
    files: list[Path], folder: Path, kind: str, images: Path | None
) -> tuple[str, dict[str, Labels]]:
    """Of a folder: its only json, or those with train and val in their names."""
    if len(files) == 1:
        return _read_json(files[0], kind, images)
    named = {split: [f for f in files if split in f.stem.lower()] for split in ("train", "val")}
    if any(len(found) != 1 for found in named.values()):
        raise OVDError(
            f"{folder} has several json files ({', '.join(f.name for f in files[:5])}): name the "
            "one to train on, and the other one as val."
        )
    found = {split: _read_json(one[0], kind, images) for split, one in named.items()}
    return found["train"][0], {split: labels["train"] for split, (_, labels) in found.items()}


def _read_split_folders(
    folder: Path, kind: str, images: Path | None
) -> tuple[str, dict[str, Labels]]:
    if not (folder / "train").is_dir():
        raise OVDError(
            f"{folder} holds no labels that are known: a YOLO folder has data.yaml or labels/, a "
            "Pascal VOC folder has xml files, others have one json."
        )
    kind, labels = read_labels(folder / "train", kind=kind, images=images)
    found = {"train": labels["train"]}
    val = next((folder / name for name in _VAL_FOLDERS if (folder / name).is_dir()), None)
    if val is not None:
        found["val"] = read_labels(val, kind=kind, images=images)[1]["train"]
    return kind, found
