"""``ovd finetune`` from labelled images to a model folder, and everything that can go wrong."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from detectron2.data import DatasetCatalog, MetadataCatalog
from own_images import NAMES, WRITERS, write_coco, write_voc, write_yolo
from PIL import Image
from tiny_detectors import save_dino, save_owl

from ovd_d2.cli import app
from ovd_d2.data.datasets.annotation_files import read_annotations
from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.inference import OpenVocabPredictor

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--iterations", "4", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PERIOD", "2")


@pytest.fixture(autouse=True)
def forget_data_sets():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(*words):
    """Exit code of ``ovd finetune`` in this process."""
    with pytest.raises(SystemExit) as exit_info:
        app.main(["finetune", *map(str, words)])
    return exit_info.value.code or 0


def process(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = warm_processes.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment,
        timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def own_val(out):
    """The name of the validation set in ``out``, which serves as old data too: it is small."""
    return json.loads((out / "finetune.json").read_text())["val"]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.slow
def test_from_a_folder_to_predictions_as_processes(tmp_path):
    folder, out = write_yolo(tmp_path / "data"), tmp_path / "out"
    old = write_coco(tmp_path / "old")
    old = f"dataset:coco:{old.parent}/images:{old}"
    text = process("-m", "ovd_d2.cli.app", "finetune", folder, "--out", out, "--old", old, *QUICK)
    assert "frozen: 16 images, 3 classes, 4 iterations of 4 images, learning rate" in text
    for word in ("AP your classes", "AP what it knew before", "eta: ", f"--model {out}/model"):
        assert word in text, text
    assert "Average Precision" not in text and "Environment" not in text
    report = json.loads((out / "report.json").read_text())
    for part in ("new", "old"):
        assert all(0 <= report[part][when]["AP"] <= 100 for when in ("before", "after"))
    for name in ("predictions.jpg", "loss_curves.png", "data/labelled_images.jpg",
                 "data/class_counts.png"):  # fmt: skip
        with Image.open(out / name) as image:
            assert min(image.size) > 100, name

    predictor = OpenVocabPredictor.from_pretrained(out / "model")
    assert set(predictor.vocabulary.names) == set(NAMES)
    assert predictor.facts["fine_tuned_from"] == "mini"
    assert "16 images of" in predictor.facts["learned_from"]
    assert "TUNE" not in (out / "model/config.yaml").read_text()
    predictor(next((folder / "images").iterdir()))

    # What learns, and what stays.
    packaged = weights_of_mini()
    trained = weights(out / "train/model_final.pth")
    moved = {n for n, v in packaged.items() if not torch.allclose(v.float(), trained[n].float())}
    assert moved and not any(n.startswith(("backbone.", "roi_heads.image_branch.")) for n in moved)

    # The plain way does the same, bit by bit.
    process(ROOT / "train_net.py", "--config-file", out / "finetune.yaml", "OUTPUT_DIR",
            tmp_path / "plain")  # fmt: skip
    plain = weights(tmp_path / "plain/model_final.pth")
    assert all(torch.equal(plain[n], trained[n]) for n in trained)


def weights_of_mini():
    from safetensors.torch import load_file

    from ovd_d2.inference.model_folders import MODELS

    return load_file(MODELS / "mini/model.safetensors")


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_checked(tmp_path, kind, capsys):
    source, out = WRITERS[kind](tmp_path / "data"), tmp_path / "out"
    assert run(source, "--out", out, "--check-only") == 0
    assert f"{source} ({kind})" in capsys.readouterr().out
    for name, count in (("train", 16), ("val", 4)):
        content = read_annotations(out / f"data/{name}.json", None)
        assert len(content["images"]) == count
        assert {c["name"] for c in content["categories"]} == set(NAMES)
    assert "class blue square: 7 boxes" in (out / "data/report.txt").read_text()
    assert run(source, "--out", out, "--check-only") == 0  # a check may be repeated


def test_a_check_that_finds_something(tmp_path, capsys):
    folder = write_yolo(tmp_path / "data")
    label = sorted((folder / "labels").iterdir())[0]
    label.write_text(label.read_text() + "\n7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 9 9 9 9")
    assert run(folder, "--out", tmp_path / "out", "--check-only") == 1
    out = capsys.readouterr().out
    assert "left out: 1 boxes have a class number that is none of the 3 names" in out
    assert "2 things were left out" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "There is no nowhere"),
        (["DATA", "--kind", "kitti"], "kind is 'kitti'"),
        (["DATA", "--recipe", "all"], "--recipe all: it must be full, frozen, linear"),
        (["DATA", "--recipe", "prompt"], "cannot be fine-tuned so; it can by full, frozen, linear"),
        (["DATA", "--recipe", "lora"], "--recipe lora: MODEL.TUNE.LORA: GeneralizedRCNN has no at"),
        (["DATA", "--model", "maxi"], "There is no model 'maxi'"),
        (["DATA", "--weights", "x.pth"], "--weights needs the --config-file"),
        (["DATA", "--model", "mini", "--config-file", "x"], "exclude each other"),
        (["DATA", "--old", "dataset:nowhere"], "--old names the dataset 'nowhere'"),
        (["DATA", "--replay", "nowhere"], "--replay names the dataset 'nowhere'"),
        (["DATA", "--replay-share", "1"], "--replay-share 1"),
        (["DATA", "--check-only", "--resume"], "exclude each other"),
        (["DATA", "--val", "nowhere"], "There is no nowhere"),
        (["DATA", "--images", "nowhere"], "images is nowhere, which is no folder"),
        (["DATA", "--config-file", "closed.yaml"], "has fixed classes or finds no boxes"),
        (["DATA", "--config-file", "lseg.yaml"], "has fixed classes or finds no boxes"),
    ],
)  # fmt: skip
def test_one_sentence_and_nothing_written(tmp_path, monkeypatch, words, message, capsys):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "data")
    torch.save({}, "x.pth")
    Path("closed.yaml").write_text("MODEL: {WEIGHTS: x.pth}")
    Path("lseg.yaml").write_text("MODEL: {WEIGHTS: x.pth, META_ARCHITECTURE: LSeg}")
    words = [word.replace("DATA", "data/labels.json") for word in words]
    assert run(*words, "--out", "out") == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and message in error[-1], error
    assert not Path("out/data").exists() and not Path("out/finetune.yaml").exists()


def test_a_wrong_key_is_named_before_training(tmp_path, capsys):
    source = write_coco(tmp_path / "data")
    assert run(source, "--out", tmp_path / "out", "SOLVER.BASE_L", "1") == 2
    assert "did you mean SOLVER.BASE_LR?" in capsys.readouterr().err
    assert not (tmp_path / "out/finetune.yaml").exists()


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    source, out = write_coco(tmp_path / "data"), tmp_path / "out"
    old = f"dataset:coco:{source.parent}/images:{source}"
    words = [source, "--out", out, "--old", old, *QUICK]
    step, count = OpenVocabTrainer.run_step, []

    def interrupted(trainer):
        count.append(trainer.iter)
        if len(count) == 4:
            raise KeyboardInterrupt
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(OpenVocabTrainer, "run_step", interrupted)
        assert run(*words) == 2
        assert f"the same command with --resume goes on in {out}" in capsys.readouterr().err
        assert run(*words) == 2  # not without --resume
        assert "exists already: add --resume" in capsys.readouterr().err
        assert run(*words, "SEED", "5", "--resume") == 2
        assert "was begun with KEY VALUE [" in capsys.readouterr().err
        before = (out / "before/results.json").stat().st_mtime_ns
        assert run(*words, "--resume") == 0
        assert count == [0, 1, 2, 3, 2, 3]  # from the checkpoint of the second iteration
        assert (out / "before/results.json").stat().st_mtime_ns == before
        assert run(*words, "--resume") == 0  # nothing is left to do
        assert len(count) == 6
    interrupted_weights = weights(out / "train/model_final.pth")
    whole = [source, "--out", tmp_path / "whole", "--old", old, *QUICK]
    assert run(*whole) == 0
    for name, value in weights(tmp_path / "whole/train/model_final.pth").items():
        assert torch.equal(value, interrupted_weights[name]), name


def test_two_at_once_are_refused(tmp_path, capsys):
    from ovd_d2.files.locks import lock

    source, out = write_coco(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    held = lock(out / ".finetune.lock", taken="")
    try:
        assert run(source, "--out", out) == 2
    finally:
        held.release()
    assert "another ovd finetune is at work there" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_of_a_detector_of_transformers(tmp_path, capsys):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    save_dino(tmp_path / "dino")
    source, out = write_voc(tmp_path / "data"), tmp_path / "out"
    words = ["--iterations", "2", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(96,)",
             "SOLVER.BASE_LR", "0.05"]  # fmt: skip
    model = f"hf:{tmp_path / 'dino'}"
    assert run(source, "--out", out, "--model", model, "--recipe", "lora", *words) == 0
    said = capsys.readouterr().out
    assert "so nothing tells what it has forgotten" in said
    assert "RANK: 8" in (out / "finetune.yaml").read_text()
    assert not any("lora" in name for name in weights(out / "train/model_final.pth"))
    predictor = OpenVocabPredictor.from_pretrained(out / "model")
    assert set(predictor.vocabulary.names) == set(NAMES)

    save_owl(tmp_path / "owl")
    assert run(source, "--out", tmp_path / "2", "--model", f"hf:{tmp_path / 'owl'}") == 2
    assert "transformers has no loss for them" in capsys.readouterr().err


@pytest.mark.slow
def test_replayed_classes_join_the_vocabulary(tmp_path, mini_root):
    source, out = write_coco(tmp_path / "data"), tmp_path / "out"
    old = f"dataset:coco:{source.parent}/images:{source}"
    words = ["--replay", "mini_v1_train_base", "--replay-share", "0.5", "--old", old]
    assert run(source, "--out", out, *words, *QUICK) == 0
    vocabulary = json.loads((out / "data/vocabulary.json").read_text())
    assert vocabulary["names"][:3] == list(NAMES) and len(vocabulary["names"]) == 163
    assert sum(vocabulary["is_novel"]) == 40 and not any(vocabulary["is_novel"][:3])
    log = (out / "train/log.txt").read_text()
    assert "mini_v1_train_base" in log
    predictor = OpenVocabPredictor.from_pretrained(out / "model")
    assert set(predictor.vocabulary.names) == set(NAMES)


def test_few_images(tmp_path, capsys):
    source, out = write_coco(tmp_path / "data"), tmp_path / "out"
    content = json.loads(source.read_text())
    content["images"] = content["images"][:1]
    keep = {i["id"] for i in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in keep]
    source.write_text(json.dumps(content))
    assert run(source, "--out", out, "--check-only") == 0
    said = capsys.readouterr().out
    assert "the training images themselves, there are too few to spare one" in said
    assert "note: 1 classes have fewer than 5 boxes to train on: red circle" in said


def test_shots_and_validation_data_of_another_format(tmp_path, capsys):
    source, val = write_yolo(tmp_path / "data"), write_voc(tmp_path / "val")
    out = tmp_path / "out"
    assert run(source, "--out", out, "--val", val, "--shots", "2", "--check-only") == 0
    train, held_out = (json.loads((out / f"data/{n}.json").read_text()) for n in ("train", "val"))
    assert len(held_out["images"]) == 20 and len(train["images"]) <= 6
    # The same images, given as both.
    assert run(source, "--out", tmp_path / "2", "--val", source, "--check-only") == 2
    assert "All training images are validation images too" in capsys.readouterr().err
