"""Building the mini benchmark: same bytes for any number of processes, never half a folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ovd_d2.benchmarks.mini import artwork, build, manifest, show
from ovd_d2.cli import mini as cli
from ovd_d2.data.datasets.mini.splits import SPLITS
from ovd_d2.errors import OVDError


class PaintedArtwork:
    """Stands in for the packages: every emoji of every style is a disc of its own colour."""

    def find(self, style, codepoints):
        return f"{style}/{codepoints}"


def painted_sprite(path):
    y, x = np.mgrid[-1:1:24j, -1:1:18j]
    sprite = np.empty((24, 18, 4), np.uint8)
    sprite[..., :3] = list(zlib.crc32(path.encode()).to_bytes(4, "big"))[:3]
    sprite[..., 3] = 255 * (x**2 + y**2 < 1)
    return sprite


@pytest.fixture(scope="module")
def tiny():
    """Splits of a few images, drawn from painted artwork: a build takes a second."""
    small = {
        name: type(split)(name, 4, split.first_id, split.styles, split.backgrounds)
        for name, split in SPLITS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in (build, manifest):
            patch.setattr(module, "SPLITS", small)
        patch.setattr(build, "locate_artwork", PaintedArtwork)
        patch.setattr(build, "render_sprite", painted_sprite)
        yield


@pytest.fixture(scope="module")
def built_once(tiny, tmp_path_factory):
    return build.build_mini(tmp_path_factory.mktemp("mini"), jobs=1)[0]


@pytest.fixture
def folder(built_once, tmp_path):
    """A built folder, tmp_path/mini-v1, to be damaged."""
    return shutil.copytree(built_once, tmp_path / "mini-v1")


def digests(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_the_result_does_not_depend_on_the_number_of_processes(built_once, tmp_path):
    two, built = build.build_mini(tmp_path, jobs=2)
    assert built
    assert digests(built_once) == digests(two)
    assert digests(two)["images"] == dict.fromkeys(SPLITS, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["mini-v1"]


def test_a_second_call_verifies_and_keeps(folder, tmp_path):
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert build.build_mini(tmp_path, jobs=1) == (folder, False)
    assert (folder / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "manifest.json").unlink(), "no manifest"),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid json"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not a manifest"),
        (lambda f: (f / "annotations/val.json").unlink(), "val.json is missing"),
        (lambda f: (f / "pairs.jsonl").write_text("x"), "pairs.jsonl has changed"),
        (lambda f: (f / "images/test/030002.jpg").unlink(), "030002.jpg is missing"),
        (lambda f: (f / "images/test/030002.jpg").write_bytes(b"x"), "an image has changed"),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, damage, problem):
    damage(folder)
    with pytest.raises(OVDError, match=f"{problem}.*--force"):
        build.build_mini(tmp_path, jobs=1)


def test_force_mends_a_damaged_folder(folder, tmp_path):
    good = digests(folder)
    (folder / "pairs.jsonl").write_text("x")
    assert build.build_mini(tmp_path, jobs=1, force=True) == (folder, True)
    assert digests(folder) == good
    assert manifest.problem_with(folder) is None
    assert list(tmp_path.iterdir()) == [folder]


def test_another_revision_is_refused(folder, monkeypatch):
    monkeypatch.setattr(manifest, "REVISION", 999)
    assert "revision" in manifest.problem_with(folder)


def test_a_trial_is_not_taken_for_a_build(tiny, tmp_path):
    folder, _ = build.build_mini(tmp_path, jobs=1, limit=1)
    assert len(list(folder.glob("images/*/*.jpg"))) == len(SPLITS)
    assert "trial" in manifest.problem_with(folder)


def test_a_failing_build_leaves_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_write_annotations", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build.build_mini(tmp_path, jobs=1)
    assert list(tmp_path.iterdir()) == []


def test_the_leftover_of_a_killed_build_is_removed_by_the_next(tiny, tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leftover = tmp_path / f".mini-v1.building-{killed.pid}-abc"
    (leftover / "images").mkdir(parents=True)
    with build._staging_folder(tmp_path):
        assert leftover.is_dir()  # its process lives
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with build._staging_folder(tmp_path):
        assert not leftover.exists()


@pytest.mark.slow
def test_a_build_killed_at_any_moment_leaves_no_folder_of_that_name(tiny, tmp_path):
    for seconds in (0.05, 0.3, 0.6):
        pid = os.fork()
        if pid == 0:
            try:
                build.build_mini(tmp_path, jobs=2)
            finally:
                os._exit(0)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        folder = tmp_path / "mini-v1"
        assert not folder.exists() or manifest.problem_with(folder) is None
        shutil.rmtree(folder, ignore_errors=True)
    build.build_mini(tmp_path, jobs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mini-v1"]


def test_a_running_build_of_another_process_is_left_alone(tmp_path):
    with build._staging_folder(tmp_path) as first, build._staging_folder(tmp_path) as second:
        assert first != second
        assert first.is_dir() and second.is_dir()


def test_wrong_arguments_and_places_are_one_sentence(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OVDError, match="--jobs"):
        build.build_mini(tmp_path, jobs=0)
    with pytest.raises(OVDError, match="cannot write to .*file"):
        build.build_mini(tmp_path / "file", jobs=1)


def test_missing_npm_packages_and_a_failed_download_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path))
    with pytest.raises(OVDError, match="ovd mini build"):
        artwork.locate_artwork(download=False)
    failing = "import sys; sys.exit('npm error code E404\\nnpm error 404 Not Found')"
    monkeypatch.setattr(artwork, "find_npm", lambda: [sys.executable, "-c", failing])
    with pytest.raises(OVDError, match="could not download .*404 Not Found.*again"):
        artwork.locate_artwork()
    assert list((tmp_path / "mini-artwork").iterdir()) == []


def test_without_a_network_npm_gives_up_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")  # nobody listens
    start = time.perf_counter()
    with pytest.raises(OVDError, match="npm could not download .*ECONNREFUSED.*check the network"):
        artwork.locate_artwork()
    assert time.perf_counter() - start < 40  # with npm's own pauses 70 and more


def test_the_lock_file_names_no_host_and_pins_every_package():
    lock = (build.Path(artwork.__file__).parent / "package-lock.json").read_text()
    assert "http" not in lock
    packages = json.loads(lock)["packages"]
    assert len(packages) == 4
    assert all(p["integrity"].startswith("sha512-") for name, p in packages.items() if name)


def test_show_draws_a_sheet_and_names_what_is_wrong(folder, tmp_path):
    out = show.draw_sheet(tmp_path, "val", tmp_path / "new" / "sheet.png", num=3, columns=2)
    size = np.asarray(Image.open(out)).shape
    assert size[2] == 3 and size[0] >= 2 * 2 * 192 and size[1] >= 2 * 2 * 192
    with pytest.raises(OVDError, match="--split 'nope'"):
        show.draw_sheet(tmp_path, "nope", out)
    with pytest.raises(OVDError, match="--num"):
        show.draw_sheet(tmp_path, "val", out, num=0)
    with pytest.raises(OVDError, match="Cannot write"):
        show.draw_sheet(tmp_path, "val", tmp_path / "sheet.nosuchformat", num=1)
    (folder / "images/val/010001.jpg").unlink()
    with pytest.raises(OVDError, match=r"010001\.jpg: there is no such file.*ovd mini build"):
        show.draw_sheet(tmp_path, "val", out)


def test_the_commands_work(tiny, tmp_path):
    run = CliRunner().invoke
    first = run(cli.app, ["build", "--root", str(tmp_path), "--jobs", "1"])
    assert first.exit_code == 0 and ": built (" in first.stdout
    second = run(cli.app, ["build", "--root", str(tmp_path)])
    assert "already built, verified" in second.stdout
    out = str(tmp_path / "sheet.png")
    shown = run(cli.app, ["show", "--root", str(tmp_path), "--out", out, "--num", "2"])
    assert shown.exit_code == 0 and os.path.getsize(out) > 1000
