"""The images to pseudo-label, and their image-level labels.

Letters: K classes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.build import dataset_errors
from ovd_d2.data.datasets.annotation_files import read_json
from ovd_d2.data.datasets.image_text_pairs import load_pairs
from ovd_d2.errors import OVDError
from ovd_d2.files.images import SUFFIXES
from ovd_d2.language import Vocabulary
from ovd_d2.pseudo_labelling import CaptionLabeller, FolderLabeller

logger = logging.getLogger(__name__)

ImageId = int | str
Records = list[dict[str, Any]]
Labels = dict[ImageId, tuple[int, ...]]
"""Image id -> its classes, ascending; images without a label are not in it."""


def load_images(dataset: str, folder: str) -> Records:
    """Records of the images, in Detectron2's dataset format.

    Args:
        dataset: a registered data set; or
        folder: a folder, searched with its sub-folders; ids are 1, 2, ... in the sorted order of
            the names relative to it.

    Raises:
        OVDError: both or neither is given, no image there, or an image id comes twice.
    """
    if bool(dataset) == bool(folder):
        raise OVDError("give the images: either --dataset NAME or --images FOLDER")
    if dataset:
        with dataset_errors("--dataset", [dataset]):
            records = [dict(record) for record in DatasetCatalog.get(dataset)]
        if len({record["image_id"] for record in records}) != len(records):
            raise OVDError(f"--dataset {dataset} has images with the same id")
        return [{**r, "file_name": os.path.abspath(r["file_name"])} for r in records]
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise OVDError(f"--images {folder}: there is no such folder")
    files = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not files:
        raise OVDError(f"--images {folder} holds no image ({', '.join(SUFFIXES)})")
    return [{"image_id": n, "file_name": str(root / f)} for n, f in enumerate(files, start=1)]


def load_vocabulary(spec: str, dataset: str) -> tuple[Vocabulary, list[int]]:
    """The K classes and their category ids.

    Args:
        spec: "dataset:NAME", a .txt or .json file, or names between commas; "": those of
            ``dataset``.
        dataset: of --dataset, may be "".

    Returns:
        the classes, and ids as in the data set's or file's json, else 1 to K.

    Raises:
        OVDError: neither is given, or no such vocabulary.
    """
    if not spec and not dataset:
        raise OVDError("--images needs --vocab: dataset:NAME, a file, or names between commas")
    spec = spec or f"dataset:{dataset}"
    vocabulary = Vocabulary.load(spec)
    ids = list(range(1, len(vocabulary) + 1))
    if spec.startswith("dataset:"):
        metadata = MetadataCatalog.get(spec.removeprefix("dataset:").strip())
        contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        ids = [k for k, _ in sorted(contiguous.items(), key=lambda item: item[1])] or ids
    elif spec.lower().endswith(".json"):
        content = json.loads(Path(spec).read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and "categories" in content:
            ids = sorted(category["id"] for category in content["categories"])
    if len(ids) != len(vocabulary):
        raise OVDError(f"--vocab {spec} has {len(vocabulary)} names but {len(ids)} category ids")
    return vocabulary, ids


class LabelReader:
    """Reads the labels of images; see :meth:`read`.

    Args:
        records: of the images.
        vocabulary: K classes.
        dataset: of --dataset; "" with ``folder``.
        folder: of --images; "" with ``dataset``.
        other_phrases: see :class:`CaptionLabeller`.
        folder_names: a json {folder: name}; "" for none.
    """

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        *,
        dataset: str = "",
        folder: str = "",
        other_phrases: Iterable[str] = (),
        folder_names: str = "",
    ) -> None:
        self._records = records
        self._vocabulary = vocabulary
        self._dataset = dataset
        self._folder = folder
        self._other_phrases = tuple(other_phrases)
        self._folder_names = folder_names
        self._ids = {record["image_id"] for record in records}
        self._by_base: dict[str, Records] = {}
        for record in records:
            self._by_base.setdefault(os.path.basename(record["file_name"]), []).append(record)

    def read(self, spec: str) -> Labels:
        """The labels that ``spec`` tells.

        Args:
            spec: "captions:FILE", "json:FILE", "folders" or "dataset".

        Raises:
            OVDError: unknown, unreadable, or not one label for any of the images.
        """
        kind, _, path = spec.partition(":")
        if kind == "captions" and path:
            labels = self._from_captions(Path(path).expanduser())
        elif kind == "json" and path:
            labels = self._from_json(Path(path).expanduser())
        elif spec == "folders":
            labels = self._from_folders()
        elif spec == "dataset":
            labels = self._from_dataset()
        else:
            raise OVDError(
                f"--labels {spec or '(none)'} is unknown: use captions:FILE, json:FILE, folders or "
                "dataset"
            )
        found = {
            image_id: tuple(sorted(labels[image_id])) for image_id in labels if labels[image_id]
        }
        if not found:
            raise OVDError(
                f"--labels {spec} gives none of the {len(self._records)} images a label that the "
                "vocabulary has: wrong file, or wrong --vocab?"
            )
        return found

    def _from_captions(self, path: Path) -> dict[ImageId, set[int]]:
        find = CaptionLabeller(self._vocabulary, self._other_phrases)
        captions = (
            self._coco_captions(path) if path.suffix == ".json" else self._paired_captions(path)
        )
        labels: dict[ImageId, set[int]] = {}
        strange = 0
        for image_id, caption in captions:
            if image_id is None:
                strange += 1
            else:
                labels.setdefault(image_id, set()).update(find(caption))
        if strange:
            logger.warning("%s has %d captions of images that are not here.", path, strange)
        return labels

    def _paired_captions(self, path: Path) -> Iterator[tuple[ImageId | None, str]]:
        """Of a csv or jsonl file: those about whole images."""
        for pair in load_pairs(path):
            if "box" not in pair:
                name = pair["file_name"]
                if Path(name).is_relative_to(path.parent):  # as it stands in the file
                    name = str(Path(name).relative_to(path.parent))
                yield self._by_name(name), pair["caption"]

    def _coco_captions(self, path: Path) -> Iterator[tuple[ImageId | None, str]]:
        """Of COCO's json: image ids are the data set's, names if there is none."""
        content = _read_json(path)
        try:
            names = {image["id"]: image["file_name"] for image in content.get("images", ())}
            if not self._dataset and not names:
                raise OVDError(
                    f'{path} has no "images" with file_name, which --images needs to tell them'
                )
            for entry in content["annotations"]:
                image_id = entry["image_id"]
                if self._dataset:
                    known: ImageId | None = image_id if image_id in self._ids else None
                else:
                    known = self._by_name(names[image_id])
                yield known, str(entry["caption"])
        except (KeyError, TypeError, AttributeError) as error:
            raise OVDError(
                f'{path} is no captions file of COCO ({error!r}): it needs "annotations" with '
                "image_id and caption"
            ) from error

    def _from_json(self, path: Path) -> dict[ImageId, set[int]]:
        content = _read_json(path)
        if not isinstance(content, dict):
            raise OVDError(f"{path} must hold {{file_name or image_id: [names]}}")
        find = CaptionLabeller(self._vocabulary)
        exact = {name: index for index, name in enumerate(self._vocabulary.names)}
        by_text = {str(image_id): image_id for image_id in self._ids}
        labels: dict[ImageId, set[int]] = {}
        strange = 0
        for key, names in content.items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise OVDError(f"{path}: the labels of {key} are {names!r}, not a list of names")
            image_id = by_text.get(key) if key in by_text else self._by_name(key)
            if image_id is None:
                strange += 1
                continue
            for name in names:
                index = exact.get(name, find.classes_of(name))
                if index is None:
                    raise OVDError(
                        f"{path}: {key} has the label {name!r}, which is no class of the "
                        "vocabulary: correct it or --vocab"
                    )
                labels.setdefault(image_id, set()).add(index)
        if strange:
            logger.warning("%s has labels of %d images that are not here.", path, strange)
        return labels

    def _from_folders(self) -> dict[ImageId, set[int]]:
        names = {}
        if self._folder_names:
            names = _read_json(Path(self._folder_names))
            if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
                raise OVDError(f"--folder-names {self._folder_names} must hold {{folder: name}}")
        find = FolderLabeller(self._vocabulary, names)
        root = self._folder and Path(self._folder).expanduser().absolute()
        labels, nameless = {}, set()
        for record in self._records:
            name = os.path.relpath(record["file_name"], root) if root else record["file_name"]
            index = find(name)
            if index is None:
                nameless.add(os.path.dirname(name))
            else:
                labels[record["image_id"]] = {index}
        if nameless:
            logger.warning(
                "%d folders are named after no class of the vocabulary, such as %s.",
                len(nameless),
                sorted(nameless)[0] or ".",
            )
        return labels

    def _from_dataset(self) -> dict[ImageId, set[int]]:
        if not self._dataset:
            raise OVDError("--labels dataset takes the classes of the annotations of --dataset")
        own = Vocabulary.from_metadata(self._dataset).names
        index = {name: k for k, name in enumerate(self._vocabulary.names)}
        return {
            record["image_id"]: {
                index[own[annotation["category_id"]]]
                for annotation in record.get("annotations", ())
                if own[annotation["category_id"]] in index
            }
            for record in self._records
        }

    def _by_name(self, name: str) -> ImageId | None:
        """The image whose file is ``name``, or ends with it; None if there is none.

        Raises:
            OVDError: several are.
        """
        parts = Path(name).parts
        found = [
            record["image_id"]
            for record in self._by_base.get(parts[-1] if parts else "", ())
            if Path(record["file_name"]).parts[-len(parts) :] == parts
        ]
        if len(found) > 1:
            raise OVDError(
                f"{len(found)} images are called {name}: name them with their folders in the file "
                "of labels"
            )
        return found[0] if found else None


def fingerprint(
    records: Sequence[Mapping[str, Any]], labels: Mapping[ImageId, Sequence[int | str]] | None
) -> str:
    """Digest of which images there are and, if given, of their labels: what a resumed run must
    share with the one before."""
    rows = [[r["image_id"], os.path.basename(r["file_name"])] for r in records]
    if labels is not None:
        rows = [[*row, *labels.get(row[0], ())] for row in rows]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OVDError(f"{path} cannot be read as json ({reason})") from error
