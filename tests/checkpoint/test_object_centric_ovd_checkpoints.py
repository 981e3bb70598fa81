"""Checkpoints of object-centric-ovd: whole, both ways, and refused by name."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from detectron2.modeling import build_model
from released_shapes import CLASSIFIER, RECIPES, SHAPES, our_config, released

from ovd_d2.checkpoint import (
    TRUST_VARIABLE,
    from_object_centric_ovd,
    read_state_dict,
    to_object_centric_ovd,
)
from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError
from ovd_d2.language import load_text_embeddings

OVD = str(Path(sys.executable).with_name("ovd"))
PREDICTOR = "roi_heads.box_predictor."


@pytest.mark.parametrize("name", SHAPES)
def test_our_models_have_exactly_the_converted_keys_and_shapes(name, tmp_path):
    recipe, transfer = RECIPES[name]
    found = from_object_centric_ovd(released(name))
    assert found.weight_transfer == transfer
    model = build_model(our_config(recipe, tmp_path))
    ours = {k: v.shape for k, v in model.state_dict().items()}
    assert ours.pop(CLASSIFIER + "encoder_id_bytes") == (160,)
    assert ours == {k: v.shape for k, v in found.weights.items()}
    torch.save({"model": found.weights}, tmp_path / "converted.pth")
    report = AtomicCheckpointer(model, str(tmp_path)).load(str(tmp_path / "converted.pth"))
    assert not report
    for key, value in model.state_dict().items():
        assert "encoder_id" in key or torch.equal(value, found.weights[key]), key


@pytest.mark.parametrize("name", SHAPES)
def test_the_way_there_and_back_is_the_identity(name):
    state = released(name)
    found = from_object_centric_ovd(state)
    back = to_object_centric_ovd(found.weights, found.class_embeddings, found.image_counts)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_weight_transfer_lands_in_the_right_layers():
    state = released("COCO_OVD_RKD_PIS_WeightTransfer")
    weights = from_object_centric_ovd(state).weights
    for theirs, ours in (
        ("linear", "frozen"), ("fc1", "generate.0"), ("fc2", "generate.2"), ("fc3", "skip.0"),
        ("fc4", "skip.2"),
    ):  # fmt: skip
        for end in ("weight", "bias"):
            mine = weights[f"{CLASSIFIER}projection.{ours}.{end}"]
            assert mine is state[f"{CLASSIFIER}{theirs}.{end}"]


def test_counts_that_are_no_squares_are_none():
    state = released("COCO_OVD_RKD_PIS_WeightTransfer")
    state[PREDICTOR + "freq_weight"] = torch.rand(80)
    assert from_object_centric_ovd(state).image_counts is None
    del state[PREDICTOR + "freq_weight"]
    assert from_object_centric_ovd(state).image_counts is None


def drop(key):
    def damage(state):
        del state[key]

    return damage


def reshape(key, *shape):
    def damage(state):
        state[key] = torch.zeros(shape)

    return damage


DAMAGES = {
    "zs_weight is missing": drop(CLASSIFIER + "zs_weight"),
    r"cls_score\.linear\.bias is missing": drop(CLASSIFIER + "linear.bias"),
    r"cls_score\.fc4\.weight is missing": drop(CLASSIFIER + "fc4.weight"),
    r"res4\.5\.conv3\.weight is missing": drop("backbone.res4.5.conv3.weight"),
    r"mask_head\.deconv\.bias belongs|is missing": lambda s: s.update(
        {"roi_heads.mask_head.deconv.bias": torch.zeros(256)}
    ),
    r"cap_head\.weight belongs": reshape(PREDICTOR + "cap_head.weight", 3),
    r"res3\.9\.conv1\.weight belongs": reshape("backbone.res3.9.conv1.weight", 3),
    r"bbox_pred\.2\.weight has shape \(320, 2048\), not \(4, 2048\)": reshape(
        PREDICTOR + "bbox_pred.2.weight", 320, 2048
    ),
    r"linear\.weight has shape \(512, 1024\), not \(512, 2048\)": reshape(
        CLASSIFIER + "linear.weight", 512, 1024
    ),
    r"freq_weight has shape \(65,\), not \(80,\)": reshape(PREDICTOR + "freq_weight", 65),
    "last column of zeros": lambda s: s[CLASSIFIER + "zs_weight"].add_(1),
    r"zs_weight has shape \(512,\)": reshape(CLASSIFIER + "zs_weight", 512),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_named_in_one_sentence(message):
    state = released("COCO_OVD_RKD_PIS_WeightTransfer")
    DAMAGES[message](state)
    with pytest.raises(OVDError, match=message) as caught:
        from_object_centric_ovd(state)
    assert "\n" not in str(caught.value)


def test_what_their_code_has_no_place_for_is_refused_on_the_way_back():
    found = from_object_centric_ovd(released("COCO_OVD_RKD_PIS_WeightTransfer"))
    rows = found.class_embeddings
    learned = {**found.weights, CLASSIFIER + "background": torch.zeros(512)}
    with pytest.raises(OVDError, match="learned background"):
        to_object_centric_ovd(learned, rows)
    branch = {**found.weights, "roi_heads.image_branch.head.fc1.weight": torch.zeros(2, 2)}
    with pytest.raises(OVDError, match="image_branch.*belongs"):
        to_object_centric_ovd(branch, rows)
    with pytest.raises(OVDError, match=r"not \(256, 2048\)"):
        to_object_centric_ovd(found.weights, rows[:, :256])
    with pytest.raises(OVDError, match="image counts of 3 classes"):
        to_object_centric_ovd(found.weights, rows, [1, 2, 3])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "R_50_C4.pth"
    torch.save({"model": released("COCO_OVD_RKD_PIS_WeightTransfer"), "iteration": 9}, path)
    return path


def ovd(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["convert", *map(str, words)])
    return ended.value.code


def test_nothing_is_written_if_one_output_cannot_be(file, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "e.safetensors.json").write_text('["cat"]')
    options = ("--embeddings", tmp_path / "e.safetensors")
    names = ("--vocabulary", tmp_path / "e.safetensors.json")
    before = {path.name for path in tmp_path.iterdir()}
    for words, message in (
        (("--out", tmp_path / "pipe.pth", *options), "no plain file"),
        (("--out", tmp_path / "y.pth", *options, *names), "is an input"),
    ):
        assert ovd("object-centric-ovd", file, *words) == 2
        assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "e.safetensors.json").read_text() == '["cat"]'


def test_files_there_and_back(file, tmp_path, capsys):
    """The embedding file is one that MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS reads."""
    out, table, back = tmp_path / "y.safetensors", tmp_path / "e.safetensors", tmp_path / "b.pth"
    options = ("--embeddings", table, "--vocabulary", "dataset:coco_2017_val")
    assert ovd("object-centric-ovd", file, "--out", out, *options) == 0
    assert "weight_transfer" in capsys.readouterr().out
    rows = load_text_embeddings(table)
    assert (len(rows), rows.dim) == (80, 512)
    assert rows.names[:2] == ("person", "bicycle")
    assert rows.encoder_id.startswith("openai-clip:ViT-B/32")
    theirs = read_state_dict(str(file))
    assert torch.equal(rows.embeddings, theirs[CLASSIFIER + "zs_weight"][:, :-1].T)
    code = ovd("object-centric-ovd", out, "--reverse", "--out", back, "--embeddings", table)
    assert code == 0
    again = read_state_dict(str(back))
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


def test_as_a_process_the_default_name_and_what_is_left_out(file):
    done = warm_processes.run(
        [OVD, "convert", "object-centric-ovd", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    out = file.with_name("R_50_C4_converted.pth")
    assert f"{out}: 285 tensors" in done.stdout
    assert "left out the class embeddings of 80 classes" in done.stdout
    assert len(read_state_dict(str(out))) == 285


BAD_CALLS = {
    "names, but there are 80 class embeddings": (
        "--embeddings", "e.safetensors", "--vocabulary", "cat, dog"),
    "must end in .safetensors": ("--embeddings", "e.npy"),
    "must end in .pth or .safetensors": ("--out", "y.pt", "--embeddings", "e.safetensors"),
    "must differ": ("--out", "R_50_C4.pth"),
    "must differ: nothing": ("--out", "y.safetensors", "--embeddings", "y.safetensors"),
    "needs --embeddings": ("--reverse",),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_exit_2_and_write_nothing(file, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ovd("object-centric-ovd", file, *BAD_CALLS[message]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_files_that_are_no_checkpoints(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    text, listing, code = (tmp_path / n for n in ("a.pth", "b.pth", "c.pth"))
    text.write_text("not weights")
    torch.save([1, 2], listing)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": {"x": Evil()}}, code)
    for path in (text, listing, code, tmp_path / "missing.pth"):
        assert ovd("object-centric-ovd", path) == 2
        assert path.name in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_pickle_needs_trust(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(TRUST_VARIABLE, "0")
    path = tmp_path / "x.pkl"
    state = released("COCO_OVD_RKD_PIS_WeightTransfer")
    content = {"model": {k: v.numpy() for k, v in state.items()}}
    path.write_bytes(pickle.dumps(content))
    assert ovd("object-centric-ovd", path) == 2
    assert "--trust" in capsys.readouterr().err
    assert ovd("object-centric-ovd", path, "--trust") == 0
    assert (tmp_path / "x_converted.pth").is_file()


def test_the_manifest_holds_the_image_counts(file, tmp_path):
    table = tmp_path / "e.safetensors"
    assert ovd("object-centric-ovd", file, "--embeddings", table) == 0
    manifest = json.loads((tmp_path / "e.safetensors.json").read_text())
    state = read_state_dict(str(file))
    expected = state[PREDICTOR + "freq_weight"].square().round().long().tolist()
    assert manifest["image_counts"] == expected and "names" not in manifest
