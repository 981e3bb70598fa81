"""Journal of a labelling run: one line per finished image, so that a kill costs one image.

``FILE.json.parts/`` holds ``facts.json``, what is being made, and ``rank0.jsonl``, ``rank1.jsonl``,
... of the processes. It goes when the label file is there.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import beside, missing_folders, remove_empty, write_json
from ovd_d2.files.locks import lock

from .label_file import LabelledImage

FACTS = "facts.json"


class Journal:
    """Appends finished images to this process's part; a context manager.

    Args:
        folder: of the parts, prepared by :func:`prepare`.
        rank: of this process.

    Raises:
        OVDError: another process is writing the same part.
    """

    def __init__(self, folder: str | os.PathLike, rank: int = 0) -> None:
        path = Path(folder) / f"rank{rank}.jsonl"
        taken = f"another process is writing {path}: wait for it, or write another file"
        self._lock = lock(path.with_suffix(".lock"), taken=taken)
        self._file: BinaryIO = open(path, "ab+")  # noqa: SIM115
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1  # a line torn by a kill does not count
        self._file.truncate(whole)

    def append(self, one: LabelledImage) -> None:
        """Adds an image; it is done from now on, whatever happens to the process."""
        boxes = [[index, *box, score] for index, box, score in one.boxes]
        row = [one.image_id, one.height, one.width, boxes, one.without_box]
        line = json.dumps([*row, one.phrases] if one.phrases else row)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._lock.release()


def parts_folder(out: str | os.PathLike) -> Path:
    """Where the parts of the label file ``out`` lie."""
    return beside(out, ".parts", hidden=False)


def prepare(folder: Path, facts: Mapping[str, Any]) -> None:
    """Makes the folder of the parts, or checks that it is of the same ``facts``.

    Raises:
        OVDError: it is of other facts; the first one that differs is named.
    """
    path = folder / FACTS
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OVDError(f"the folder {folder} cannot be made: {error.strerror}") from None
        write_json(path, facts)
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OVDError(f"{path} cannot be read ({error}); remove {folder}") from error
    check_same(facts, begun, f"{folder}, which an interrupted run left,")


def check_same(facts: Mapping[str, Any], begun: Mapping[str, Any], where: str) -> None:
    """Raises OVDError naming the first of ``facts`` that differs in ``begun``."""
    for key, value in json.loads(json.dumps(facts)).items():
        if key != "version" and begun.get(key) != value:
            raise OVDError(
                f"{where} was made with {key} {_short(begun.get(key))}, but this run has "
                f"{_short(value)}: use the same settings, remove it, or write another file"
            )


def finished(folder: Path) -> Iterator[LabelledImage]:
    """All images that any process has finished, torn lines left out."""
    for path in sorted(folder.glob("rank*.jsonl")):
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    continue
                try:
                    image_id, height, width, rows, without, *more = json.loads(line)
                    boxes = tuple((int(k), (x, y, w, h), s) for k, x, y, w, h, s in rows)
                    phrases = tuple((int(b), int(e)) for spans in more for b, e in spans)
                except (ValueError, TypeError) as error:
                    raise OVDError(
                        f"{path} line {number} is damaged ({error}); remove {folder}"
                    ) from error
                yield LabelledImage(image_id, height, width, boxes, without, phrases)


@contextmanager
def nothing_empty_left(out: str | os.PathLike, *, alone: bool) -> Iterator[None]:
    """Deletes the parts if the block fails before an image of ``out`` was finished.

    Args:
        out: the label file.
        alone: False: other processes write too, and may have finished images; then all stays.
    """
    folder = parts_folder(out)
    made = missing_folders(folder.parent)
    try:
        yield
    except BaseException:
        if alone and not any(path.stat().st_size for path in folder.glob("rank*.jsonl")):
            remove(folder)
            remove_empty(made)
        raise


def remove(folder: Path) -> None:
    """Deletes the folder of the parts."""
    shutil.rmtree(folder, ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
