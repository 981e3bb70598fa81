"""Image-text pairs in tar shards, as img2dataset and webdataset write them.

A pair is the members of one key: 000012.jpg with 000012.txt, or with 000012.json that has an entry
"caption". Shards are indexed once (headers are read, images are not) and then read at random, so
that shuffling is complete and training resumes exactly, which a stream of shards cannot do.
"""

import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ovd_d2.errors import OVDError
from ovd_d2.files.images import SUFFIXES

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_DIGITS = 18  # of a number in a range
_BLOCK = 512  # bytes; tar ends with a block of zeros
_PROGRESS_AFTER = 5.0  # seconds


def expand_shards(path: str) -> list[Path]:
    """The tar files that ``path`` means: one, those of a folder, or a range; [] if it is none.

    Raises:
        OVDError: a range with a file missing.
    """
    found = _RANGE.search(path)
    if found:
        first, last = found.groups()
        if max(len(first), len(last)) > _MOST_DIGITS:
            raise OVDError(f"image-text pairs: the range {found[0][:40]}... is too large.")
        shards = []
        for number in range(int(first), int(last) + 1):
            name = path[: found.start()] + str(number).zfill(len(first)) + path[found.end() :]
            shards.append(Path(name).expanduser())
            if not shards[-1].is_file():  # at once: the range may be of any length
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

    Keys without image or without caption are left out.

    Raises:
        OVDError: a shard that is truncated or no tar file, or a caption that cannot be read.
    """
    records = []
    for shard in tqdm(shards, desc="reading shard headers", unit="shard", delay=_PROGRESS_AFTER):
        try:
            records += _load_shard(shard)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise OVDError(
                f"the shard {shard} is damaged ({error}); get it again or leave it out."
            ) from error
    return records


def _load_shard(shard: Path) -> list[dict[str, Any]]:
    size = shard.stat().st_size
    pairs: dict[str, dict[str, Any]] = {}
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
            elif suffix == "txt":
                pairs.setdefault(key, {})["caption"] = _text(archive, member, shard)
            elif suffix == "json" and "caption" not in pairs.get(key, {}):
                caption = _caption(_text(archive, member, shard), shard, member.name)
                if caption:
                    pairs.setdefault(key, {}).setdefault("caption", caption)
        end = archive.offset
    with open(shard, "rb") as file:
        file.seek(end)
        if any(mark := file.read(_BLOCK)) or len(mark) < _BLOCK:  # tarfile forgives this
            raise EOFError("it has no end mark, so it was cut")
    return [pair for pair in pairs.values() if "shard" in pair and pair.get("caption")]


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
