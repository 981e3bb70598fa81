"""``ovd export --format onnx``, ``ovd vocab embed``, and what they wrote used without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import warm_processes

from ovd_d2.cli.app import main

OVD = str(Path(sys.executable).with_name("ovd"))
NAMES = "chicken, sandwich, diya lamp, cupcake, slot machine, dolphin, hot beverage"
SCENES = ("030001.jpg", "030002.jpg")
# A process in which neither can be imported.
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "torchvision", "detectron2", "ovd_d2"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*words):
    done = warm_processes.run(list(map(str, words)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scenes(mini_root):
    return [mini_root / "images/test" / name for name in SCENES]


@pytest.fixture(scope="module")
def graph(tmp_path_factory, scenes):
    """The folder of the packaged model's graph, and what the command said."""
    out = tmp_path_factory.mktemp("graph") / "mini"
    checks = [word for scene in scenes for word in ("--check", scene)]
    return out, run(OVD, "export", "mini", "--format", "onnx", "--out", out, *checks)


def test_what_export_says(graph):
    out, said = graph
    assert "inputs image, class_embeddings, is_novel; outputs boxes, scores, classes" in said
    assert "score threshold 0.39" in said and "checked on 2 pictures, at two sizes" in said
    assert json.loads((out / "graph.json").read_text())["encoder_id"].startswith("mini-teacher@")


def test_the_example_finds_what_predict_finds(graph, scenes, tmp_path):
    """In a process without torch: the same names, scores to 1e-3, boxes to half a pixel."""
    names = tmp_path / "names.safetensors"
    said = run(OVD, "vocab", "embed", NAMES, "--out", names)
    assert "7 names and 153 that compete, 384 numbers each" in said
    for classes, option in (([], []), ([names], ["--vocab", NAMES])):
        predicted = json.loads(
            run(OVD, "predict", *scenes, *option, "--no-pictures", "--json", "-").splitlines()[-1]
        )
        called = {c["id"]: c["name"] for c in predicted["categories"]}
        numbers = {Path(i["file_name"]).name: i["id"] for i in predicted["images"]}
        compared = 0
        for scene in scenes:
            lines = run(
                sys.executable, "-c", WITHOUT_TORCH, graph[0] / "detect.py", scene, *classes
            )
            found = [line.split("\t") for line in lines.splitlines()]
            wanted = [a for a in predicted["annotations"] if a["image_id"] == numbers[scene.name]]
            wanted.sort(key=lambda a: -a["score"])
            assert len(found) == len(wanted) > 0
            for (score, name, *box), annotation in zip(found, wanted):
                x, y, width, height = annotation["bbox"]
                assert name == called[annotation["category_id"]]
                assert float(score) == pytest.approx(annotation["score"], abs=1e-3)
                expected = [x, y, x + width, y + height]
                assert [float(side) for side in box] == pytest.approx(expected, abs=0.5)
            compared += len(wanted)
        assert compared > 5


def test_the_example_refuses_embeddings_of_another_encoder(graph, scenes, tmp_path):
    names = tmp_path / "names.safetensors"
    names.with_name("names.safetensors.json").write_text('{"encoder_id": "other@1"}')
    done = subprocess.run(
        [sys.executable, graph[0] / "detect.py", scenes[0], names], capture_output=True, text=True
    )
    assert done.returncode == 1 and "is by other@1, the graph needs mini-teacher@" in done.stderr


def test_the_example_says_how_it_is_used(graph):
    done = subprocess.run([sys.executable, graph[0] / "detect.py"], capture_output=True, text=True)
    assert done.returncode == 1 and "python detect.py PICTURE [NAMES.safetensors]" in done.stderr


def fails(capsys, *words):
    with pytest.raises(SystemExit) as exit_info:
        main(list(map(str, words)))
    captured = capsys.readouterr()
    assert exit_info.value.code == 2 and captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mini"], "--format folder needs the --config-file"),
        (["mini", "--format", "coreml"], "--format coreml: give folder, onnx or torchscript."),
        (["mini", "--format", "onnx", "--note", "a=b"], "--note is for --format folder"),
        (["mini", "--format", "onnx", "--check", "gone.png"], "gone.png"),
        (["gone.pth", "--format", "onnx"], "There is no model 'gone.pth'"),
        (["gone.pth", "--format", "onnx", "--config-file", "a.yaml"], "gone.pth, which does not"),
        (["x.pth", "--config-file", "a.yaml", "--check", "b.png"], "--check is for graphs"),
    ],
)
def test_bad_input_of_export(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "export", *words, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cat", "--out", "names.npy"], "--out names.npy: end the name in .safetensors."),
        ([" , ", "--out", "n.safetensors"], "name"),
        (["cat", "--out", "n.safetensors", "--model", "nobody"], "There is no model 'nobody'"),
        (["cat", "--out", "n.safetensors", "--weights", "w.pth"], "--weights needs"),
        (["cat", "--out", "n.safetensors", "--model", "mini", "--config-file", "a.yaml"],
         "exclude each other"),
    ],
)  # fmt: skip
def test_bad_input_of_embed(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "vocab", "embed", *words)
    assert list(tmp_path.iterdir()) == []
