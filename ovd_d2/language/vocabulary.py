"""The ordered class names of a detector, and what is known about each of them.

Letter: K is the number of classes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import is_special_file

from .dataset_classes import class_names

_HALF_PAIR = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\0-\x1f]")
_FILE_SUFFIXES = (".txt", ".json")
_LOOKS_LIKE_A_FILE = (*_FILE_SUFFIXES, ".csv", ".tsv", ".yaml", ".yml", ".npy", ".pkl", ".pt")


@dataclass(frozen=True)
class Vocabulary:
    """K class names in the order of the classifier's columns. Immutable, comparable, hashable.

    Attributes:
        names: K distinct, non-empty names as their source spells them ("aerosol_can"); cleaning
            for the text encoder happens in ``prompts``.
        synonyms: K tuples of other words for the class. Empty: ``(name,)`` for each class.
        definitions: K sentences. Empty: "" for each class.
        is_novel: (K,) True for classes held out of training (training sets) or counted in
            AP_novel (evaluation sets). Empty: all False.
        image_counts: (K,) number of training images with the class; stays ``()`` when unknown.

    Raises:
        OVDError: no names, an empty or repeated name, or a field that does not have K entries.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()
    definitions: tuple[str, ...] = ()
    is_novel: tuple[bool, ...] = ()
    image_counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names = _strings(self.names, "names")
        _check_names(names)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "synonyms", _synonyms(names, self.synonyms))
        object.__setattr__(
            self, "definitions", _strings(self.definitions or [""] * len(names), "definitions")
        )
        object.__setattr__(
            self, "is_novel", tuple(bool(x) for x in self.is_novel) or (False,) * len(names)
        )
        object.__setattr__(self, "image_counts", _counts(self.image_counts))
        for field in ("definitions", "is_novel", "image_counts"):
            count = len(getattr(self, field))
            if count != len(names) and not (field == "image_counts" and count == 0):
                raise OVDError(
                    f"vocabulary field '{field}' has {count} entries for {len(names)} names; "
                    "give one per name or leave it out"
                )

    def __len__(self) -> int:
        """K, the number of classes."""
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of all fields: equal vocabularies, and only those, share it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain lists; as a JSON file, ``from_file`` reads them back."""
        plain = {field.name: list(getattr(self, field.name)) for field in fields(self)}
        return {**plain, "synonyms": [list(words) for words in self.synonyms]}

    @classmethod
    def from_names(cls, names: Sequence[str] | str) -> "Vocabulary":
        """From a list of names, or from one string with names between commas."""
        names = _strings(names.split(",") if isinstance(names, str) else names, "names")
        return cls(names=tuple(name.strip() for name in names))

    @classmethod
    def from_file(cls, path: str | PathLike) -> "Vocabulary":
        """From a ``.txt`` file (UTF-8, one name per line, blank lines skipped) or a ``.json`` file.

        JSON may hold a list of names, ``{"names": [...]}`` with the other fields of this class, or
        LVIS or COCO annotations: ``{"categories": [{"id", "name", ...}]}``, ordered by id. In
        LVIS categories "synonyms", "def" and "image_count" are read; ``is_novel`` is the
        category's own "is_novel" if present, else whether its "frequency" is "r".

        Raises:
            OVDError: the file is missing, is of another kind, or holds no usable names.
        """
        path = Path(path)
        if path.suffix.lower() not in _FILE_SUFFIXES:
            raise OVDError(f"vocabulary file {path} must end in .txt or .json")
        if is_special_file(path):
            raise OVDError(f"vocabulary file {path} is a pipe or a device; give a plain file")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:  # not UTF-8; a NUL in the path
            raise OVDError(
                f"cannot read vocabulary file {path} ({_reason(error)}); "
                "give an existing UTF-8 text or JSON file"
            ) from error
        try:
            if path.suffix.lower() == ".txt":
                lines = (line.strip() for line in text.split("\n"))
                return cls(names=tuple(line for line in lines if line))
            return _from_json(json.loads(text))
        except OVDError as error:
            raise OVDError(f"vocabulary file {path}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise OVDError(
                f"vocabulary file {path} is not valid JSON ({_reason(error)}); fix or rebuild it"
            ) from error

    @classmethod
    def from_metadata(cls, dataset_name: str) -> "Vocabulary":
        """From the metadata of a registered Detectron2 dataset.

        Reads the names of its classes (``thing_classes``, or ``stuff_classes`` of a semantic one)
        and, where present, ``synonyms``, ``definitions``, ``is_novel`` (or ``base_classes`` or
        ``novel_classes``, names) and ``class_image_count`` (Detectron2's LVIS list of {"id",
        "image_count"} in class order). If a dataset names its classes only while loading, it is
        loaded once.

        Raises:
            OVDError: no such dataset, or it does not say its class names.
        """
        from detectron2.data import DatasetCatalog, MetadataCatalog

        from ovd_d2.language.novel_names import novel_flags

        known = {*MetadataCatalog.list(), *DatasetCatalog.list()}
        if dataset_name not in known:
            close = get_close_matches(dataset_name, sorted(known))
            hint = f"did you mean {' or '.join(close)}?" if close else "register it first"
            raise OVDError(f"dataset '{dataset_name}' is not registered; {hint}")
        metadata = MetadataCatalog.get(dataset_name)
        if class_names(metadata) is None and dataset_name in DatasetCatalog:
            try:
                DatasetCatalog.get(dataset_name)
            except OSError as error:
                raise OVDError(
                    f"dataset '{dataset_name}' could not be loaded to learn its class names "
                    f"({_reason(error)}); set its files up or MODEL.OPEN_VOCAB.VOCABULARY"
                ) from error
        names = class_names(metadata)
        if not names:
            raise OVDError(
                f"dataset '{dataset_name}' has no thing_classes or stuff_classes in its metadata; "
                "set them, or set MODEL.OPEN_VOCAB.VOCABULARY"
            )
        try:
            counts = [entry["image_count"] for entry in metadata.get("class_image_count") or ()]
            return cls(
                names=tuple(names),
                synonyms=tuple(metadata.get("synonyms") or ()),
                definitions=tuple(metadata.get("definitions") or ()),
                is_novel=novel_flags(metadata, names),
                image_counts=tuple(counts),
            )
        except (OVDError, KeyError, TypeError) as error:
            raise OVDError(f"metadata of dataset '{dataset_name}': {error}") from error

    def with_novel(self, novel_names: Sequence[str]) -> "Vocabulary":
        """The same classes, of which those named are novel; as it is if ``novel_names`` is empty.

        Args:
            novel_names: names of ``DATASETS.NOVEL_NAMES``; those of other vocabularies do no harm.
        """
        if not novel_names:
            return self
        return replace(self, is_novel=tuple(name in set(novel_names) for name in self.names))

    @classmethod
    def load(cls, spec: str) -> "Vocabulary":
        """From "dataset:NAME", the path of a .txt or .json file, names between commas, or
        "everything" alone: the names of LVIS and Objects365 (see :func:`.everything.everything`).

        Any of them may be followed by "+imagenet21k:N": N further names, of ImageNet-21K.

        Raises:
            OVDError: ``spec`` is empty or names something that is not there.
        """
        if not isinstance(spec, str):
            raise OVDError(f"a vocabulary is described by a text, not {spec!r}")
        spec = spec.strip()
        if not spec:
            raise OVDError(
                "empty vocabulary: give 'dataset:NAME', a .txt or .json file, 'everything', "
                "or class names between commas"
            )
        first, plus, count = spec.rpartition("+imagenet21k:")
        if plus:
            from ovd_d2.language.imagenet_names import extend_with_imagenet21k

            return extend_with_imagenet21k(cls.load(first), count)
        if spec == "everything":
            from ovd_d2.language.everything import everything

            return everything()
        if spec.startswith("dataset:"):
            return cls.from_metadata(spec.removeprefix("dataset:").strip())
        if spec.lower().endswith(_LOOKS_LIKE_A_FILE) or _is_file(spec):
            return cls.from_file(spec)
        return cls.from_names(spec)


def _from_json(content: Any) -> Vocabulary:
    if isinstance(content, list):
        return Vocabulary(names=tuple(content))
    if isinstance(content, dict) and "categories" in content:
        return _from_categories(content["categories"])
    if isinstance(content, dict) and isinstance(content.get("names"), list):
        values = {field.name: content.get(field.name) or () for field in fields(Vocabulary)}
        for field, value in values.items():
            if not isinstance(value, (list, tuple)):
                raise OVDError(f"'{field}' must be a list")
        if not all(isinstance(flag, bool) for flag in values["is_novel"]):
            raise OVDError("'is_novel' must be a list of true and false")
        return Vocabulary(**{field: tuple(value) for field, value in values.items()})
    raise OVDError("expected a list of names, {'names': [...]} or {'categories': [...]}")


def _from_categories(categories: Any) -> Vocabulary:
    if not isinstance(categories, list) or not categories:
        raise OVDError("'categories' must be a non-empty list")
    for category in categories:
        if not isinstance(category, dict) or "name" not in category:
            raise OVDError("every entry of 'categories' must be an object with a 'name'")
        if type(category.get("id")) is not int:
            raise OVDError(f"category {category['name']!r} must have an integer 'id'")
    categories = sorted(categories, key=lambda category: category["id"])
    if len({category["id"] for category in categories}) != len(categories):
        raise OVDError("two categories share an 'id'")
    counts = [category.get("image_count") for category in categories]
    return Vocabulary(
        names=tuple(category["name"] for category in categories),
        synonyms=tuple(c.get("synonyms") or (c["name"],) for c in categories),
        definitions=tuple(c.get("def") or c.get("definition") or "" for c in categories),
        is_novel=tuple(bool(c.get("is_novel", c.get("frequency") == "r")) for c in categories),
        image_counts=() if None in counts else tuple(counts),
    )


def _check_names(names: tuple[str, ...]) -> None:
    if not names:
        raise OVDError("a vocabulary needs at least one class name")
    seen = set()
    for index, name in enumerate(names):
        if not name.strip():
            raise OVDError(f"class name number {index + 1} is empty; remove it or name it")
        if name in seen:
            raise OVDError(f"class name '{name}' occurs twice; names must be distinct")
        seen.add(name)


def _strings(values: Iterable[Any], what: str) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise OVDError(f"vocabulary: {what} must be a list of strings, not {values!r}")
    values = tuple(values)
    if set(map(type, values)) <= {str}:  # a million names are looked at as one text
        text = "".join(values)
        if not _HALF_PAIR.search(text) and (what == "definitions" or not _CONTROL.search(text)):
            return values
    for value in values:
        if not isinstance(value, str):
            raise OVDError(f"vocabulary: {what} must be strings, not {value!r}")
        if _HALF_PAIR.search(value):
            raise OVDError(f"vocabulary: {what} hold half a surrogate pair in {value!r}; repair it")
        if what != "definitions" and _CONTROL.search(value):
            raise OVDError(f"vocabulary: {what} hold a control character in {value!r}; remove it")
    return values


def _synonyms(names: tuple[str, ...], given: Any) -> tuple[tuple[str, ...], ...]:
    """One tuple of distinct words for each name."""
    if not given:
        return tuple((name,) for name in names)
    return tuple(
        tuple(dict.fromkeys(_strings(words, f"synonyms of '{name}'"))) or (name,)
        for name, words in _paired(names, given)
    )


def _paired(names: tuple[str, ...], synonyms: Any) -> list[tuple[str, Any]]:
    if not isinstance(synonyms, Sequence) or len(synonyms) != len(names):
        raise OVDError(
            f"vocabulary field 'synonyms' does not hold one list for each of {len(names)} names; "
            "give one per name or leave it out"
        )
    return list(zip(names, synonyms))


def _counts(values: Iterable[Any]) -> tuple[int, ...]:
    try:
        counts = tuple(int(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise OVDError(f"vocabulary: image_counts must be whole numbers ({error})") from error
    if any(count < 0 for count in counts):
        raise OVDError("vocabulary: image_counts must not be negative")
    return counts


def _is_file(spec: str) -> bool:
    try:
        return Path(spec).is_file()
    except (OSError, ValueError):  # too long for a path, or a NUL in it
        return False


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
