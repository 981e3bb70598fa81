"""``ovd predict --format`` and ``ovd convert detections``."""

import json
import sys
from pathlib import Path

import pytest
import warm_processes
from defusedxml import ElementTree
from PIL import Image
from random_models import make_pixels
from tricky_detections import IMAGES, NAMES, content  # noqa: F401 a fixture

FORMATS = ("yolo", "voc", "cvat", "label-studio", "coco")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for seed, name in enumerate(("a/x.png", "b/x.png")):
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(make_pixels(96, 120, seed)).save(folder / name)
    return [folder / "a", folder / "b"]


@pytest.fixture
def ovd(capsys):
    from ovd_d2.cli import app

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in words])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def predict(images, model, out, *words):
    options = ("--score-threshold", 0, "--topk", 3, "--device", "cpu", "--no-pictures")
    return ("predict", *images, "--model", model, "--out", out, *options, *words)


def test_all_formats_beside_the_json(ovd, images, exported, tmp_path):
    """Twice: the second run replaces what the first has written."""
    out = tmp_path / "out"
    asked = [word for name in FORMATS for word in ("--format", name)]
    for _ in range(2):
        code, printed, err = ovd(*predict(images, exported, out, *asked))
        assert code == 0, err
        assert f"{out}/yolo: 4 files" in printed and f"{out}/coco: 1 file\n" in printed
    assert {path.name for path in out.iterdir()} == {*FORMATS, "predictions.json"}
    predictions = json.loads((out / "predictions.json").read_text())
    rows = predictions["annotations"]
    assert len(rows) == 6 and all("segmentation" in row for row in rows)
    coco = json.loads((out / "coco/annotations.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a/x.png", "b/x.png"]
    assert [r["segmentation"] for r in coco["annotations"]] == [r["segmentation"] for r in rows]
    for name in ("a", "b"):
        assert len((out / f"yolo/labels/{name}/x.txt").read_text().splitlines()) == 3
        root = ElementTree.parse(out / f"voc/Annotations/{name}/x.xml").getroot()
        assert len(root.findall("object")) == 3
    root = ElementTree.parse(out / "cvat/annotations.xml").getroot()
    assert len(root.findall("image")) == 2 and len(root.findall("image/polygon")) >= 6
    tasks = json.loads((out / "label-studio/tasks.json").read_text())
    assert tasks[0]["predictions"][0]["model_version"] == str(exported)


def test_several_models_and_json_on_stdout(ovd, images, exported, tmp_path):
    two = ("predict", *images, "--model", exported, "--model", exported, "--device", "cpu")
    code, _, err = ovd(*two, "--out", tmp_path / "two", "--format", "yolo")
    assert code == 0, err
    assert (tmp_path / "two/exported_2/yolo/labels/a/x.txt").exists()
    code, printed, err = ovd(
        *predict(images, exported, tmp_path / "out", "--json", "-", "--format", "cvat")
    )
    assert code == 0 and json.loads(printed) and "cvat: 2 files" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cvat"]


def test_bad_formats_are_found_before_the_model(ovd, images, tmp_path):
    out = tmp_path / "out"
    code, _, err = ovd(*predict(images, "no-model", out, "--format", "xlsx"))
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: --format xlsx is no format: use coco, yolo, voc, cvat, label")
    (out / "yolo").mkdir(parents=True)
    (out / "yolo/mine.txt").write_text("mine")
    code, _, err = ovd(*predict(images, "no-model", out, "--format", "yolo"))
    assert code == 2 and f"{out}/yolo holds mine.txt, which was not written" in err
    Image.fromarray(make_pixels(9, 9)).save(images[0] / "x.jpg")
    code, _, err = ovd(*predict(images, "no-model", tmp_path / "new", "--format", "voc"))
    assert code == 2 and "a/x.jpg and a/x.png would have one file in the format voc" in err
    assert not (tmp_path / "new").exists()


def test_label_maps_become_polygons(ovd, images, label_map_model, tmp_path):
    code, _, err = ovd(*predict(images, label_map_model, tmp_path / "out", "--format", "yolo"))
    assert code == 0, err
    lines = (tmp_path / "out/yolo/labels/a/x.txt").read_text().splitlines()
    assert lines and all(len(line.split()) >= 7 for line in lines)


@pytest.mark.slow
def test_convert_as_a_process(tmp_path, content):  # noqa: F811
    ovd = str(Path(sys.executable).with_name("ovd"))
    file, out = tmp_path / "predictions.json", tmp_path / "yolo"
    content["annotations"][0]["bbox"][2] = 0
    file.write_text(json.dumps(content))

    def run(*words):
        words = [ovd, "convert", "detections", *map(str, words)]
        return warm_processes.run(words, capture_output=True, text=True, timeout=200)

    done = run(file, "--to", "yolo", "--out", out, "--scores", "--copy-images")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"{out}: 4 objects on 4 images; files: 10\n"
        "  1 objects are left out: they have no box with an area in their image\n"
    )
    assert done.stderr == ""
    for name in IMAGES:
        assert (out / "images" / name).is_file()
        assert (out / "labels" / name).with_suffix(".txt").is_file()
    assert (out / "classes.txt").read_text(encoding="utf-8") == "".join(f"{n}\n" for n in NAMES)
    assert (out / "labels/one/x.txt").read_text().split()[5] == "0.250000"

    file.write_text("{")
    bad = run(file, "--to", "voc", "--out", tmp_path / "voc")
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
    assert bad.stderr.startswith(f"error: {file} cannot be read (")
    assert not (tmp_path / "voc").exists()
