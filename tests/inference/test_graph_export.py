"""Folders of graphs: whole or not there, with all that somebody needs who has nothing of ovd_d2."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image
from random_models import DIM, NAMES, make_pixels, write_checkpoint, write_config

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import new_folder
from ovd_d2.inference import OpenVocabPredictor, graph_files
from ovd_d2.inference.class_embedding_files import embed_names, write_class_embeddings
from ovd_d2.inference.detect_onnx import new_size
from ovd_d2.inference.graph_check import random_picture
from ovd_d2.inference.graph_export import export_graph
from ovd_d2.language import load_text_embeddings


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(make_pixels(120, 160)).save(path)
    return path


@pytest.fixture(scope="module")
def graph(config, checkpoint, picture):
    """A folder that ``ovd export --format onnx`` wrote, and what it said."""
    out = config.with_name("graph")
    facts = export_graph(
        checkpoint, out, config_file=config, check=[picture], score_threshold="0.05"
    )
    return out, facts


def run_of(folder, name="onnx"):
    return graph_files.FORMATS[name].open(folder / graph_files.FORMATS[name].file)


def test_the_folder_says_all(graph):
    import onnx

    folder, facts = graph
    names = {"model.onnx", "graph.json", "detect.py", "check.jpg", "classes.safetensors"}
    assert {path.name for path in folder.iterdir()} == names | {"classes.safetensors.json"}
    assert json.loads((folder / "graph.json").read_text()) == facts
    assert (facts["colours"], facts["batch_size"], facts["embed_dim"]) == ("RGB", 1, DIM)
    assert facts["resize"] == {"short_side": 96, "longest_side": 160}
    assert facts["encoder_id"] == "hashing@000000000000"
    assert (facts["score_threshold"], facts["nms_threshold"]) == (0.05, 0.5)
    assert (facts["most_detections"], facts["most_pairs_before_nms"]) == (20, 20_000)
    assert list(facts["inputs"]) == ["image", "class_embeddings"]
    assert list(facts["outputs"]) == ["boxes", "scores", "classes", "masks"]
    assert (
        facts["check"]["detections"] > 20 and facts["check"]["largest_difference_of_boxes"] < 1e-3
    )
    model = onnx.load(folder / "model.onnx")
    inside = {entry.key: entry.value for entry in model.metadata_props}
    without_check = {key: value for key, value in facts.items() if key != "check"}
    assert json.loads(inside["ovd_d2"]) == without_check
    assert inside["encoder_id"] == "hashing@000000000000" and inside["embed_dim"] == str(DIM)
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in model.graph.input}  # fmt: skip
    assert shapes == {"image": ["height", "width", 3], "class_embeddings": ["classes", DIM]}


def test_the_classes_come_along(graph, config, checkpoint):
    folder, _ = graph
    rows = load_text_embeddings(folder / "classes.safetensors")
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu")
    assert ", ".join(rows.names) == NAMES
    heads = predictor.model.roi_heads
    assert np.allclose(rows.embeddings, heads.box_predictor.cls_score.class_embeddings)
    manifest = json.loads((folder / "classes.safetensors.json").read_text())
    assert manifest["is_novel"] == [False] * 3


def test_other_names_need_no_other_export(graph, config, checkpoint, tmp_path):
    """File to file: the predictor's detections from the graph and a file of ``ovd vocab embed``."""
    folder, _ = graph
    names = [f"thing {k}" for k in range(40)]
    options = {"config_file": config, "weights": checkpoint}
    rows, competitors = embed_names(names, tmp_path / "names.safetensors", **options)
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu", score_threshold=0.02)
    predictor.set_vocabulary(names)
    pixels = make_pixels(96, 128)
    wanted = predictor.predict(pixels, input_format="RGB")
    wanted = wanted[wanted.scores > 0.05]
    found = run_of(folder)(pixels, rows.embeddings.numpy(), np.zeros(43, bool))
    assert competitors == 3
    asked = found["classes"] < 40
    found = {key: values[asked] for key, values in found.items()}
    assert len(found["scores"]) == len(wanted) > 3
    assert np.abs(found["scores"] - wanted.scores.numpy()).max(initial=0) < 1e-3


def test_torchscript_carries_its_facts(config, checkpoint, picture, tmp_path):
    import torch

    out = tmp_path / "graph"
    facts = export_graph(checkpoint, out, "torchscript", config_file=config, check=[picture])
    names = {path.name for path in out.iterdir()}
    assert names == {"model.torchscript", "graph.json", "check.jpg", *(f"classes.safetensors{e}"
                     for e in ("", ".json"))}  # fmt: skip
    inside = {"ovd_d2": ""}
    torch.jit.load(str(out / "model.torchscript"), _extra_files=inside)
    assert json.loads(inside["ovd_d2"])["encoder_id"] == facts["encoder_id"]


def test_an_exported_model_becomes_a_graph(exported, picture, tmp_path):
    """By its folder, whose score threshold counts, and with overrides."""
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    facts = json.loads((folder / "facts.json").read_text())
    (folder / "facts.json").write_text(json.dumps({**facts, "score_threshold": 0.125}))
    out = tmp_path / "graph"
    overrides = ["TEST.DETECTIONS_PER_IMAGE", "7"]
    found = export_graph(folder, out, "torchscript", overrides=overrides, check=[picture])
    assert (found["score_threshold"], found["most_detections"]) == (0.125, 7)
    pixels = make_pixels(120, 160)
    rows = load_text_embeddings(out / "classes.safetensors").embeddings.numpy()
    scores = run_of(out, "torchscript")(pixels, rows, np.zeros(3, bool))["scores"]
    assert 0 < len(scores) <= 7 and scores.min() > 0.125


def test_a_graph_that_differs_is_not_written(config, checkpoint, picture, tmp_path, monkeypatch):
    """The model has changed between tracing and check."""

    def write(graph, path, about):
        import torch

        bias = graph.model.roi_heads.box_predictor.bbox_pred.bias
        bias.data += 0.5
        graph_files._write_torchscript(graph, path, about)
        bias.data -= 0.5
        assert torch.jit.load(str(path))

    wrong = graph_files.GraphFormat("wrong", (), write, graph_files._open_torchscript)
    monkeypatch.setitem(graph_files.FORMATS, "wrong", wrong)
    with pytest.raises(
        OVDError, match=r"does not do what the model does \(.*picture\.png, 128 x 96"
    ):
        export_graph(checkpoint, tmp_path / "a/out", "wrong", config_file=config, check=[picture])
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_cannot_be_run_is_not_written(config, checkpoint, tmp_path, monkeypatch):
    def run(*_):
        raise RuntimeError("boom\nNode 7 expects 150 rows")

    kind = graph_files.FORMATS["torchscript"]
    broken = graph_files.GraphFormat(kind.file, (), kind.write, lambda path: run)
    monkeypatch.setitem(graph_files.FORMATS, "torchscript", broken)
    with pytest.raises(OVDError, match="running it fails: Node 7 expects 150 rows"):
        export_graph(checkpoint, tmp_path / "out", "torchscript", config_file=config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("write", r"The graph cannot be made \(Exporting the operator aten::foo fails\)"),
        ("open", r"cannot be opened \(Exporting the operator aten::foo fails\).*-U onnxruntime"),
    ],
)
def test_operations_that_are_not_known(part, message, config, checkpoint, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("Exporting the operator aten::foo fails\nat line 7")

    kind = dataclasses.replace(graph_files.FORMATS["torchscript"], **{part: fails})
    monkeypatch.setitem(graph_files.FORMATS, "torchscript", kind)
    with pytest.raises(OVDError, match=message):
        export_graph(checkpoint, tmp_path / "out", "torchscript", config_file=config)
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_sees_nothing_is_none(config, checkpoint, picture, tmp_path):
    with pytest.raises(OVDError, match=r"Nothing is found in .*picture\.png.*--check IMAGE"):
        export_graph(checkpoint, tmp_path / "out", "torchscript", config_file=config,
                     score_threshold="0.99", check=[picture])  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(package, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == package else find(n))
    with pytest.raises(OVDError, match=rf"needs {package}: run pip install 'ovd_d2\[export\]'"):
        export_graph("mini", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "tensorrt"}, "--format tensorrt: give folder, onnx or torchscript."),
        ({"check": ["gone.png"]}, "gone.png"),
        ({"model": "nobody"}, "There is no model 'nobody'"),
        ({"overrides": ["MODEL.NOTHING", "1"]}, "there is no config key"),
        ({"score_threshold": "1.5"}, "1.5"),
    ],
)
def test_bad_input_is_found_first(arguments, message, tmp_path):
    arguments = {"model": "mini", **arguments}
    with pytest.raises(OVDError, match=message):
        export_graph(out=tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced(graph):
    folder, _ = graph
    with pytest.raises(OVDError, match="exists already"):
        export_graph("mini", folder)


def test_a_glip_is_refused_before_it_is_opened(checkpoint, tmp_path):
    (tmp_path / "glip.yaml").write_text("MODEL: {META_ARCHITECTURE: GLIP}\n")
    with pytest.raises(OVDError, match="GLIP cannot be exported as a graph"):
        export_graph(checkpoint, tmp_path / "out", config_file=tmp_path / "glip.yaml")


def test_detectors_of_transformers_are_refused_before_they_are_asked_for(tmp_path):
    with pytest.raises(OVDError, match="HuggingFaceDetector cannot be exported as a graph"):
        export_graph("hf:somebody/owlv2", tmp_path / "out")


def test_names_must_be_known(checkpoint, tmp_path):
    lonely = write_config(tmp_path / "lonely.yaml", names="gone/names.txt")
    with pytest.raises(OVDError, match="the names of its classes cannot be had here"):
        export_graph(checkpoint, tmp_path / "out", "torchscript", config_file=lonely)


def test_embedding_files_are_refused_for_models_without_embeddings(tmp_path):
    class Reader:
        vocabulary = None

        def set_vocabulary(self, vocabulary):
            pass

    predictor = OpenVocabPredictor.__new__(OpenVocabPredictor)
    predictor.model = Reader()
    with pytest.raises(OVDError, match="Reader has no class embeddings"):
        write_class_embeddings(predictor, tmp_path / "x.safetensors")


@pytest.mark.parametrize("sides", [(192, 192), (800, 1333), (96, 160)])
def test_the_example_resizes_as_detectron2(sides):
    for height in range(1, 400, 7):
        for width in (1, 170, 171, 256, 333, 640):
            wanted = ResizeShortestEdge.get_output_shape(height, width, *sides)
            found = new_size(width, height, short_side=sides[0], longest_side=sides[1])
            assert found[::-1] == [max(side, 1) for side in wanted], (height, width)
    assert new_size(7, 9) == [7, 9] and new_size(7, 9, square=224) == [224, 224]


def test_a_random_picture_is_the_same_every_time():
    assert np.array_equal(random_picture(), random_picture())
    assert random_picture(30, 40).shape == (30, 40, 3)


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    with new_folder("--out", tmp_path / "a/b") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a/b").exists()
    assert (tmp_path / "a/b/file").read_text() == "x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(KeyboardInterrupt), new_folder("--out", tmp_path / "c/d"):
        raise KeyboardInterrupt
    assert not (tmp_path / "c").exists()
    with pytest.raises(OVDError, match="Cannot write"), new_folder("--out", tmp_path / "e"):
        raise OSError(28, "No space left on device")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["a"]
    with pytest.raises(OVDError, match="exists already"), new_folder("--out", tmp_path / "a"):
        pass


def test_a_bgr_model_is_said_to_be_one(tmp_path, checkpoint):
    bgr = write_config(tmp_path / "config.yaml", order="BGR")
    weights = write_checkpoint(bgr, tmp_path / "model_final.pth")
    facts = export_graph(weights, tmp_path / "out", "torchscript")  # the yaml beside it
    assert facts["colours"] == "BGR" and "BGR" in facts["inputs"]["image"]
    with Image.open(tmp_path / "out/check.jpg") as drawn:
        assert min(drawn.size) > 400
