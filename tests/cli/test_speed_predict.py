"""``ovd speed predict`` at small sizes."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from detectron2.structures import Boxes, Instances
from PIL import Image

from ovd_d2.benchmarks.speed import predictor as bench
from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError

OVD = str(Path(sys.executable).with_name("ovd"))


def test_json(tmp_path):
    for number in range(4):
        bench.draw(number).save(tmp_path / f"{number}.png")
    words = ["--folder", str(tmp_path), "--images", "3", "--repeats", "2", "--starts", "0"]
    result = warm_processes.run(
        [OVD, "speed", "predict", *words, "--batch-size", "2", "--json"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["images"], facts["batch_size"], facts["model"]) == (3, 2, "mini")
    assert facts["detections"] > 0
    assert facts["differing"] == 0 <= facts["difference"] <= bench.SAME
    assert {side: len(runs) for side, runs in facts["seconds"].items()} == {
        "together": 2, "one by one": 2
    }  # fmt: skip
    pairs = zip(facts["seconds"]["one by one"], facts["seconds"]["together"])
    ratios = sorted(alone / together for alone, together in pairs)
    assert facts["ratio"] == pytest.approx(sum(ratios) / 2)


def test_pictures_are_always_the_same_and_of_several_sizes(tmp_path):
    files = bench.gather(tmp_path, None, 4)
    assert [file.name for file in files] == ["0000.jpg", "0001.jpg", "0002.jpg", "0003.jpg"]
    assert [Image.open(file).size for file in files] == list(bench.SIZES)
    assert bench.draw(2).tobytes() == bench.draw(2).tobytes() != bench.draw(5).tobytes()


def found(score=0.5, kind=3, shift=0.0):
    boxes = Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]) + shift)
    return Instances(
        (9, 9), pred_boxes=boxes, scores=torch.tensor([score]), pred_classes=torch.tensor([kind])
    )


def test_differences_are_seen():
    assert bench._difference(found(), found()) == 0
    assert bench._difference(found(), found(score=0.75)) == 0.25
    assert bench._difference(found(), found(shift=2)) == 2
    assert bench._difference(found(), found(kind=4)) == float("inf")
    assert bench._difference(found(), found()[:0]) == float("inf")
    assert bench._difference(found()[:0], found()[:0]) == 0


def test_a_fresh_process_is_timed_until_its_first_line():
    code = """
import time
time.sleep(0.5)
print(1, flush=True)
time.sleep(4)
while time.process_time() < 0.3:
    pass
"""
    seconds, cpu_seconds = bench._run("sleeping", [sys.executable, "-c", code])
    assert 0.5 < seconds < 4.5
    assert 0.3 < cpu_seconds < 3


@pytest.mark.parametrize("code", ["raise SystemExit('no model')", "print(1); 1 / 0", ""])
def test_a_process_that_fails_is_named(code):
    with pytest.raises(OVDError, match="^searching failed: "):
        bench._run("searching", [sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "0"], "Numbers of images and repeats have to be 1 or more."),
        (["--model", "nonsense"], "nonsense"),
        (["--device", "abacus"], "abacus"),
        (["--folder", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input(words, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["speed", "predict", "--starts", "0", *words])
    captured = capsys.readouterr()
    assert (exit_info.value.code, captured.out) == (2, "")
    errors = captured.err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]
