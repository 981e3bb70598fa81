"""Folders that are whole or not there, and never over somebody else's files."""

import json
import os

import pytest

from ovd_d2.errors import OVDError
from ovd_d2.files.written_folder import check_written_folder, write_folder


def contents(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_written_read_and_replaced(tmp_path):
    out, photo = tmp_path / "deep/out", tmp_path / "photo.jpg"
    photo.write_bytes(b"photo")
    files = [("a/b c.txt", b"first"), ("ü.txt", b"")]
    assert write_folder("--out", out, files, copies={"images/p.jpg": photo}, facts={"x": 1}) == 3
    assert contents(out) == {"a/b c.txt", "ü.txt", "images/p.jpg", "ovd_d2.json"}
    content = json.loads((out / "ovd_d2.json").read_text(encoding="utf-8"))
    assert content == {"x": 1, "files": ["a/b c.txt", "ü.txt", "images/p.jpg"]}
    write_folder("--out", out, [("new.txt", b"second")])
    assert contents(out) == {"new.txt", "ovd_d2.json"}
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out/empty").mkdir(parents=True)
    write_folder("--out", tmp_path / "out", [("a.txt", b"1")])
    assert contents(tmp_path / "out") == {"a.txt", "ovd_d2.json"}


@pytest.mark.parametrize("kind", ["file", "link", "within", "manifest of another"])
def test_somebody_else_s_files_stay(tmp_path, kind):
    out = tmp_path / "out"
    write_folder("--out", out, [("a.txt", b"1")])
    if kind == "manifest of another":
        (out / "ovd_d2.json").write_text("[1]")
        strange = "a.txt"
    else:
        strange = "sub/mine.txt" if kind == "within" else "mine.txt"
        (out / strange).parent.mkdir(exist_ok=True)
        if kind == "link":
            (out / strange).symlink_to(tmp_path)
        else:
            (out / strange).write_text("mine")
    for call in (check_written_folder, lambda *names: write_folder(*names, [("b.txt", b"2")])):
        with pytest.raises(OVDError, match=f"out holds {strange}, which was not written"):
            call("--out", out)
    assert (out / strange).exists() and (out / "a.txt").read_bytes() == b"1"


def test_a_failure_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"

    def failing():
        yield "a.txt", b"new"
        raise RuntimeError("the writer broke")

    for _ in range(2):  # nothing was there, then the first folder
        before = contents(out) if out.exists() else None
        with pytest.raises(RuntimeError):
            write_folder("--out", out, failing())
        assert (contents(out) if out.exists() else None) == before
        assert [p.name for p in tmp_path.iterdir()] == (["out"] if before else [])
        write_folder("--out", out, [("a.txt", b"old")])
    assert (out / "a.txt").read_bytes() == b"old"


def test_paths_outside_and_targets_that_cannot_be(tmp_path):
    for name in ("../a.txt", "/a.txt", "x/../../a.txt", ""):
        with pytest.raises(OVDError, match="lies outside"):
            write_folder("--out", tmp_path / "out", [(name, b"")])
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(OVDError, match="is no folder"):
        write_folder("--out", tmp_path / "plain", [("a.txt", b"")])
    assert [p.name for p in tmp_path.iterdir()] == ["plain"]
