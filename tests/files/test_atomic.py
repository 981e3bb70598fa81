"""Files that are whole or not there, and never over an input, a folder or a device."""

import os

import pytest
from PIL import Image

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import (
    atomic_write,
    beside,
    check_output,
    check_output_folder,
    check_picture,
    missing_folders,
    remove_empty,
    write_json,
    write_picture,
)


@pytest.fixture
def pipe(tmp_path):
    """Not a plain file, as the devices under /dev."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("length", [1, 240, 250, 255])
def test_every_name_that_a_file_may_have_can_be_written(tmp_path, length):
    path = tmp_path / ("n" * length)
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 2\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_names_beside_differ_and_fit(tmp_path):
    assert beside(tmp_path / "model.pth", ".partial").name == ".model.pth.partial"
    long = [beside(tmp_path / (letter * 255), ".partial") for letter in "ab"]
    assert len({path.name for path in long}) == 2
    assert all(len(path.name) < 255 and path.parent == tmp_path for path in long)
    assert beside(tmp_path / ("a" * 254), ".parts", hidden=False).name[0] != "."


def test_what_is_no_plain_file_is_never_replaced(tmp_path, pipe):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(pipe)
    before = sorted(tmp_path.iterdir())
    for name in ("pipe", "folder", "link"):
        for write in (lambda path: write_json(path, 1), lambda path: check_output("--json", path)):
            with pytest.raises(OVDError, match=name):
                write(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    assert not pipe.is_file() and pipe.exists()


def test_inputs_by_any_name_are_no_outputs(tmp_path):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"photo")
    (tmp_path / "symbolic").symlink_to(photo)
    os.link(photo, tmp_path / "hard")
    for name in ("a.jpg", "symbolic", "hard"):
        with pytest.raises(OVDError, match=f"{name} .*it is an input"):
            check_output("--json", tmp_path / name, [tmp_path / "none", photo])
    check_output("--json", tmp_path / "other.json", [photo])
    check_output("--json", photo)  # an older output


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/x/y.json", "file is no folder"),
        ("n" * 256, "too long"),
        ("/".join(["n" * 200] * 25), "too long"),
    ],
)
def test_places_that_cannot_be_are_found_before_the_work(tmp_path, place, message):
    (tmp_path / "file").write_text("")
    for check in (check_output, check_output_folder):
        with pytest.raises(OVDError, match=f"--out.*{message}") as caught:
            check("--out", tmp_path / place)
        assert len(str(caught.value)) < 700
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    with pytest.raises(OVDError, match="you may not write to"):
        check_output("--out", tmp_path / "x.json")


def test_folders_that_do_not_exist_yet_are_fine_and_not_made(tmp_path):
    check_output("--out", tmp_path / "a/b/c.json")
    check_output_folder("--out", tmp_path / "a/b")
    assert not list(tmp_path.iterdir())


def test_pictures_are_whole_and_their_ending_is_known_before(tmp_path, pipe):
    picture = Image.new("RGB", (8, 8))
    assert write_picture(picture, tmp_path / "deep/a.PNG").stat().st_size
    for name in ("a.nonsense", "a", "a.json"):
        for refused in (
            lambda path: check_picture("--show", path),
            lambda path: write_picture(picture, path),
        ):
            with pytest.raises(OVDError, match=r"end the name in \.png"):
                refused(tmp_path / name)
    with pytest.raises(OSError, match="cannot write mode"), atomic_write(tmp_path / "b.jpg") as f:
        Image.new("RGBA", (8, 8)).save(f, format="JPEG")
    with pytest.raises(OVDError, match=r"Cannot write .*b\.jpg"):
        write_picture(Image.new("RGBA", (8, 8)), tmp_path / "b.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "pipe"]


def test_only_folders_that_nothing_was_written_into_go(tmp_path):
    missing = missing_folders(tmp_path / "a/b/c")
    assert [path.name for path in missing] == ["c", "b", "a"]
    missing[0].mkdir(parents=True)
    (tmp_path / "a/kept").write_text("")
    remove_empty(missing)
    assert (tmp_path / "a").is_dir() and not (tmp_path / "a/b").exists()
