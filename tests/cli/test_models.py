"""``ovd models``, and names of the zoo as --model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovd_d2.cli import app, predict
from ovd_d2.model_zoo import download_path, find_entry, read_entries

OVD = str(Path(sys.executable).with_name("ovd"))


@pytest.fixture
def ovd(tmp_path, capsys, monkeypatch):
    """``ovd`` in this process with an empty cache: (exit code, stdout, stderr)."""
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "cache"))

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in words])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def process(tmp_path, *words):
    environment = {**os.environ, "OVD_D2_CACHE": str(tmp_path / "cache")}
    return subprocess.run(
        [OVD, "models", *words], capture_output=True, text=True, timeout=120, env=environment
    )


def test_list_as_a_process(tmp_path):
    done = process(tmp_path, "list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert lines.keys() >= read_entries().keys()
    assert "3.71 GB" in lines["glip-t"] and lines["glip-t"].rstrip().endswith("download")
    assert "(non-commercial)" in lines["groupvit-gcc-yfcc"]
    assert lines["mini"].rstrip().endswith("ships")


def test_list_as_json(ovd):
    code, out, _ = ovd("models", "list", "--json")
    content = json.loads(out)
    assert code == 0 and [one["name"] for one in content] == list(read_entries())
    assert {one["state"] for one in content} == {"", "ships"}


def test_info_as_a_process(tmp_path):
    done = process(tmp_path, "info", "glip-t")
    assert (done.returncode, done.stderr) == (0, "")
    entry = find_entry("glip-t")
    for words in (
        entry.url, entry.sha256, "not verified by a download", "configs/glip/glip_t.yaml",
        "ovd convert glip", "zero-shot 46.6", "theirs", "licence  MIT",
    ):  # fmt: skip
        assert words in done.stdout
    done = process(tmp_path, "info", "glip")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and "Did you mean glip-" in done.stderr


def test_list_and_info_import_nothing_heavy(tmp_path):
    code = """
import sys
sys.argv = ["ovd", "models", "info", "glip-t"]
from ovd_d2.cli.app import main
try:
    main()
finally:
    print([m for m in ("torch", "detectron2", "tqdm") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("name", list(read_entries()))
def test_info_of_every_model(ovd, name):
    code, out, _ = ovd("models", "info", name)
    assert code == 0 and out.startswith(f"{name}: ")
    assert json.loads(ovd("models", "info", name, "--json")[1])["name"] == name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("groupvit-gcc-yfcc",), "add --accept-licence"),
        (("lseg-demo-vit-l16",), "put it here as"),
        (("nonsense",), "`ovd models list` shows its names"),
        (("clip-vit-b-32", "--out", "x"), "--out is for models that are converted"),
    ],
)
def test_what_cannot_be_downloaded_is_one_sentence(ovd, words, said):
    code, out, err = ovd("models", "download", *words)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1


def test_download_of_a_file_that_was_put_there_by_hand(ovd, tmp_path, monkeypatch):
    from ovd_d2.jobs import download_model as job

    file = tmp_path / "cache/models/downloads/drive.google.com/lseg-fss1000-r101/fss_rn101.ckpt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"something")
    monkeypatch.setattr(job, "_convert", lambda entry, source, out: ("3 tensors",))
    code, out, _ = ovd("models", "download", "lseg-fss1000-r101")
    folder = tmp_path / "cache/models/lseg-fss1000-r101"
    assert code == 0 and out.splitlines() == [
        f"{file}: here",
        f"{folder}: for --model lseg-fss1000-r101",
        "  its first use downloads CLIP's ViT-B/32 (clip-vit-b-32)",
        "  3 tensors",
    ]
    entry = find_entry("detic-in21k-swin-b")  # a part of a detector
    file = download_path(entry)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"something")
    out = ovd("models", "download", entry.name)[1]
    assert f"{entry.name}: {entry.use}" in out and "--model" not in out
    assert ovd("models", "download", "mini")[:2] == (
        0,
        "  it ships with ovd_d2: there is nothing to download\n",
    )


@pytest.mark.parametrize("command", ["predict", "ground"])
def test_a_model_that_is_not_here_yet_names_the_command(ovd, tmp_path, command):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", *(["a cat"] if command == "ground" else [])]
    code, _, err = ovd(command, *words, "--model", "glip-t", "--out", tmp_path / "out.png")
    assert code == 2 and err.splitlines()[-1] == (
        "error: The model glip-t is not here yet: run `ovd models download glip-t`."
    )


def test_the_model_for_photographs_comes_by_its_name_alone():
    entry = find_entry(predict.FOR_PHOTOGRAPHS)
    assert entry.hub and not entry.converter and not entry.non_commercial
