"""YOLO folders: a data.yaml, images, and a text file of labels for each of them.

A line is "class x y width height", the centre and size in parts of the image, or "class x y x y x
y ...", a polygon, whose box is taken. A number behind the four (a confidence) is ignored. An empty
file says that nothing is in the image; an image without a file is taken as not labelled.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ovd_d2.errors import OVDError

from .labels import Labels, RawBox, RawImage, class_name, hull, list_images, read_text, to_floats

_LISTS = ("classes.txt", "obj.names")  # what names the classes where no yaml does
_YAMLS = ("data", "dataset")
_VAL = ("val", "valid", "validation")


def find_yaml(folder: Path) -> Path | None:
    """The yaml of a YOLO folder: data.yaml, dataset.yaml, or the only one there is."""
    found = sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml") and p.is_file())
    named = [p for p in found if p.stem in _YAMLS]
    return named[0] if named else found[0] if len(found) == 1 else None


def looks_like_yolo(folder: Path) -> bool:
    """Whether ``folder`` has what a YOLO folder has."""
    if (folder / "labels").is_dir() or any((folder / name).is_file() for name in _LISTS):
        return True
    file = find_yaml(folder)
    return file is not None and (file.stem in _YAMLS or "names" in read_text(file))


def read_yolo(source: Path) -> dict[str, Labels]:
    """Labels by split, "train" and perhaps "val".

    Args:
        source: a data.yaml, or a folder with one, or with classes.txt, images/ and labels/.

    Raises:
        OVDError: no yaml, one that cannot be used, or no image of the training split.
    """
    file = source if source.is_file() else find_yaml(source)
    folder = source.parent if source.is_file() else source
    if file is None:
        names, splits = _names_of_list(folder), {"train": ["images"]}
        bases = [folder]
    else:
        content = _read_yaml(file)
        names = _names(content.get("names"), file)
        bases = [folder / _text(content.get("path", ""), "path", file), folder]
        splits = _splits(content, file, bases)
    found = {}
    for split, texts in splits.items():
        labels = Labels(str(file or folder), names=list(dict.fromkeys(names)), relative=True)
        images = _images(texts, bases, labels)
        if not images and split == "train":
            raise OVDError(
                f"{file or folder} leads to no image ({', '.join(texts)}): put images/ and labels/ "
                "beside it, or correct its `path` and `train`."
            )
        _note_names(names, labels)
        _read_labels(images, names, labels)
        found[split] = labels
    if "val" in found and _paths(found["val"]) == _paths(found["train"]):
        remark = "split has the images of train; they are split instead"
        found["train"].remarks.note(remark, "val")
        del found["val"]
    return found


def _paths(labels: Labels) -> set[Path]:
    return {image.path.resolve() for image in labels.images}


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OVDError(f"{file} is no readable yaml ({reason}): correct it.") from error
    if not isinstance(content, dict) or "names" not in content:
        raise OVDError(f"{file} has no `names`: a YOLO data.yaml lists the classes there.")
    return content


def _names(names: Any, file: Path) -> list[str]:
    """Names by class number; "" for numbers that the file leaves out."""
    if isinstance(names, dict):
        numbers = {_number(key): value for key, value in names.items()}
        if None in numbers or len(numbers) != len(names) or not names:
            raise OVDError(f"{file}: the keys of `names` must be class numbers from 0 on.")
        highest = max(numbers)
        if not 0 <= min(numbers) <= highest < 100_000:
            raise OVDError(f"{file}: the class numbers in `names` must be 0 to 99999.")
        names = [numbers.get(k, "") for k in range(highest + 1)]
    if not isinstance(names, list) or not any(map(class_name, names)):
        raise OVDError(f"{file}: `names` must be a list of class names.")
    return [class_name(name) for name in names]


def _number(value: Any) -> int | None:
    """A class number, perhaps as text or with ".0"; None for anything else."""
    (number,) = to_floats([value])
    return int(number) if number == number and abs(number) < 2**31 and number % 1 == 0 else None


def _names_of_list(folder: Path) -> list[str]:
    places = [folder / name for name in _LISTS] + [folder / "labels" / name for name in _LISTS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise OVDError(
            f"{folder} has labels/ but nothing that names the classes: add a data.yaml with "
            "`names`, or a classes.txt."
        )
    names = [line.strip() for line in read_text(file).split("\n")]
    while names and not names[-1]:
        names.pop()
    if not any(names):
        raise OVDError(f"{file} is empty: it must have a class name in each line.")
    return names


def _text(value: Any, key: str, file: Path) -> str:
    if not isinstance(value, str | None) or "\0" in (value or ""):
        raise OVDError(f"{file}: `{key}` must be a path.")
    return value or ""


def _splits(content: dict[str, Any], file: Path, bases: list[Path]) -> dict[str, list[str]]:
    """Where the images of "train" and "val" are, as the yaml says."""
    found = {}
    for split, keys in (("train", ("train",)), ("val", _VAL)):
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            found[split] = [_text(one, split, file) for one in values]
    if "train" not in found:
        found["train"] = ["images" if any((b / "images").is_dir() for b in bases) else "."]
    return {split: found[split] for split in ("train", "val") if split in found}


def _images(texts: Iterable[str], bases: list[Path], labels: Labels) -> list[Path]:
    """The image files that folders and lists of files stand for."""
    found: list[Path] = []
    for text in texts:
        # A data.yaml often says ../train/images where train/ lies beside it.
        inside = Path(*[part for part in Path(text).parts if part != ".."])
        places = [base / one for one in (text, inside) for base in bases]
        place = next((p for p in places if p.exists()), None)
        if place is None:
            labels.remarks.left_out("folders of images are missing", text)
        elif place.is_dir():
            found += list_images(place)
        elif place.suffix == ".txt":
            lines = [line.strip() for line in read_text(place).split("\n")]
            found += [place.parent / line for line in lines if line and "\0" not in line]
        else:
            labels.remarks.left_out("entries are no folder of images and no list", text)
    return list(dict.fromkeys(found))


def _note_names(names: list[str], labels: Labels) -> None:
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        labels.remarks.note("class names have several numbers and are taken as one", repr(name))


def label_file(image: Path) -> Path:
    """Where the labels of an image are: in labels/ in the place of the last images/, else beside
    it."""
    parts = list(image.parent.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
        return Path(*parts) / f"{image.stem}.txt"
    return image.with_suffix(".txt")


def _read_labels(images: list[Path], names: list[str], labels: Labels) -> None:
    used: dict[Path, Path] = {}
    for image in images:
        file = label_file(image)
        if file in used:
            where = f"{image} ({file.name} is also of {used[file].name})"
            labels.remarks.left_out("images share the label file of another one", where)
            continue
        used[file] = image
        if not file.is_file():
            labels.remarks.note(
                "images have no label file and are taken as not labelled", str(image)
            )
            continue
        boxes = [
            box
            for number, line in enumerate(read_text(file).splitlines(), start=1)
            if line.strip()
            for box in _boxes(line.split(), f"{file} line {number}", names, labels)
        ]
        labels.images.append(RawImage(image, boxes=boxes))
    for folder in sorted({file.parent for file in used}):
        for file in sorted(folder.glob("*.txt")) if folder.is_dir() else ():
            if file not in used and file.name not in _LISTS and folder.name == "labels":
                labels.remarks.left_out("label files have no image", str(file))


def _boxes(words: list[str], where: str, names: list[str], labels: Labels) -> list[RawBox]:
    """The box of a line; none, with a remark, where it has no sense."""
    values, number = to_floats(words[1:]), _number(words[0])
    if number is None or len(values) < 4 or (len(values) > 5 and len(values) % 2):
        labels.remarks.left_out("lines are no labels", where)
        return []
    if not (0 <= number < len(names) and names[number]):
        reason = f"boxes have a class number that is none of the {len(names)} names"
        labels.remarks.left_out(reason, f"{where} (class {number})")
        return []
    if len(values) > 5:
        box = hull(values)
    else:
        x, y, width, height = values[:4]
        box = (x - width / 2, y - height / 2, width, height)
    return [RawBox(names[number], box, where)]
