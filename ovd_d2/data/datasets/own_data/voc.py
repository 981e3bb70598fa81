"""Pascal VOC folders: an xml for each image, in Annotations/ or beside it.

Corners are pixel numbers from 1, as Detectron2 reads them: xmin = 1, xmax = W covers the image.
ImageSets/Main/train.txt and val.txt say which image is of which split.
"""

from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError

from .labels import Labels, RawBox, RawImage, class_name, list_images, read_text, to_floats

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def looks_like_voc(folder: Path) -> bool:
    """Whether an xml is in ``folder`` or in its Annotations/."""
    return any(any(place.glob("*.xml")) for place in (folder / "Annotations", folder))


def read_voc(folder: Path, images: Path | None = None) -> dict[str, Labels]:
    """Labels by split, "train" and perhaps "val".

    Args:
        folder: with xml files, in whichever folder below it.
        images: where the images are; None: anywhere in ``folder``.

    Raises:
        OVDError: no xml, or defusedxml is not installed.
    """
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise OVDError(f"{folder} has no xml: a Pascal VOC folder has one for each image.")
    places = _Places(list_images(images or folder))
    by_split = _splits(folder, files)
    found = {}
    for split, of_split in by_split.items():
        labels = found[split] = Labels(str(folder))
        for file in of_split:
            _read_file(file, places, labels)
    for image in places.unused():
        found["train"].remarks.note("images have no xml and are taken as not labelled", str(image))
    return found


class _Places:
    """Finds the image of an xml, and knows which ones nobody asked for."""

    def __init__(self, images: list[Path]) -> None:
        self._by_name: dict[str, list[Path]] = {}
        for image in images:
            for key in (image.name, image.stem):
                self._by_name.setdefault(key, []).append(image)
        self._unused = dict.fromkeys(images)

    def find(self, file: Path, name: str) -> Path:
        """The image called ``name``, or as the xml; of several the one nearest to it; one that is
        not there if there is none."""
        for key in (Path(name).name, file.stem):
            found = self._by_name.get(key)
            if found:
                beside = [image for image in found if image.parent == file.parent]
                image = (beside or found)[0]
                self._unused.pop(image, None)
                return image
        return file.parent / (Path(name).name or f"{file.stem}.jpg")

    def unused(self) -> list[Path]:
        return list(self._unused)


def _splits(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    lists = {split: folder / "ImageSets" / "Main" / f"{split}.txt" for split in ("train", "val")}
    ids = {
        split: {line.split()[0] for line in read_text(file).splitlines() if line.split()}
        for split, file in lists.items()
        if file.is_file()
    }
    by_split = {s: [f for f in files if f.stem in wanted] for s, wanted in ids.items()}
    if not by_split.get("train") or not by_split.get("val"):
        return {"train": files}
    return by_split


def _read_file(file: Path, places: _Places, labels: Labels) -> None:
    try:
        from defusedxml import ElementTree
    except ImportError as error:
        raise OVDError("Pascal VOC files need defusedxml: run `pip install defusedxml`.") from error
    try:
        root = ElementTree.parse(file).getroot()
    except Exception as error:  # of expat, of codecs, of forbidden entities
        labels.remarks.left_out("files are no readable xml", f"{file} ({error})")
        places.find(file, "")
        return
    name = root.findtext("filename") or ""
    image = RawImage(places.find(file, name.replace("\0", "").strip()), _size(root))
    for number, element in enumerate(root.iter("object"), start=1):
        where = f"{file} object {number}"
        label = class_name(element.findtext("name"))
        corners = to_floats(_corner(element, key) for key in _CORNERS)
        x0, y0, x1, y1 = corners
        if not label:
            labels.remarks.left_out("boxes have no class name", where)
            continue
        image.boxes.append(RawBox(label, (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1), where))
    labels.images.append(image)


def _corner(element: Any, key: str) -> str | None:
    return element.findtext(f"bndbox/{key}")


def _size(root: Any) -> tuple[int, int] | None:
    """(width, height); None where the file does not say, or says 0."""
    size = to_floats(root.findtext(f"size/{side}") for side in ("width", "height"))
    return (int(size[0]), int(size[1])) if all(0 < side < 2**31 for side in size) else None
