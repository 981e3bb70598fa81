"""Families of rows of ``ovd benchmark``: what shares a table, a summary and a picture.

A new family is an entry of :data:`FAMILIES`; its numbers come by ``ovd benchmark tables --take``.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ovd_d2.errors import OVDError


@dataclass(frozen=True)
class Family:
    """Rows that are compared with each other.

    Attributes:
        title: what they are, as a heading says it.
        rows: names of rows, ``*`` for any part of one; a row is of the first family that has it.
        tasks: whose metrics its table shows, of ``summary.REPORTED``.
        bars: the metrics of its picture, all of the first task.
        what: what the bars are, in percent.
        seconds: whether its table shows them.
        beside: a row of another family that its table begins with, by seed 1 alone.
        of_demo: whether ``ovd demo`` makes its rows, not ``ovd benchmark``.
    """

    title: str
    rows: tuple[str, ...]
    tasks: tuple[str, ...] = ("box",)
    bars: tuple[str, ...] = ("AP_base", "AP_novel")
    what: str = "box AP"
    seconds: bool = False
    beside: str = ""
    of_demo: bool = False


FAMILIES = {
    "examples": Family(
        "classes by visual examples", ("vild_ensemble_*_by_*",), beside="vild_ensemble"
    ),
    "vild": Family(
        "ViLD", ("supervised_all", "two_heads_no_distillation", "vild*", "clip_on_crops")
    ),
    "rkd": Family("RKD", ("rkd_*",)),
    "one_stage": Family("GLIP and DetCLIP", ("glip*", "detclip*"), tasks=("box", "grounding")),
    "segmentation": Family(
        "LSeg and GroupViT",
        ("lseg*", "groupvit*"),
        tasks=("sem_seg",),
        bars=("mIoU_base", "mIoU_novel"),
        what="mean IoU",
    ),
    "mavl": Family(
        "MAVL",
        ("mavl*",),
        tasks=("class_agnostic",),
        bars=("AP50", "R50"),
        what="class-agnostic AP50 and R50",
    ),
    "demo": Family("ovd demo", ("*",), seconds=True, of_demo=True),
}


def family_of(row: str, *, of_demo: bool = False) -> str:
    """The family of a row.

    Raises:
        OVDError: no family has it.
    """
    for name, family in FAMILIES.items():
        if family.of_demo == of_demo and any(fnmatchcase(row, part) for part in family.rows):
            return name
    raise OVDError(f"Row {row} is of no family: add it to FAMILIES in {__name__}.")


def select(rows: Iterable[str], asked: str, families: str) -> list[str]:
    """The rows that ``--rows`` and ``--families`` choose.

    Args:
        rows: all there are, in order.
        asked: names separated by commas; "" for all.
        families: the same of families; a row must be of one of them, or stand beside it.

    Raises:
        OVDError: a name is unknown, or nothing is left.
    """
    rows = list(rows)
    names = _known("--rows", asked, rows) if asked else rows
    if not families:
        return names
    made = [name for name, family in FAMILIES.items() if not family.of_demo]
    wanted = _known("--families", families, made)
    beside = [FAMILIES[name].beside for name in wanted]
    chosen = [name for name in names if family_of(name) in wanted or name in beside]
    if not chosen:
        raise OVDError(f"--families {families}: none of --rows {asked} is of them.")
    return chosen


def _known(option: str, text: str, known: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if not unknown and names:
        return names
    wrong = ", ".join(unknown) or "an empty list"
    near = [hit for name in unknown for hit in difflib.get_close_matches(name, known, 1)]
    meant = f" (do you mean {', '.join(near)}?)" if near else ""
    raise OVDError(f"{option} {wrong}{meant}: the benchmark knows {', '.join(known)}.")
