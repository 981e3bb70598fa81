"""``ovd vocab calibrate``, and ``ovd predict`` with negatives, thresholds and synonyms."""

import json
import os
import sys

import pytest
import warm_processes
from PIL import Image
from random_models import make_pixels

OVD = [sys.executable, "-m", "ovd_d2.cli.app"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(make_pixels(96, 120, 0)).save(path)
    return path


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


@pytest.fixture
def predict(ovd, picture, exported, tmp_path):
    """``ovd predict`` of the picture by the random model; the json it wrote, or its error."""

    def run(*words):
        fixed = ["--model", exported, "--out", tmp_path / "out", "--device", "cpu"]
        code, _, err = ovd("predict", picture, *fixed, *words)
        if code:
            assert not (tmp_path / "out").exists()
            return code, err
        return json.loads((tmp_path / "out/predictions.json").read_text())

    return run


@pytest.mark.slow
def test_both_as_processes(mini_root, tmp_path):
    """Thresholds of the packaged model on a few images, used with negatives on another."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(mini_root.parent)}
    environment.pop("OVD_D2_CACHE", None)

    def run(*words):
        words = [*OVD, *map(str, words), "--device", "cpu"]
        return warm_processes.run(
            words, capture_output=True, text=True, timeout=250, env=environment
        )

    out = tmp_path / "t.json"
    done = run(
        "vocab", "calibrate", "--dataset", "mini_v1_val", "--test-dataset", "mini_v1_test",
        "--images", 6, "--min-examples", 2, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[:4]] == ["mini_v1_val"] * 2 + ["mini_v1_test"] * 2
    assert "names have 2 examples or more" in lines[-1]
    content = json.loads(out.read_text())
    assert len(content["thresholds"]) == 160 and content["model"] == "mini"
    image = sorted((mini_root / "images/test").glob("*.jpg"))[0]
    done = run(
        "predict", image, "--vocab", "eagle, dove", "--negatives", "dataset:mini_v1_val",
        "--thresholds", out, "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    coco = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["eagle", "dove"]
    assert len(coco["info"]["negatives"]) >= 158
    assert set(coco["info"]["thresholds"]) == {"eagle", "dove"}


def test_negatives_are_in_nothing_that_is_written(predict, tmp_path):
    plain = predict("--vocab", "cat, dog, wolf", "--score-threshold", 0)
    assert {a["category_id"] for a in plain["annotations"]} == {1, 2, 3}
    assert "negatives" not in plain["info"]
    coco = predict("--vocab", "cat, dog", "--negatives", "wolf", "--score-threshold", 0)
    assert [c["name"] for c in coco["categories"]] == ["cat", "dog"]
    assert len(coco["annotations"]) > 0 and {a["category_id"] for a in coco["annotations"]} <= {
        1,
        2,
    }
    assert coco["info"]["negatives"] == ["wolf"]
    (tmp_path / "names.txt").write_text("wolf\nfox\n")
    coco = predict("--negatives", tmp_path / "names.txt", "--score-threshold", 0)
    assert [c["name"] for c in coco["categories"]] == ["cat", "red mug", "traffic light"]
    assert coco["info"]["negatives"] == ["wolf", "fox"]


def test_other_names_of_the_model_compete_unless_told_not_to(predict):
    code, said = predict("--alone")
    assert code == 2 and "alone is for names of a vocabulary and for examples" in said
    words = ("--vocab", "cat", "--score-threshold", "0.01")
    together, alone = predict(*words), predict(*words, "--alone")
    assert together["info"]["competitors"] == 2 and "competitors" not in alone["info"]
    assert [c["name"] for c in together["categories"]] == ["cat"]
    best = [max(a["score"] for a in found["annotations"]) for found in (together, alone)]
    assert best[0] < best[1]


def test_thresholds_of_names(predict, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"cat": 0.0, "red mug": 1.0}))
    coco = predict("--thresholds", path, "--score-threshold", 0.99)
    assert {a["category_id"] for a in coco["annotations"]} == {1}
    assert coco["info"]["thresholds"] == {"cat": 0.0, "red mug": 1.0}
    assert coco["info"]["score_threshold"] == 0.99


def test_synonyms_of_a_json_file(predict, tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"names": ["cat"], "synonyms": [["cat", "kitty", "puss"]]}))
    one = predict("--vocab", path, "--score-threshold", 0)
    best = predict("--vocab", path, "--synonyms", "max", "--score-threshold", 0)
    assert [c["name"] for c in best["categories"]] == ["cat"]
    assert best["info"]["synonyms"] == "max"
    scores = [[a["score"] for a in coco["annotations"]] for coco in (one, best)]
    assert scores[0] and scores[1] and scores[0] != scores[1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--vocab", "cat, dog", "--negatives", "dog"], "negatives has 'dog'"),
        (["--vocab", "cat", "--synonyms", "sum"], "synonyms is 'sum'"),
        (["--negatives", "dataset:none"], "dataset 'none' is not registered"),
        (["--vocab", "cat", "--thresholds", "{tmp}/t.json"], "'wolf' is not among the 1 names"),
        (["--thresholds", "{tmp}/t.json"], "'wolf' is not among the 3 names"),
        (["--thresholds", "{tmp}/none.json"], "Cannot read thresholds"),
        (["--negatives", "wolf", "--attributes", "red"], "Attributes go with neither"),
    ],
)
def test_bad_input_is_one_sentence(predict, tmp_path, words, said):
    (tmp_path / "t.json").write_text(json.dumps({"wolf": 0.1}))
    code, err = predict(*(word.format(tmp=tmp_path) for word in words))
    assert code == 2 and said in err
    assert err.startswith("error: ") and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words, said",
    [
        (["--dataset", "none"], "'none'"),
        (["--dataset", "mini_v1_val", "--model", "mini", "--config-file", "x.yaml"], "exclude"),
        (["--dataset", "mini_v1_val", "--weights", "x.pth"], "--weights needs the --config-file"),
        (["--dataset", "mini_v1_val", "--out", "t.txt"], "end the name in .json"),
    ],
)
def test_a_calibration_that_cannot_be(ovd, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in words else ["--out", "t.json"]
    code, _, err = ovd("vocab", "calibrate", *words, *out)
    assert code == 2 and said in err and not list(tmp_path.iterdir())
