"""``ovd mini examples``, ``ovd vocab learn`` and ``ovd predict --examples``."""

import json
import sys

import pytest
import warm_processes
from PIL import Image
from random_models import make_pixels

from ovd_d2.cli import app

OVD = [sys.executable, "-m", "ovd_d2.cli.app"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a picture and examples on it."""
    Image.fromarray(make_pixels(96, 120)).save(tmp_path / "a.png")
    content = {"my mug": [{"image": "a.png", "box": [10, 20, 60, 80]}], "cat": None}
    (tmp_path / "mugs.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ovd(capsys):
    """``ovd`` in this process: (exit code, stdout, stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in words])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


@pytest.mark.slow
def test_as_processes(folder):
    def run(*words):
        done = warm_processes.run([*OVD, *words], capture_output=True, text=True, timeout=200)
        assert "Traceback" not in done.stderr
        return done

    done = run("vocab", "learn", "mugs.json", "--out", "mugs.safetensors", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "mugs.safetensors: 2 classes, 1 of them by 1 examples\n"
    found = []
    for file in ("mugs.json", "mugs.safetensors"):
        words = ("--examples", file, "--vocab", "dog", "--score-threshold", "0", "--out", "out")
        done = run("predict", "a.png", *words, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        found.append(json.loads((folder / "out/predictions.json").read_text()))
    assert [c["name"] for c in found[0]["categories"]] == ["my mug", "cat", "dog"]
    assert found[0] == found[1] and found[0]["annotations"]


def test_bad_input_is_one_sentence_and_writes_nothing(folder, ovd):
    (folder / "bad.json").write_text('{"my mug": [{"image": "a.png", "box": [1, 2, 999, 4]}]}')
    before = sorted(folder.iterdir())
    learn = ("vocab", "learn")
    for words, sentence in (
        (("predict", "a.png", "--examples", "no.json"), "Cannot read the examples no.json"),
        (("predict", "a.png", "--examples", "bad.json"), "is not inside of a.png, which has 120"),
        (("predict", "a.png", "--examples", "no.safetensors"), "no.safetensors do not exist"),
        (("predict", "a.png", "--examples", "mugs.json", "--seen-by", "eye"), '"model" or "crop"'),
        (("predict", "a.png", "--examples", "mugs.json", "--json", "mugs.json"), "it is an input"),
        ((*learn, "mugs.json", "--out", "mugs.json"), "A profile is a .safetensors file"),
        ((*learn, "bad.json", "--out", "x.safetensors"), "is not inside of a.png"),
        ((*learn, "mugs.json", "--out", "no/such/.safetensors/x.txt"), "A profile is a"),
        ((*learn, "mugs.json", "--out", "a.png/x.safetensors"), "a.png is no folder"),
        ((*learn, "mugs.json", "--out", "x.safetensors", "--model", "none"), "no model 'none'"),
        ((*learn, "x.safetensors", "--out", "y.safetensors"), "x.safetensors"),
    ):
        code, out, err = ovd(*words)
        assert code == 2 and sentence in err and len(err.splitlines()) == 1, (words, err)
        assert out == "" and sorted(folder.iterdir()) == before, words


def test_examples_of_mini(folder, ovd, mini_root):
    words = ("mini", "examples", "--root", mini_root.parent, "--out")
    code, out, _ = ovd(*words, "new/five.json", "--seed", "3")
    assert code == 0 and out == "new/five.json: 200 examples\n"
    content = json.loads((folder / "new/five.json").read_text())
    assert len(content) == 160 and sum(value is not None for value in content.values()) == 40
    truth = json.loads((mini_root / "annotations/val.json").read_text())
    numbers = {c["name"]: c["id"] for c in truth["categories"]}
    assert list(content) == list(numbers)
    images = {image["id"]: image["file_name"] for image in truth["images"]}
    boxes = {
        (images[a["image_id"]], a["category_id"], *(round(x, 3) for x in a["bbox"]))
        for a in truth["annotations"]
    }
    for name, entries in content.items():
        for entry in entries or ():
            path = (folder / "new" / entry["image"]).resolve()
            x0, y0, x1, y1 = entry["box"]
            box = (round(x, 3) for x in (x0, y0, x1 - x0, y1 - y0))
            file = str(path.relative_to((mini_root / "images").resolve()))
            assert (file, numbers[name], *box) in boxes
    ovd(*words, "same.json", "--seed", "3")
    ovd(*words, "other.json", "--seed", "4")
    same, other = (json.loads((folder / f).read_text()) for f in ("same.json", "other.json"))
    boxes_of = lambda found: [[e["box"] for e in v or ()] for v in found.values()]  # noqa: E731
    assert boxes_of(same) == boxes_of(content) != boxes_of(other)
    code, out, _ = ovd(*words, "all.json", "--classes", "all", "--count", "1")
    assert out == "all.json: 160 examples\n"
    code, _, err = ovd(*words, "x.json", "--split", "tset")
    assert code == 2 and "--split tset" in err and not (folder / "x.json").exists()
