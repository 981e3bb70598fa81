"""One file over https: cut, killed, refused, wrong."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ovd_d2.errors import OVDError
from ovd_d2.model_zoo import download, fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(server):
    server.files["/models/net.pth"] = CONTENT
    return server.url("/models/net.pth")


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def ranges(server):
    return [headers.get("Range") for _, headers in server.asked]


@pytest.mark.parametrize("known", [{}, {"sha256": DIGEST}, {"size": len(CONTENT)}])
def test_the_whole_file_and_nothing_else_comes(server, url, tmp_path, known):
    seen = []
    fetch(url, tmp_path / "a/net.pth", **known, on_bytes=lambda *numbers: seen.append(numbers))
    assert (tmp_path / "a/net.pth").read_bytes() == CONTENT
    assert left(tmp_path) == ["net.pth"]
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("known", [{}, {"sha256": DIGEST}])
def test_a_cut_connection_is_taken_up_where_it_broke(server, url, tmp_path, known):
    server.cut_after = [1000, 500_000]
    fetch(url, tmp_path / "net.pth", **known)
    assert (tmp_path / "net.pth").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-", "bytes=501000-"]


def test_when_it_breaks_too_often_the_next_call_goes_on(server, url, tmp_path):
    server.cut_after = [1000] * download.TRIES
    with pytest.raises(OVDError, match=r"broke off; 5000 bytes are kept, the next try goes on"):
        fetch(url, tmp_path / "net.pth", sha256=DIGEST)
    assert not (tmp_path / "net.pth").exists()
    fetch(url, tmp_path / "net.pth", sha256=DIGEST)
    assert ranges(server)[-1] == "bytes=5000-"
    assert (tmp_path / "net.pth").read_bytes() == CONTENT
    assert left(tmp_path) == ["net.pth"]


def test_two_versions_of_a_file_are_never_joined(server, url, tmp_path):
    server.cut_after = [1000] * download.TRIES
    with pytest.raises(OVDError, match="broke off"):
        fetch(url, tmp_path / "net.pth")
    server.files["/models/net.pth"] = CONTENT[::-1]
    server.headers["/models/net.pth"] = {"ETag": '"two"'}
    fetch(url, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("known", [{}, {"sha256": DIGEST}])
def test_without_a_version_it_goes_on_if_the_digest_will_tell(server, url, tmp_path, known):
    server.headers["/models/net.pth"] = {"ETag": 'W/"weak"'}
    server.cut_after = [1000]
    fetch(url, tmp_path / "net.pth", **known)
    assert ranges(server) == [None, "bytes=1000-" if known else None]
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_a_server_without_ranges_is_asked_for_all_of_it_again(server, url, tmp_path):
    server.ranges, server.cut_after = False, [1000]
    fetch(url, tmp_path / "net.pth", sha256=DIGEST)
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("there", [CONTENT, CONTENT + b"x"])
def test_what_was_left_by_a_kill_at_the_end_is_compared(server, url, tmp_path, there):
    (tmp_path / ".net.pth.partial").write_bytes(there)
    fetch(url, tmp_path / "net.pth", sha256=DIGEST)
    assert (tmp_path / "net.pth").read_bytes() == CONTENT
    assert left(tmp_path) == ["net.pth"]


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"sha256": "0" * 64}, f"its sha256 is {DIGEST} and not {'0' * 64}; nothing is kept"),
        ({"size": 7}, "it has 1048576 bytes and not 7"),
    ],
)
def test_another_file_is_not_kept(server, url, tmp_path, known, words):
    with pytest.raises(OVDError, match=words) as caught:
        fetch(url, tmp_path / "a/net.pth", **known)
    assert url in str(caught.value) and f"by hand, as {tmp_path / 'a/net.pth'}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, download.TRIES)])
def test_an_error_of_the_server_is_one_sentence(server, url, tmp_path, status, requests):
    server.status = status
    with pytest.raises(OVDError, match=rf"cannot be downloaded \(HTTP {status} .*by hand"):
        fetch(url, tmp_path / "a/net.pth")
    assert len(server.asked) == requests
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_is_no_file(server, url, tmp_path):
    server.headers["/models/net.pth"] = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(OVDError, match="gives a web page, no file"):
        fetch(url, tmp_path / "net.pth")
    assert left(tmp_path) == []


def test_an_answer_of_unknown_length_is_refused(server, url, tmp_path):
    server.headers["/models/net.pth"] = {"Content-Length": None}
    with pytest.raises(OVDError, match="does not say how long"):
        fetch(url, tmp_path / "net.pth")
    fetch(url, tmp_path / "net.pth", sha256=DIGEST)
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_https_and_nothing_else(server, url, tmp_path):
    server.redirects = {
        "/good": url,
        "/bad": f"http://localhost:{server.port}/models/net.pth",
        "/file": "file:///etc/hostname",
    }
    fetch(server.url("/good"), tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == CONTENT
    for path, leads in (("/bad", "leads to http://"), ("/file", "not allowed")):
        with pytest.raises(OVDError, match=leads):
            fetch(server.url(path), tmp_path / "other.pth")
    for address in ("http://localhost/x", "ftp://localhost/x", "file:///etc/hostname"):
        with pytest.raises(OVDError, match="is no https address"):
            fetch(address, tmp_path / "other.pth")
    assert left(tmp_path) == ["net.pth"]


def test_a_server_that_nobody_vouches_for_is_refused(server, url, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(OVDError, match=r"certificate verify failed.*by hand"):
        fetch(url, tmp_path / "net.pth")
    assert server.asked == []


def test_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with pytest.raises(OVDError, match=r"https://localhost:9/net.pth cannot be.*refused.*by hand"):
        fetch("https://localhost:9/net.pth", tmp_path / "net.pth")
    assert left(tmp_path) == []


def test_a_full_disk_keeps_nothing(server, url, tmp_path, monkeypatch):
    (tmp_path / ".net.pth.partial").write_bytes(CONTENT[:1000])  # of an earlier try
    with monkeypatch.context() as patch, open("/dev/full", "ab") as full:
        patch.setattr(download, "open", lambda path, mode: full, raising=False)
        with pytest.raises(OVDError, match=r"No space left on device\).*by hand, as"):
            fetch(url, tmp_path / "net.pth", sha256=DIGEST)
    assert ranges(server) == ["bytes=1000-"]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})
    )
    with pytest.raises(OVDError, match="1048576 bytes are to come, 1000 are free on the disk"):
        fetch(url, tmp_path / "net.pth")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys; sys.argv = ["ovd", *sys.argv[1:]]
from pathlib import Path
from ovd_d2.model_zoo import fetch
fetch(sys.argv[1], Path(sys.argv[2]))
"""


def test_after_a_kill_it_goes_on_and_the_file_is_whole(server, url, tmp_path):
    server.hold.clear()
    server.cut_after = [400_000]
    path, partial = tmp_path / "net.pth", tmp_path / ".net.pth.partial"
    process = subprocess.Popen([sys.executable, "-c", KILLED, url, str(path)])
    until = time.monotonic() + 60
    while time.monotonic() < until and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.02)
    with pytest.raises(OVDError, match="Another process is downloading"):
        fetch(url, path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.hold.set()
    assert not path.exists() and 0 < partial.stat().st_size <= 400_000
    there = partial.stat().st_size
    fetch(url, path)
    assert ranges(server) == [None, f"bytes={there}-"]
    assert path.read_bytes() == CONTENT
    assert left(Path(tmp_path)) == ["net.pth"]
