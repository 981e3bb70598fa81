"""Journal of a video: what was found in every frame that is done, so that a kill costs a batch.

``NAME.jsonl.parts/`` holds ``facts.json``, what is being made, ``frames.jsonl``, the lines of the
frames that are done, and ``video.mp4``, what is drawn so far. It goes when the outputs are there.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write, missing_folders, remove_empty
from ovd_d2.files.locks import lock
from ovd_d2.pseudo_labelling.journal import parts_folder, prepare, remove

LINES = "frames.jsonl"
PICTURE = "video.mp4"


class VideoJournal:
    """The lines of a video's frames; a context manager.

    Attributes:
        count: frames that were done before this run.
        picture: where the video is drawn.
    """

    def __init__(
        self, out: Path, facts: Mapping[str, Any], *, resume: bool | None, batch_size: int
    ) -> None:
        """
        Args:
            out: the json lines this is to become.
            facts: what the run is about: a run with others is not continued.
            resume: True: continue what was interrupted; False: begin anew; None: only if there is
                nothing to continue.
            batch_size: frames that are predicted together. Of an interrupted run so many are
                dropped that batches are made of the same frames as without the interruption: what
                a network says of a picture depends in its last bits on the size of the batch.

        Raises:
            OVDError: an interrupted run is there and ``resume`` is None, it is of other ``facts``,
                or another process is writing it.
        """
        self._out, self.folder = out, parts_folder(out)
        self.picture = self.folder / PICTURE
        self._made = missing_folders(out.parent)
        self.appended = 0
        if (self.folder / LINES).is_file() and resume is None:
            raise OVDError(
                f"{self.folder} is what an interrupted run left: add --resume to continue it, or "
                "--no-resume to begin anew."
            )
        if resume is False:
            remove(self.folder)
        try:
            prepare(self.folder, facts)
        except OVDError as error:
            raise OVDError(f"{error} (--no-resume begins anew).") from None
        path = self.folder / LINES
        taken = f"Another process is writing {path}: wait for it, or choose another folder."
        self._lock = lock(path.with_suffix(".lock"), taken=taken)
        self._file = open(path, "ab+")  # noqa: SIM115
        self.count, whole = self._whole_batches(batch_size)
        self._file.truncate(whole)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What earlier runs have found, frame by frame.

        Raises:
            OVDError: a damaged line.
        """
        with open(self.folder / LINES, "rb") as file:
            for number in range(self.count):
                try:
                    yield json.loads(file.readline())
                except ValueError as error:
                    raise OVDError(
                        f"{file.name} line {number + 1} is damaged ({error}): begin anew with "
                        "--no-resume."
                    ) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a frame; it is done from now on, whatever happens to the process."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self.appended += 1

    def finish(self) -> None:
        """Gives the lines their place, whole."""
        self._file.flush()
        with atomic_write(self._out) as target, open(self._file.name, "rb") as lines:
            shutil.copyfileobj(lines, target)

    def __enter__(self) -> "VideoJournal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._lock.release()
        if kind is None or not (self.count or self.appended):  # done, or nothing was
            remove(self.folder)
        if kind is not None:
            remove_empty(self._made)

    def _whole_batches(self, batch_size: int) -> tuple[int, int]:
        """How many lines count, and their bytes; one torn by a kill does not."""
        self._file.seek(0)
        count = kept = size = 0
        at = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            count, at = count + 1, at + len(line)
            if count % batch_size == 0:
                kept, size = count, at
        return kept, size
