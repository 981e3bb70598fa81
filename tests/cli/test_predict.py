"""``ovd predict`` and ``ovd export``: as a process, and what bad input says."""

import json
import os
import sys
from pathlib import Path

import pytest
import warm_processes
from PIL import Image
from random_models import make_pixels, write_checkpoint, write_config


@pytest.fixture
def images(tmp_path):
    """A folder of three images and a broken one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "c.jpg", "d.png")):
        Image.fromarray(make_pixels(96, 120, seed)).save(folder / name)
    (folder / "b.png").write_bytes(b"broken")
    return folder


@pytest.fixture
def ovd(capsys):
    """``ovd`` in this process: (exit code, stdout, stderr)."""
    from ovd_d2.cli import app

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in words])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


@pytest.mark.slow
def test_export_and_predict_as_processes(images, tmp_path):
    """From a checkpoint to pictures, with the real text encoder."""
    yaml = write_config(tmp_path / "config.yaml", encoder="minilm", dim=384)
    weights = write_checkpoint(yaml, tmp_path / "model_final.pth")
    ovd = str(Path(sys.executable).with_name("ovd"))

    def run(*words):
        return warm_processes.run(
            [ovd, *map(str, words)], capture_output=True, text=True, timeout=200
        )

    done = run("export", weights, "--config-file", yaml, "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert "3 classes, 4 iterations" in done.stdout
    weights.unlink()
    out = tmp_path / "out"
    done = run(
        "predict", images, "--vocab", "dog, red mug", "--model", tmp_path / "model", "--out", out,
        "--score-threshold", "0", "--topk", "4", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one is broken
    assert "Traceback" not in done.stderr
    (skipped,) = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert "b.png" in skipped
    assert {p.name for p in out.iterdir()} == {"a.jpg", "c.jpg", "d.jpg", "predictions.json"}
    for name in ("a.png", "c.jpg", "d.png"):
        assert name in done.stdout
    content = json.loads((out / "predictions.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["dog", "red mug"]
    assert len(content["annotations"]) == 12
    assert {a["category_id"] for a in content["annotations"]} <= {1, 2}


def test_json_to_stdout_is_json_alone(ovd, images, exported, tmp_path):
    code, out, err = ovd(
        "predict", images / "a.png", "--model", exported, "--json", "-", "--no-pictures",
        "--out", tmp_path / "out", "--score-threshold", 0, "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    content = json.loads(out)
    assert [c["name"] for c in content["categories"]] == ["cat", "red mug", "traffic light"]
    assert content["annotations"] and "a.png" in err
    assert not (tmp_path / "out").exists()


def test_a_config_and_weights(ovd, images, config, checkpoint, tmp_path):
    code, out, _ = ovd(
        "predict", images / "a.png", images / "c.jpg", "--config-file", config, "--weights",
        checkpoint, "--vocab", "cat", "--out", tmp_path / "out", "--json", tmp_path / "x/y.json",
    )  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "x/y.json").read_text())["info"]["weights"] == str(checkpoint)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.jpg", "c.jpg"}


def test_the_threshold_is_the_model_s_or_ours_and_is_written_down(
    ovd, images, config, checkpoint, exported, tmp_path
):
    code, printed, err = ovd(
        "export", checkpoint, "--config-file", config, "--out", tmp_path / "own",
        "--score-threshold", "0.04", "--note", "learned_from=noise (rectangles)",
    )  # fmt: skip
    assert (code, err) == (0, "") and "score threshold 0.04" in printed
    for words, wanted in (
        (["--model", tmp_path / "own"], 0.04),
        (["--model", tmp_path / "own", "--score-threshold", "0.5"], 0.5),
        (["--model", exported], 0.3),
        (["--config-file", config, "--weights", checkpoint], 0.3),
    ):
        code, printed, _ = ovd("predict", images / "a.png", *words, "--json", "-", "--no-pictures")
        content = json.loads(printed)
        assert code == 0 and content["info"]["score_threshold"] == wanted
        assert all(a["score"] > wanted for a in content["annotations"])


def test_nothing_sure_is_explained(ovd, images, config, checkpoint, exported, tmp_path):
    """A model that says what it knows says that it may be the wrong one, too."""
    words = ("predict", images / "a.png", images / "c.jpg", "--no-pictures", "--json",
             tmp_path / "x.json", "--score-threshold", "0.9", "--model")  # fmt: skip
    code, _, err = ovd(*words, exported)
    assert code == 0 and "note: in 2 of 2 images no detection scores 0.9 or more: lower" in err
    ovd("export", checkpoint, "--config-file", config, "--out", tmp_path / "own",
        "--note", "learned_from=noise")  # fmt: skip
    code, _, err = ovd(*words, tmp_path / "own")
    assert code == 0 and "own knows noise" in err
    assert "knows noise and nothing else. For other pictures, such as photographs" in err
    assert "`ovd export`" in err and "--score-threshold (now 0.9)" in err


@pytest.mark.slow
def test_the_shipped_model_on_a_photograph_says_that_it_knows_drawings(ovd, tmp_path):
    sample_images = pytest.importorskip("sklearn.datasets").load_sample_images()
    Image.fromarray(sample_images.images[0]).save(tmp_path / "china.jpg")
    code, _, err = ovd("predict", tmp_path / "china.jpg", "--out", tmp_path / "out",
                       "--score-threshold", "0.99")  # fmt: skip
    assert code == 0 and "the model mini knows drawings" in err and "photographs" in err


def test_a_model_of_label_maps(ovd, images, label_map_model, tmp_path):
    out = tmp_path / "out"
    code, printed, err = ovd("predict", images / "a.png", "--model", label_map_model, "--vocab",
                             "sea, tree, background", "--out", out)  # fmt: skip
    assert code == 0 and "note:" not in err
    assert {p.name for p in out.iterdir()} == {"a.jpg", "a_labels.png", "predictions.json"}
    content = json.loads((out / "predictions.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["sea", "tree", "background"]
    assert sum(a["area"] for a in content["annotations"]) == 96 * 120
    assert "%" in printed


def test_many_label_maps_are_summed_up_by_name(ovd, label_map_model, tmp_path):
    for i in range(22):
        Image.fromarray(make_pixels(20, 20, i)).save(tmp_path / f"{i:02d}.png")
    code, out, _ = ovd("predict", tmp_path, "--model", label_map_model, "--no-pictures", "--out",
                       tmp_path / "out")  # fmt: skip
    assert code == 0 and "red mug" in out and "07.png" not in out


def test_several_models_side_by_side(ovd, images, exported, label_map_model, tmp_path):
    out = tmp_path / "out"
    words = ("predict", images, "--model", exported, "--model", label_map_model, "--out", out)
    code, printed, err = ovd(*words, "--vocab", "sea, mug", "--score-threshold", 0)
    assert code == 1  # one image is broken, and said once
    assert err.count("skipped: ") == 1
    assert "3 pictures of 2 models side by side" in printed
    assert {p.name for p in out.iterdir()} == {"a.jpg", "c.jpg", "d.jpg", "exported", "pixels"}
    assert {p.name for p in (out / "exported").iterdir()} == {
        "a.jpg", "c.jpg", "d.jpg", "predictions.json"
    }  # fmt: skip
    assert (out / "pixels/d_labels.png").exists()
    with Image.open(out / "a.jpg") as both, Image.open(out / "exported/a.jpg") as one:
        assert both.width > 2 * one.width


def test_many_images_are_summed_up_by_name(ovd, exported, tmp_path):
    for i in range(22):
        Image.fromarray(make_pixels(40, 40, i)).save(tmp_path / f"{i:02d}.png")
    code, out, _ = ovd(
        "predict", tmp_path, "--model", exported, "--out", tmp_path / "out", "--no-pictures",
        "--score-threshold", 0,
    )  # fmt: skip
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["name", "found", "in", "images", "best", "score"] in lines
    assert {"cat", "red", "traffic"} <= {words[0] for words in lines if words}
    assert "07.png" not in out


BAD = {
    "missing image": (["{images}/z.png"], "There is no image"),
    "empty folder": (["{images}/empty"], "holds no image"),
    "no vocabulary": (["{good}", "--vocab", " "], "empty vocabulary"),
    "vocabulary twice": (["{good}", "--vocab", "cat,cat"], "'cat' occurs twice"),
    "vocabulary file": (["{good}", "--vocab", "nowhere.txt"], "nowhere.txt"),
    "unknown data set": (["{good}", "--vocab", "dataset:mini_v9"], "mini_v9"),
    "unknown model": (["{good}", "--model", "maxi"], "no model 'maxi'"),
    "no exported model": (["{good}", "--model", "{images}"], "no exported model"),
    "two models": (["{good}", "--model", "m", "--config-file", "c"], "exclude each other"),
    "two models, one json": (
        ["{good}", "--model", "m", "--model", "n", "--json", "x"],
        "--json and",
    ),
    "two models, no picture": (
        ["{good}", "--model", "m", "--model", "n", "--no-pictures"],
        "--no-pictures are for one",
    ),
    "two models, one unknown": (
        ["{good}", "--model", "maxi", "--model", "{model}"],
        "no model 'maxi'",
    ),
    "weights alone": (["{good}", "--weights", "w.pth"], "--config-file"),
    "config alone": (["{good}", "--config-file", "{config}"], "No weights"),
    "missing config": (["{good}", "--config-file", "nowhere.yaml"], "nowhere.yaml"),
    "missing weights": (["{good}", "--config-file", "{config}", "--weights", "no.pth"], "no.pth"),
    "device": (["{good}", "--model", "{model}", "--device", "tpu0"], "tpu0"),
    "no such gpu": (["{good}", "--model", "{model}", "--device", "cuda:77"], "cuda:77"),
    "all broken": (["{images}/b.png", "--model", "{model}"], "b.png"),
    "json over the input": (["{good}", "--model", "{model}", "--json", "{good}"], "an input"),
    "json over the names": (
        ["{good}", "--model", "{model}", "--vocab", "{names}", "--json", "{names}"],
        "an input",
    ),
    "json into a device": (["{good}", "--model", "{model}", "--json", "{pipe}"], "no plain file"),
    "an endless path": (["{good}/" + "d/" * 2500], "d/d"),
    "over the input": (["{images}/c.jpg", "--model", "{model}", "--out", "{images}"], "c.jpg"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_code_2(
    case,
    ovd,
    images,
    exported,
    config,
    tmp_path,
):
    words, sentence = BAD[case]
    (images / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "names.txt").write_text("cat")
    places = {"images": images, "good": images / "a.png", "model": exported, "config": config,
              "names": tmp_path / "names.txt", "pipe": tmp_path / "pipe"}  # fmt: skip
    before = {path: path.stat().st_size for path in images.iterdir()}
    out = tmp_path / "out"
    code, stdout, stderr = ovd("predict", "--out", out, *[word.format(**places) for word in words])
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ") and sentence in stderr
    assert len(stderr.splitlines()) == 1
    assert not out.exists()
    assert {path: path.stat().st_size for path in images.iterdir()} == before
    assert (tmp_path / "names.txt").read_text() == "cat" and (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "words", [[], ["a.png", "--topk", "0"], ["a.png", "--score-threshold", "2"]]
)
def test_wrong_usage_is_code_2(ovd, words):
    code, stdout, _ = ovd("predict", *words)
    assert (code, stdout) == (2, "")


def test_export_over_something_is_code_2(ovd, config, checkpoint, exported):
    code, _, stderr = ovd("export", checkpoint, "--config-file", config, "--out", exported)
    assert code == 2
    assert stderr.startswith("error: --out ") and "exists already" in stderr
