"""Image-text pairs in tar shards, as img2dataset and webdataset write them.

A pair is the members of one key: 000012.jpg with 000012.txt, or with 000012.json that has an entry
"caption". Shards are indexed once (headers are read, images are not) and then read at random, so
that shuffling is complete and training resumes exactly, which a stream of shards cannot do.
"""

import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ovd_d2.errors import OVDError
from ovd_d2.files.images import SUFFIXES

logger = logging.getLogger(__name__)

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_DIGITS = 18  # of a number in a range
_BLOCK = 512  # bytes; tar ends with a block of zeros
_PROGRESS_AFTER = 5.0  # seconds
_MOST_SHARDS = 1_000_000  # of a range in which shards may be missing
_SHOWN = 5  # names in a warning
_SKIPS: ContextVar[bool] = ContextVar("whether damaged shards are left out", default=False)


@contextmanager
def damaged_shards(policy: str) -> Iterator[None]:
    """Inside, shards that are missing or damaged are refused, or left out with a warning.

    Args:
        policy: "refuse" or "skip".

    Raises:
        OVDError: another policy.
    """
    if policy not in ("refuse", "skip"):
        raise OVDError(f"INPUT.PAIRS.DAMAGED_SHARDS is {policy!r}; it must be refuse or skip.")
    before = _SKIPS.set(policy == "skip")
    try:
        yield
    finally:
        _SKIPS.reset(before)


def expand_shards(path: str) -> list[Path]:
    """The tar files that ``path`` means: one, those of a folder, or a range; [] if it is none.

    Raises:
        OVDError: a range that is empty or too large, or with a file missing.
    """
    found = _RANGE.search(path)
    if found:
        first, last = found.groups()
        many = max(len(first), len(last)) > _MOST_DIGITS
        if many or (_SKIPS.get() and int(last) - int(first) >= _MOST_SHARDS):
            raise OVDError(f"image-text pairs: the range {found[0][:40]}... is too large.")
        shards = []
        for number in range(int(first), int(last) + 1):
            name = path[: found.start()] + str(number).zfill(len(first)) + path[found.end() :]
            shards.append(Path(name).expanduser())
            if (
                not _SKIPS.get() and not shards[-1].is_file()
            ):  # at once: the range may be of any length
                raise OVDError(
                    f"image-text pairs {path}: {shards[-1]} does not exist; name the shards that "
                    "are there."
                )
        if not shards:
            raise OVDError(
                f"image-text pairs {path}: the range is empty; name the shards that are there."
            )
        return shards
    source = Path(path).expanduser()
    if source.is_dir():
        return sorted(source.glob("*.tar"))
    return [source] if source.suffix == ".tar" and source.is_file() else []


def load_shards(shards: list[Path]) -> list[dict[str, Any]]:
    """Records of all complete pairs: ``file_name`` ("SHARD/MEMBER"), ``caption`` and ``shard``
    (path, offset and size of the image's bytes).

    Keys without image or without caption are left out. Inside ``damaged_shards("skip")`` so are
    shards that are missing or damaged, and captions that cannot be read; a warning counts them.

    Raises:
        OVDError: a shard that is missing, truncated or no tar file, or a caption that cannot be
            read; or no shard is left.
    """
    records: list[dict[str, Any]] = []
    lost_shards: list[str] = []
    lost_captions: list[str] = []
    for shard in tqdm(shards, desc="reading shard headers", unit="shard", delay=_PROGRESS_AFTER):
        try:
            found, unreadable = _load_shard(shard)
        except (tarfile.TarError, OSError, EOFError) as error:
            sentence = _damage(shard, error)
            if not _SKIPS.get():
                raise OVDError(sentence) from error
            lost_shards.append(sentence)
        else:
            records += found
            lost_captions += unreadable
    lost = [sentence.rstrip(".") for sentence in lost_shards + lost_captions]
    named = "; ".join(lost[:_SHOWN]) + ("; ..." if len(lost) > _SHOWN else "")
    if lost_shards and len(lost_shards) == len(shards):
        raise OVDError(f"image-text pairs: none of {len(shards)} shards can be used: {named}.")
    if lost:
        logger.warning(
            "INPUT.PAIRS.DAMAGED_SHARDS skip leaves out %d of %d shards and %d captions of the "
            "others, %d pairs remain: %s.",
            len(lost_shards), len(shards), len(lost_captions), len(records), named,
        )  # fmt: skip
    return records


def _damage(shard: Path, error: Exception) -> str:
    """The sentence on a shard that cannot be used."""
    if isinstance(error, FileNotFoundError):
        return f"the shard {shard} does not exist; name the shards that are there."
    return f"the shard {shard} is damaged ({error}); get it again or leave it out."


def _load_shard(shard: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of a shard, and sentences on captions that are left out."""
    size = shard.stat().st_size
    pairs: dict[str, dict[str, Any]] = {}
    unreadable = []
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            if member.offset_data + member.size > size:
                raise EOFError(f"it ends inside {member.name}")
            key, suffix = _split(member.name)
            if f".{suffix}" in SUFFIXES:
                place = (str(shard), member.offset_data, member.size)
                pairs.setdefault(key, {}).update(file_name=f"{shard}/{member.name}", shard=place)
                continue
            try:
                _add_caption(pairs, key, suffix, archive, member)
            except OVDError as error:
                if not _SKIPS.get():
                    raise
                unreadable.append(str(error))
        end = archive.offset
    with open(shard, "rb") as file:
        file.seek(end)
        if any(mark := file.read(_BLOCK)) or len(mark) < _BLOCK:  # tarfile forgives this
            raise EOFError("it has no end mark, so it was cut or a header is damaged")
    complete = [pair for pair in pairs.values() if "shard" in pair and pair.get("caption")]
    return complete, unreadable


def _add_caption(
    pairs: dict[str, dict[str, Any]],
    key: str,
    suffix: str,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
) -> None:
    """Adds what a member says about the caption of ``key``; a .txt counts before a .json."""
    shard = Path(archive.name)
    if suffix == "txt":
        pairs.setdefault(key, {})["caption"] = _text(archive, member, shard)
    elif suffix == "json" and "caption" not in pairs.get(key, {}):
        caption = _caption(_text(archive, member, shard), shard, member.name)
        if caption:
            pairs.setdefault(key, {})["caption"] = caption


def _split(name: str) -> tuple[str, str]:
    """ "a/b.seg.jpg" -> ("a/b", "seg.jpg"): webdataset's keys end at the first dot."""
    folder, base = os.path.split(name)
    stem, _, suffix = base.partition(".")
    return os.path.join(folder, stem), suffix.lower()


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> str:
    try:
        return archive.extractfile(member).read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise OVDError(
            f"{shard}/{member.name} is not UTF-8 text; write the shard again."
        ) from error


def _caption(text: str, shard: Path, name: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OVDError(f"{shard}/{name} is no valid json; write the shard again.") from error
    caption = value.get("caption") if isinstance(value, dict) else None
    return caption.strip() if isinstance(caption, str) else ""
