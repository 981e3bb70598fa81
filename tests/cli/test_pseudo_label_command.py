"""``ovd pseudo-label`` as a process: killed, gone on with, shared by two, refused, drawn."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from PIL import Image

from ovd_d2.cli.app import main
from ovd_d2.region_store import RegionStore, verify

OVD = [sys.executable, "-m", "ovd_d2.cli.app"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "ovd_d2.cli.app"]  # fmt: skip
COUNT = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 images in two class folders, and boxes for most of them."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    results = []
    for number in range(1, COUNT + 1):
        folder = root / "images" / ("cat" if number <= COUNT // 2 else "red mug")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(pixels, number, axis=1)).save(folder / f"{number:03d}.jpg")
        if number % 10:
            box = [number % 50, 7, 200, 100]
            category = 1 if number <= COUNT // 2 else 2
            results.append({"image_id": number, "category_id": category, "bbox": box,
                            "score": 0.5 + number / 1000})  # fmt: skip
    (root / "boxes.json").write_text(json.dumps(results))
    return root


def words(data, out, *more):
    return ["pseudo-label", "--images", str(data / "images"), "--vocab", "cat, red mug",
            "--labels", "folders", "--detector", f"json:{data / 'boxes.json'}", "--out", str(out),
            *more]  # fmt: skip


def run(command, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return warm_processes.run(
        command, env=env, capture_output=True, text=True, timeout=200, **options
    )


def lines(out):
    return sum(path.read_bytes().count(b"\n") for path in Path(f"{out}.parts").glob("rank*.jsonl"))


@pytest.mark.parametrize(
    ("show", "message"),
    [
        ("file/sheet.png", "is no folder"), ("sheet.nonsense", "end the name in .png"),
        ("boxes.json", "end the name in .png"), ("images/cat/007.jpg", "is an input"),
    ],
)  # fmt: skip
def test_a_sheet_that_cannot_be_is_found_before_the_work(
    tmp_path, data, capsys, monkeypatch, show, message
):
    monkeypatch.delenv("RANK", raising=False)
    (data / "file").write_text("")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(words(data, tmp_path / "labels.json", "--show", str(data / show)))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "--show" in error and message in error
    assert not list(tmp_path.iterdir())
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_finished_by_two_processes(tmp_path, data, capsys, monkeypatch):
    """The file is that of a run that nobody killed, byte for byte."""
    out = tmp_path / "labels.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        process = warm_processes.start([*OVD, *words(data, out)], env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + 100
        while process.poll() is None and lines(out) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    known = lines(out)
    assert 20 <= known < COUNT and not out.exists()
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(words(data, out, "--min-score", "0.7"))
    assert caught.value.code == 2 and "made with min_score null" in capsys.readouterr().err
    assert lines(out) == known
    ran = run([*TORCHRUN, *words(data, out)])
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("by the first of the processes") == 1
    assert not Path(f"{out}.parts").exists()
    reference = tmp_path / "reference.json"
    sheet = tmp_path / "pictures/sheet.png"
    with pytest.raises(SystemExit) as caught:
        main(words(data, reference, "--show", str(sheet), "--num", "6"))
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and "images/s)" in shown
    assert "270 boxes on 270 images" in shown and "30 of 300 image labels got no box" in shown
    assert out.read_bytes() == reference.read_bytes()
    assert Image.open(sheet).size == (4 * 426 - 6, 2 * 426 - 6)
    content = json.loads(out.read_text())
    assert len({image["file_name"] for image in content["images"]}) == 270
    assert content["images"][0]["file_name"] == "cat/001.jpg"


@pytest.mark.slow
def test_labels_and_their_region_store_by_two_processes(tmp_path, data):
    """Both jobs in one connection of the processes; each box of the file is in the store."""
    import tiny_clip_models

    torch.save(tiny_clip_models.openai_clip_model().state_dict(), tmp_path / "tiny.pt")
    out, store = tmp_path / "labels.json", tmp_path / "store"
    more = ["--region-store", str(store), "--encoder", f"openai-clip:{tmp_path / 'tiny.pt'}"]
    ran = run([*TORCHRUN, *words(data, out, *more)])
    assert ran.returncode == 0, ran.stderr
    assert f"{store}: 135 regions added" in ran.stdout  # by the first of the processes
    found = RegionStore(store)
    assert found.facts.dataset_name == f"labels:{out}" and verify(store) == []
    content = json.loads(out.read_text())
    assert sorted(found) == sorted(image["id"] for image in content["images"])
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        assert found[annotation["image_id"]].boxes.tolist() == [[x, y, x + w, y + h]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--vocab", "dog"], "gives none of the 300 images a label"),
        (["--labels", "tags:x"], "--labels tags:x is unknown"),
        (["--detector", "hf:/nowhere/at/all"], "neither a folder nor a Hugging Face model"),
        (["--boxes", "objects"], "--labels are for --boxes labels"),
        (["--region-store", "/nowhere/at/all"], "--region-store needs --encoder"),
    ],
)
def test_bad_input_is_one_line(tmp_path, data, capsys, changes, message):
    with pytest.raises(SystemExit) as caught:
        main(words(data, tmp_path / "x" / "l.json", *changes))
    error = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and error.startswith("error: ") and message in error
    assert "\n" not in error and not (tmp_path / "x").exists()


def test_help_is_quick_and_names_the_options(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["pseudo-label", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--detector", "--boxes", "--labels", "--region-store"))
