"""A user's own data: named by its files, or registered by the user's own code."""

import json
import logging
import os
import sys

import numpy as np
import pytest
import warm_processes
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_detector import OPTIONS, ROOT, run_trainer, tiny_config, write_dataset

from ovd_d2.checkpoint import TRUST_VARIABLE
from ovd_d2.data.build import build_train_loader
from ovd_d2.data.user_code import run_registration
from ovd_d2.engine import argument_parser, setup
from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference.export import export_model

NAMES = ("red", "green", "blue", "purple")
DIM = 8
CODE = """
import sys
sys.path.insert(0, {tests!r})
import tiny_detector  # its backbone
from detectron2.data.datasets import register_coco_instances

open({marker!r}, "a").write("ran ")
register_coco_instances("from_my_code", {{}}, {json!r}, {images!r})
"""


@pytest.fixture
def own(tmp_path):
    """20 images of red, green and blue things, whose json knows of purple ones too; the words of a
    tiny open-vocabulary detector on them."""
    path = write_dataset(tmp_path / "data", count=20)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "purple"})
    path.write_text(json.dumps(content))
    np.save(tmp_path / "embeddings.npy", np.eye(4, DIM, dtype=np.float32) + 0.1)
    name = f"coco:{tmp_path}/data/images:{path}"
    words = [
        "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)", "SOLVER.MAX_ITER", "2",
        "MODEL.ROI_HEADS.NAME", "OpenVocabROIHeads", "MODEL.OPEN_VOCAB.EMBED_DIM", str(DIM),
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "SOLVER.STEPS", "(1,)",
        "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", str(tmp_path / "embeddings.npy"),
    ]  # fmt: skip
    yield name, words, tmp_path
    for registered in [n for n in DatasetCatalog.list() if str(tmp_path) in n or "my_code" in n]:
        DatasetCatalog.remove(registered)
        MetadataCatalog.remove(registered)


def write_code(folder):
    """A registration module; it notes in a file that it ran."""
    path = folder / "my_data.py"
    data = folder / "data"
    path.write_text(
        CODE.format(
            tests=str(ROOT / "tests/engine"), marker=str(folder / "marker"),
            json=str(data / "annotations.json"), images=str(data / "images"),
        )
    )  # fmt: skip
    return path


def run(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return warm_processes.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment,
        timeout=250,
    )  # fmt: skip


def test_train_net_trains_and_evaluates_on_a_json_named_in_the_config(own):
    name, words, folder = own
    novel = folder / "novel.txt"
    novel.write_text("blue\n")
    code = write_code(folder)  # only for the backbone
    done = run(
        ROOT / "train_net.py", "--register", code, *OPTIONS, *words, "OUTPUT_DIR", folder / "out",
        "DATASETS.NOVEL_NAMES", f"['{novel}']",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((folder / "out/results.json").read_text())["results"][name]["bbox"]
    assert results["AP_base"] is not None and results["AP_novel"] is not None
    text = (folder / "out/log.txt").read_text()
    assert f"--register runs the Python code of {code}" in text
    assert "boxes of 1 novel classes are held out of training" in text
    assert "has no box of 'purple', which are not marked novel either: they train as neg" in text
    config = (folder / "out/config.yaml").read_text()
    assert "my_data.py" in config and "novel.txt" in config
    # What the run wrote does not run code by itself, wherever it is taken.
    with pytest.raises(OVDError, match=r"my_data.py in DATASETS.REGISTER, .* --register "):
        setup(argument_parser().parse_args(["--config-file", str(folder / "out/config.yaml")]))


def test_train_net_names_the_wrong_annotation(own):
    _, words, folder = own
    path = folder / "data/annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][4]["bbox"][2] = float("nan")
    path.write_text(json.dumps(content))
    script = ROOT / "tests/engine/tiny_detector.py"
    done = run(script, folder / "data", *words, "OUTPUT_DIR", folder / "out")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and not (folder / "out").exists()
    assert "annotations.json: annotation 5 has the bbox [" in done.stderr.splitlines()[-1]


def test_boxes_of_novel_classes_are_held_out(own, caplog):
    _, words, folder = own
    cfg = tiny_config(folder / "out", *words, "DATASETS.NOVEL_NAMES", "['blue', 'purple']")
    trainer = run_trainer(cfg)
    assert trainer.model.roi_heads.vocabulary.is_novel == (False, False, True, True)
    with caplog.at_level(logging.INFO):
        loader = build_train_loader(cfg)
    assert "train as negatives" not in caplog.text
    for batch, _ in zip(loader, range(10)):
        for sample in batch:
            assert len(sample["instances"]) and 2 not in sample["instances"].gt_classes
    results = trainer._last_eval_results["bbox"]
    assert "AP_novel" in results and "AP_base" in results


def test_metadata_hold_out_too(own):
    _, words, folder = own
    run_registration(str(write_code(folder)))
    MetadataCatalog.get("from_my_code").set(base_classes=["red", "purple"])
    cfg = tiny_config(folder / "out", *words, "DATASETS.TRAIN", "('from_my_code',)")
    seen = {int(k) for b, _ in zip(build_train_loader(cfg), range(8)) for s in b
            for k in s["instances"].gt_classes}  # fmt: skip
    assert seen == {0}


@pytest.mark.parametrize(
    ("novel", "message"),
    [
        (["bleu"], "NOVEL_NAMES has 'bleu', which no class of coco:"),
        ([3], "NOVEL_NAMES holds 3"),
        (["nowhere.txt"], "vocabulary file nowhere.txt"),
    ],
)
def test_names_that_nobody_has(own, novel, message):
    _, words, folder = own
    opts = [*OPTIONS, *words, "OUTPUT_DIR", str(folder / "out"), "DATASETS.NOVEL_NAMES", str(novel)]
    with pytest.raises(OVDError, match=message):
        setup(argument_parser().parse_args(opts))


def test_everything_novel_is_refused(own):
    _, words, folder = own
    cfg = tiny_config(folder / "out", *words, "DATASETS.NOVEL_NAMES", str(list(NAMES)))
    with pytest.raises(OVDError, match="has boxes of novel classes alone"):
        build_train_loader(cfg)


# ---- code


def parse(*words):
    return argument_parser().parse_args([str(word) for word in words])


def test_a_yaml_alone_runs_no_code(own, monkeypatch):
    _, words, folder = own
    code = write_code(folder)
    config = folder / "downloaded.yaml"
    config.write_text(f"DATASETS:\n  REGISTER: ['{code}']\n")
    monkeypatch.setenv(TRUST_VARIABLE, "0")
    arguments = ["--config-file", config]
    rest = [*OPTIONS, *words, "OUTPUT_DIR", folder / "out"]
    with pytest.raises(OVDError, match=f"downloaded.yaml names {code} in DATASETS.REGISTER"):
        setup(parse(*arguments, *rest))
    assert not (folder / "marker").exists()
    cfg = setup(parse(*arguments, "--register", code, *rest))
    assert (folder / "marker").read_text() == "ran "
    assert list(cfg.DATASETS.REGISTER) == [str(code)]
    setup(parse(*arguments, "--trust", *rest))  # not run twice in a process
    assert (folder / "marker").read_text() == "ran "


def test_the_key_on_the_command_line_is_asked_for(own, capsys):
    _, words, folder = own
    code = write_code(folder)
    setup(parse(*OPTIONS, *words, "OUTPUT_DIR", folder / "out", "DATASETS.REGISTER", f"['{code}']"))
    assert (folder / "marker").read_text() == "ran "
    assert "DATASETS.REGISTER runs the Python code of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError"),
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
    ],
)
def test_code_that_fails_is_named(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    for _ in range(2):  # a failed import is not taken for done
        with pytest.raises(OVDError, match=f"--register .*broken.py failed: {message}"):
            run_registration(str(path))


def test_code_that_is_not_there():
    with pytest.raises(OVDError, match="nowhere.py: there is no such Python file"):
        run_registration("nowhere.py")
    with pytest.raises(OVDError, match="--register no.such.module failed"):
        run_registration("no.such.module")
    run_registration("json")  # a module


@pytest.mark.parametrize("words", [["regions", "build", "--dataset", "from_my_code", "--proposals",
                                    "gt", "--encoder", "nobody", "--out", "OUT"],
                                   ["export", "nowhere.pth", "--config-file", "x.yaml", "--out",
                                    "OUT"]])  # fmt: skip
def test_commands_register_too(own, words, capsys):
    from ovd_d2.cli.app import main

    _, _, folder = own
    code = write_code(folder)
    words = [word.replace("OUT", str(folder / "out")) for word in words]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--register", str(code)])
    assert caught.value.code == 2
    assert "from_my_code" in DatasetCatalog.list()
    assert "not registered" not in capsys.readouterr().err


# ---- the rest


def test_export_takes_overrides_and_keeps_the_names(own):
    _, words, folder = own
    more = ["DATASETS.NOVEL_NAMES", "['blue']", "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", "",
            "MODEL.OPEN_VOCAB.EMBED_DIM", "384", "DATASETS.TEST", "()"]  # fmt: skip
    encoder = ["MODEL.OPEN_VOCAB.TEXT_ENCODER", "mini-teacher"]
    cfg = tiny_config(folder / "out", *words, *more, *encoder)
    run_trainer(cfg)
    yaml = folder / "out/config.yaml"
    yaml.write_text(cfg.dump())
    export_model(
        folder / "out/model_final.pth", yaml, folder / "model", ["TEST.DETECTIONS_PER_IMAGE", "7"]
    )
    vocabulary = json.loads((folder / "model/vocabulary.json").read_text())
    assert vocabulary["names"] == list(NAMES)
    assert vocabulary["is_novel"] == [False, False, True, False]
    assert "DETECTIONS_PER_IMAGE: 7" in (folder / "model/config.yaml").read_text()
    assert OpenVocabPredictor.from_pretrained(folder / "model").vocabulary.names == NAMES


def test_resuming_nothing_is_said(own, caplog):
    _, words, folder = own
    cfg = tiny_config(folder / "out", *words, "DATASETS.TEST", "()")
    with caplog.at_level(logging.WARNING):
        run_trainer(cfg, resume=True)
    assert (
        "holds no checkpoint, so everything starts at the beginning, from random w" in caplog.text
    )
