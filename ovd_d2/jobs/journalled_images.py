"""Labelling images one by one into a journal, shared by the connected processes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from torch import Tensor

from ovd_d2.data.prefetch import MAX_UNREADABLE, read_ahead
from ovd_d2.jobs.processes import OnImage, wait_for_all
from ovd_d2.pseudo_labelling import LabelledImage, journal


@dataclass(frozen=True)
class Share:
    """What one process did in this run.

    Attributes:
        done: images that it has looked at.
        seconds: from the first image to the last.
        unreadable: files that it could not read; they are in no journal.
    """

    done: int = 0
    seconds: float = 0.0
    unreadable: tuple[str, ...] = ()


def label_images(
    out: Path,
    facts: Mapping[str, Any],
    records: Sequence[dict[str, Any]],
    label: Callable[[dict[str, Any], Tensor], LabelledImage],
    on_image: OnImage | None = None,
) -> Share:
    """Appends this process's share of the images, less what is done, to the journal of ``out``;
    returns when all processes are done. The journal of a run that finishes no image goes.

    Args:
        out: the file that the journal is for.
        facts: what an interrupted run must agree with.
        records: of all images, in Detectron2's dataset format.
        label: (record, (3, H, W) uint8 RGB) -> what is written.
        on_image: is told what is done.

    Raises:
        OVDError: a journal of other facts, or more than 1 % of the images are unreadable.
    """
    with journal.nothing_empty_left(out, alone=comm.get_world_size() == 1):
        return _label_share(journal.parts_folder(out), facts, records, label, on_image)


def _label_share(
    folder: Path,
    facts: Mapping[str, Any],
    records: Sequence[dict[str, Any]],
    label: Callable[[dict[str, Any], Tensor], LabelledImage],
    on_image: OnImage | None,
) -> Share:
    if comm.is_main_process():
        journal.prepare(folder, facts)
    wait_for_all()
    rank = comm.get_rank()
    known = {one.image_id for one in journal.finished(folder)}
    share = records[rank :: comm.get_world_size()]
    left = [record for record in share if record["image_id"] not in known]
    unreadable: list[str] = []
    tell = on_image or (lambda done, of: None)
    tell(len(share) - len(left), len(share))
    images, start = 0, time.perf_counter()
    with journal.Journal(folder, rank) as part:
        allowed = MAX_UNREADABLE * len(share)
        for record, image in read_ahead(left, unreadable, len(share), allowed):
            part.append(label(record, image))
            images += 1
            tell(len(share) - len(left) + images + len(unreadable), len(share))
    seconds = time.perf_counter() - start
    wait_for_all()
    return Share(images, seconds, tuple(unreadable))
