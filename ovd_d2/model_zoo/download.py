"""Downloading one file over https: goes on where it stopped, and is whole or not there.

What has come so far lies in ``.NAME.partial`` beside the file, and in ``.NAME.version`` what the
server calls this version of it, so that no two versions are ever joined.
"""

import errno
import http.client
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError

from ovd_d2 import __version__
from ovd_d2.errors import OVDError, reason
from ovd_d2.files.atomic import (
    PARTIAL_SUFFIX,
    beside,
    check_output,
    missing_folders,
    put_in_place,
    remove_empty,
)
from ovd_d2.files.digests import file_digest
from ovd_d2.files.locks import lock

TRIES = 5  # connections
PAUSE = 1.0  # seconds before the second one, twice as many before each that follows
TIMEOUT = 30.0  # seconds without an answer
_BLOCK = 1 << 20  # bytes
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

OnBytes = Callable[[int, int | None], None]
"""Is told how many bytes there are and how many there will be (None: nobody knows)."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    size: int | None = None,
    on_bytes: OnBytes = lambda done, total: None,
) -> None:
    """Downloads ``url`` to ``path``, whose folder is made.

    A broken connection is taken up again, also by the next call after this process was killed.

    Args:
        url: begins with https://, and so does every address that it leads to.
        path: the file to write.
        sha256: its 64 hex digits; "": not known.
        size: its bytes; None: what the server says.
        on_bytes: see :data:`OnBytes`.

    Raises:
        OVDError: it cannot be had, is not what it should be, or cannot be written. It says where
            to put the file by hand. ``path`` is not there then.
    """
    if not url.startswith("https://"):
        raise OVDError(f"{url} is no https address: nothing is downloaded from it.")
    check_output("the download", path)
    made, locked = missing_folders(path.parent), beside(path, ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lock(locked, taken=f"Another process is downloading {path}: wait for it.")
    except OSError as error:
        raise _failed(url, path, error.strerror or str(error)) from error
    try:
        _Download(url, path, sha256, size, on_bytes).run()
    finally:
        locked.unlink(missing_ok=True)  # while it is held, so that nobody takes the old one
        held.release()
        remove_empty(made)


class _Download:
    """One file on its way."""

    def __init__(
        self, url: str, path: Path, sha256: str, size: int | None, on_bytes: OnBytes
    ) -> None:
        self.url, self.path, self.sha256, self.size = url, path, sha256, size
        self.on_bytes = on_bytes
        self.partial, self.version = beside(path, PARTIAL_SUFFIX), beside(path, ".version")

    def run(self) -> None:
        """Takes as many connections as it needs.

        Raises:
            OVDError: see :func:`fetch`.
        """
        why = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                if self._receive():
                    self._finish()
                    return
                why = "the connection broke off"
            except HTTPError as error:
                why = f"HTTP {error.code} {error.reason}"
                if error.code not in _BUSY:
                    raise self._error(why) from error
            except OSError as error:
                if error.errno in _FULL:
                    self._forget()
                    raise self._error(error.strerror) from error
                cause = getattr(error, "reason", error)  # what urllib has wrapped
                why = reason(cause) if isinstance(cause, OSError) else reason(error)
                if isinstance(cause, socket.gaierror | ssl.SSLCertVerificationError):
                    raise self._error(why) from error
            except http.client.HTTPException as error:
                why = f"the connection broke off: {reason(error)}"
        kept = self._there()
        raise self._error(f"{why}; {kept} bytes are kept, the next try goes on" if kept else why)

    def _there(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _receive(self) -> bool:
        """One connection; whether all bytes are there after it."""
        there = self._there()
        if there and there == self.size:
            return True
        try:
            response = _open(self.url, self._headers(there))
        except HTTPError as error:
            if error.code != 416:
                raise
            if error.headers.get("Content-Range", "") == f"bytes */{there}":
                return True
            self._forget()
            return False
        with response:
            if "text/html" in response.headers.get("Content-Type", ""):
                raise self._error("the address gives a web page, no file")
            start, total = _extent(response)
            if start not in (0, there):
                raise self._error("the server sends another part than it was asked for")
            self._check_size(start, total, response)
            if start == 0:
                self._forget()
                self.version.write_text(_version(response), encoding="utf-8")
            done = self._write(response, start, total)
        return done == total if total is not None else True

    def _headers(self, there: int) -> dict[str, str]:
        """Asks for the rest, if it can be known to be of the same version."""
        if not there:
            return {}
        version = self.version.read_text(encoding="utf-8") if self.version.is_file() else ""
        if not version and not self.sha256:
            return {}
        headers = {"Range": f"bytes={there}-"}
        return {**headers, "If-Range": version} if version else headers

    def _check_size(self, start: int, total: int | None, response: Any) -> None:
        if total is None and not (self.size or self.sha256 or response.chunked):
            raise self._error("the server does not say how long the file is")
        if self.size and total not in (None, self.size):
            raise self._error(f"it has {total} bytes and not {self.size}")
        free = shutil.disk_usage(self.path.parent).free
        if total is not None and total - start > free:
            raise self._error(f"{total - start} bytes are to come, {free} are free on the disk")

    def _write(self, response: Any, start: int, total: int | None) -> int:
        done = start
        with open(self.partial, "ab") as file:
            self.on_bytes(done, total)
            while block := response.read1(_BLOCK):  # what has come, however little
                file.write(block)
                done += len(block)
                if total is not None and done > total:
                    break
                self.on_bytes(done, total)
        return done

    def _finish(self) -> None:
        """Compares what has come with what should, and gives it its name."""
        there = self._there()
        if self.size and there != self.size:
            self._forget()
            raise self._error(f"it has {there} bytes and not {self.size}")
        if self.sha256 and (found := file_digest(self.partial, fresh=True)) != self.sha256:
            self._forget()
            raise self._error(f"its sha256 is {found} and not {self.sha256}; nothing is kept")
        put_in_place(self.partial, self.path)
        self.version.unlink(missing_ok=True)

    def _forget(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def _error(self, why: str) -> OVDError:
        return _failed(self.url, self.path, why)


def _failed(url: str, path: Path, why: str) -> OVDError:
    return OVDError(
        f"{url} cannot be downloaded ({why}): try again, or put the file there by hand, as {path}."
    )


def _open(url: str, headers: dict[str, str]) -> Any:
    """Opens an address; https and nothing else, wherever it leads."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        _HttpsRedirects(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    headers = {"User-Agent": f"ovd_d2/{__version__}", "Accept-Encoding": "identity", **headers}
    return opener.open(request.Request(url, headers=headers), timeout=TIMEOUT)


class _HttpsRedirects(request.HTTPRedirectHandler):
    """Follows no redirect that leaves https."""

    def redirect_request(
        self, req: request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        if not newurl.lower().startswith("https://"):
            raise OVDError(
                f"{req.full_url} leads to {newurl}, which is no https address: nothing was "
                "downloaded; get the file by hand."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _extent(response: Any) -> tuple[int, int | None]:
    """First byte of an answer, and the length of the whole file."""
    if response.status == 206:
        match = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip()
        )
        return (int(match[1]), int(match[2])) if match else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _version(response: Any) -> str:
    """What a server can be asked by whether a file is still the same; "" if nothing."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
