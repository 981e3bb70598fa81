"""The entries of the model zoo, read from ``entries.json`` and checked field by field.

A number, size or digest that nobody has published is not there. Sizes are in bytes.
"""

import difflib
import json
import os
import re
import types
import typing
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ovd_d2.errors import OVDError

ENTRIES = Path(__file__).with_name("entries.json")
CONVERTERS = ("detic", "object-centric-ovd", "glip", "lseg", "groupvit", "mavl")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATH = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")  # no "..", no escapes
_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SOURCES = ("url", "page", "hub", "packaged")


@dataclass(frozen=True)
class Result:
    """Numbers that the authors report.

    Attributes:
        data: the data set and what of it.
        protocol: how it was measured.
        values: by name, in percent.
    """

    data: str
    protocol: str
    values: dict[str, float]


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        name: what ``ovd models`` and ``--model`` call it.
        system: whose it is.
        url: https address of the file. This, or one of the next three.
        page: where a person gets the file, because no program can.
        hub: repository on the Hugging Face hub.
        packaged: it ships with ovd_d2.
        licence: as its authors say.
        source: page that these facts are from.
        file: name of the file; "": the last part of ``url``.
        size: bytes of the file; None: not published.
        sha256: of the file, 64 hex digits; "": not published.
        non_commercial: whether the licence forbids commercial use.
        converter: the sub-command of ``ovd convert`` that reads it; "": none does.
        vocabulary: names of its class embeddings, as ``ovd convert --vocabulary`` takes them.
        config: yaml of the whole converted model, below ``configs/``; "": none.
        results: numbers of the authors, not of this project.
        needs: what its first use downloads besides; "": nothing.
        use: how it is used, where ``--model`` does not take it.
        note: what else to know.
        verified: whether the file at ``url`` has been downloaded and compared.
    """

    name: str
    system: str
    licence: str
    source: str
    url: str = ""
    page: str = ""
    hub: str = ""
    packaged: bool = False
    file: str = ""
    size: int | None = None
    sha256: str = ""
    non_commercial: bool = False
    converter: str = ""
    vocabulary: str = ""
    config: str = ""
    results: tuple[Result, ...] = field(default=())
    needs: str = ""
    use: str = ""
    note: str = ""
    verified: bool = False

    @property
    def file_name(self) -> str:
        """Name of the file to download; "" where there is none."""
        return self.file or self.url.rpartition("/")[2]

    @property
    def where(self) -> str:
        """What a person opens to get it."""
        return self.url or self.page or (f"https://huggingface.co/{self.hub}" if self.hub else "")


@lru_cache(maxsize=8)
def read_entries(path: str | os.PathLike = ENTRIES) -> dict[str, Entry]:
    """The entries of a file by name, in its order.

    Raises:
        OVDError: the first thing that is wrong, with file, entry and field.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OVDError(
            f"{path} cannot be read as the entries of the model zoo: {error}."
        ) from error
    if not isinstance(content, list):
        raise OVDError(f"{path} must hold a list of models, not {type(content).__name__}.")
    entries: dict[str, Entry] = {}
    for number, values in enumerate(content):
        entry = as_entry(values, f"{path}, model {number}")
        if entry.name in entries:
            raise OVDError(f"{path} has two models called {entry.name}: rename one.")
        entries[entry.name] = entry
    return entries


def zoo_names() -> list[str]:
    """Names of all entries, in the order of the file."""
    return list(read_entries())


def find_entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        OVDError: there is none; names that are near.
    """
    entries = read_entries()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise OVDError(f"The model zoo has no '{name}': `ovd models list` shows its names.{meant}")
    return entries[name]


def as_entry(values: Any, where: str) -> Entry:
    """An entry of json values.

    Args:
        values: a dict of :class:`Entry`'s fields.
        where: names it in messages.

    Raises:
        OVDError: an unknown, missing or wrong field.
    """
    if isinstance(values, dict) and isinstance(values.get("results"), list):
        results = [
            _build(Result, one, f"{where}, result {k}") for k, one in enumerate(values["results"])
        ]
        values = {**values, "results": tuple(results)}
    entry = _build(Entry, values, where)
    wrong = _what_is_wrong(entry)
    if wrong:
        raise OVDError(f"{where} ({entry.name}): {wrong}.")
    return entry


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise OVDError(f"{where} must be an object with names, not {type(values).__name__}.")
    known = {one.name: one for one in fields(kind)}
    for key in values:
        if key not in known:
            raise OVDError(f"{where} has the unknown field {key!r}; known: {', '.join(known)}.")
    for key, value in values.items():
        if not _fits(value, known[key].type):
            raise OVDError(f"{where}: {key} is {str(value)[:100]!r}, which is no {_said(key)}.")
    try:
        return kind(**values)
    except TypeError:
        missing = [key for key in ("name", "system", "licence", "source", "data", "protocol",
                                   "values") if key in known and key not in values]  # fmt: skip
        raise OVDError(f"{where} lacks {', '.join(missing)}.") from None


def _fits(value: Any, wanted: Any) -> bool:
    """Whether ``value`` is of the type, exactly: True is no int."""
    if isinstance(wanted, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(wanted))
    if typing.get_origin(wanted) is dict:
        return isinstance(value, dict) and all(
            type(one) in (int, float) and 0 <= one <= 100 for one in value.values()
        )
    return isinstance(value, typing.get_origin(wanted) or wanted) and (
        not isinstance(value, bool) or wanted is bool
    )


def _said(key: str) -> str:
    kinds = {
        "size": "number of bytes",
        "packaged": "true or false",
        "non_commercial": "true or false",
        "verified": "true or false",
        "results": "list of results",
        "values": "object of percents by name",
    }
    return kinds.get(key, "text")


def _what_is_wrong(entry: Entry) -> str:
    """What a type does not tell; "" if all is well."""
    given = [name for name in _SOURCES if getattr(entry, name)]
    checks = (
        (_NAME.fullmatch(entry.name), "a name is of a-z, 0-9, dots, dashes and underscores"),
        (entry.system and entry.licence, "system and licence must say something"),
        (len(given) == 1, f"one of {', '.join(_SOURCES)} must be given, here {len(given)} are"),
        (not entry.url or _is_plain_url(entry.url), f"url {entry.url!r} must be https://HOST/PATH, "
         "without user, port, query, '..' or '%'"),
        (not entry.page or _is_https(entry.page), f"page {entry.page!r} must begin with https://"),
        (_is_https(entry.source) or entry.packaged, "source must begin with https://"),
        (not entry.hub or _REPOSITORY.fullmatch(entry.hub), f"hub {entry.hub!r} is no OWNER/NAME"),
        (not entry.page or entry.file, "page needs the name of the file"),
        (not entry.file or _FILE.fullmatch(entry.file), f"file {entry.file!r} is no plain name"),
        (entry.size is None or entry.size > 0, "size must be above 0"),
        (not entry.sha256 or _DIGEST.fullmatch(entry.sha256), "sha256 must be 64 digits of 0-9a-f"),
        (not entry.converter or entry.converter in CONVERTERS,
         f"converter must be one of {', '.join(CONVERTERS)}"),
        (not entry.config or (entry.config.endswith(".yaml") and ".." not in entry.config),
         "config must be a yaml below configs/"),
        (not entry.config or entry.converter or entry.packaged, "config needs a converter"),
    )  # fmt: skip
    return next((message for fine, message in checks if not fine), "")


def _is_https(url: str) -> bool:
    return url.startswith("https://") and not re.search(r"[\s\x00-\x1f\x7f]", url)


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return (
        url == f"https://{parts.netloc}{parts.path}"
        and bool(_HOST.fullmatch(parts.netloc))
        and bool(_PATH.fullmatch(parts.path))
    )
