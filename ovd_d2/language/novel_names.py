"""Which of a data set's classes are novel: by its metadata, or by names that the user gives."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError

from .vocabulary import Vocabulary

KEY = "DATASETS.NOVEL_NAMES"


def read_novel_names(entries: Sequence[str] | str) -> tuple[str, ...]:
    """The names that ``DATASETS.NOVEL_NAMES`` gives.

    Args:
        entries: names, or .txt and .json files of names as ``Vocabulary.from_file`` reads them.

    Raises:
        OVDError: an entry is no text, or a file is unusable.
    """
    entries = [entries] if isinstance(entries, str) else entries
    names: dict[str, None] = {}
    for entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            raise OVDError(f"{KEY} holds {entry!r}; give names of classes, or files of names.")
        is_file = Path(entry).suffix.lower() in (".txt", ".json")
        found: Iterable[str] = Vocabulary.from_file(entry).names if is_file else (entry.strip(),)
        names.update(dict.fromkeys(found))
    return tuple(names)


def novel_flags(
    metadata: Any, names: Sequence[str], novel_names: Sequence[str] = ()
) -> tuple[bool, ...]:
    """Which of K classes are novel; () if nobody says.

    Args:
        metadata: of a data set; its ``is_novel`` (K bools) counts, or else its ``novel_classes`` or
            ``base_classes`` (names).
        names: K names of its classes.
        novel_names: from :func:`read_novel_names`; if there are any, they alone count.

    Raises:
        OVDError: the metadata name a class that is not there.
    """
    if novel_names:
        return tuple(name in set(novel_names) for name in names)
    if metadata.get("is_novel") is not None:
        return tuple(bool(flag) for flag in metadata.is_novel)
    for key, novel in (("novel_classes", True), ("base_classes", False)):
        listed = metadata.get(key)
        if listed is None:
            continue
        unknown = sorted(set(listed) - set(names))
        if unknown:
            raise OVDError(
                f"The metadata of data set '{metadata.name}' name {unknown[0]!r} in {key}, which "
                "is none of its thing_classes."
            )
        return tuple((name in set(listed)) is novel for name in names)
    return ()
