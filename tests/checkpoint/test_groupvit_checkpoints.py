"""GroupViT's checkpoints: every key in every naming, and files that hold objects."""

import json
import os
import sys
from logging import FileHandler
from pathlib import Path

import pytest
import torch
import warm_processes
from omegaconf import OmegaConf

from ovd_d2.checkpoint import convert_groupvit_names, load_weights, read_with_inert_objects
from ovd_d2.checkpoint.inert_objects import CLASSES_OF_SETTINGS, Inert, plain_settings
from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.jobs.convert_groupvit import convert_groupvit

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "modeling"))

from groupvit_names import below, golden  # noqa: E402
from small_groupvit import small_groupvit  # noqa: E402

KEYS = json.loads((TESTS / "golden/groupvit/groupvit_state_dict_keys.json").read_text())
YFCC, REDCAPS = KEYS["models"]  # the files' names are in the keys
COUNTS = {YFCC: 407, REDCAPS: 406}
SHAPE = {
    "IMAGE_SIZE": 224, "PATCH": 16, "WIDTH": 384, "DEPTHS": [6, 3, 3], "GROUP_TOKENS": [64, 8, 0],
    "OUTPUT_GROUPS": [64, 8], "TEXT.WIDTH": 256, "TEXT.LAYERS": 12, "TEXT.CONTEXT": 77,
    "EMBED_DIM": 256, "PROJECTOR_HIDDEN": 4096,
}  # fmt: skip


def released(name):
    """Names and shapes of a model of theirs, without numbers."""
    shapes = dict(KEYS["models"][YFCC]["keys"])
    if name == REDCAPS:
        del shapes["multi_label_logit_scale"]
    return {
        key: torch.empty(shape, device="meta", dtype=torch.int64 if "num_batches" in key else None)
        for key, shape in shapes.items()
    }


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("name", COUNTS)
def test_every_key_of_the_released_models_goes_there_and_back(name):
    theirs = released(name)
    assert len(theirs) == COUNTS[name]
    found = convert_groupvit_names({f"module.{k}": v for k, v in theirs.items()}, "ours")
    assert found.naming == "nvlabs" and found.left_out == ()
    form = "soft_targets" if name == YFCC else ""
    assert found.shape == {**SHAPE, "MULTI_LABEL_LOSS": form}
    back = convert_groupvit_names(found.weights, "nvlabs")
    assert back.naming == "ours" and shapes_of(back.weights) == shapes_of(theirs)
    assert back.shape == found.shape


def test_transformers_names_are_those_of_the_list():
    theirs, names = released(YFCC), KEYS["hf_key_map"]["map"]
    found = convert_groupvit_names(theirs, "transformers")
    assert set(found.weights) == {name for others in names.values() for name in others}
    assert len(found.weights) == KEYS["hf_n_keys"]
    assert found.left_out == ("multi_label_logit_scale",)
    for name, others in names.items():
        shape = list(theirs[name].shape)
        for other in others:
            wanted = [shape[0] // len(others), *shape[1:]] if len(others) > 1 else shape
            if name.endswith(("linear_out.weight", "linear_hidden.0.weight")):
                wanted = shape[:2]
            assert list(found.weights[other].shape) == wanted, other
    ids = {f"{part}_model.embeddings.position_ids": torch.zeros(1) for part in ("text", "vision")}
    again = convert_groupvit_names({**found.weights, **ids}, "nvlabs")
    assert again.naming == "transformers" and again.left_out == tuple(ids)
    assert set(again.weights) == set(released(REDCAPS))


@pytest.mark.parametrize("name", COUNTS)
def test_the_yamls_build_the_released_models(name):
    from detectron2.modeling import build_model

    found = convert_groupvit_names(released(name), "ours")
    yaml = {YFCC: "groupvit_gcc_yfcc", REDCAPS: "groupvit_gcc_redcaps"}[name]
    cfg = load_config(str(TESTS.parent / f"configs/groupvit/{yaml}.yaml"), ["MODEL.DEVICE", "cpu"])
    keys = cfg.MODEL.GROUPVIT
    told = {key: keys[key] for key in found.shape if "." not in key}
    assert told == {key: value for key, value in found.shape.items() if "." not in key}
    model = build_model(cfg)
    assert shapes_of(model.state_dict()) == shapes_of(found.weights)
    assert sum(p.numel() for p in model.parameters()) == KEYS["models"][name]["n_params"]


def test_decay_is_the_public_codes():
    """By the two pre-training yamls; all that is fused in ours decays or not together in theirs."""
    from ovd_d2.engine.optimizer import build_optimizer

    cfg = load_config(str(TESTS.parent / "configs/groupvit/groupvit_gcc_yfcc.yaml"))
    model = small_groupvit(weights=False)
    groups = build_optimizer(cfg, model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    ours = {name: torch.full_like(p, decay[id(p)]) for name, p in model.named_parameters()}
    ours |= {name: value for name, value in model.state_dict().items() if name not in ours}
    theirs = convert_groupvit_names(ours, "nvlabs").weights
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in theirs.items():
        if name.endswith(statistics):
            continue
        decays = not (value.ndim == 1 or name.endswith(".bias"))
        assert torch.equal(value, torch.full_like(value, 0.05 if decays else 0.0)), name
    unusual = [name for name in KEYS["models"][YFCC]["decayed_unusual"] if name in theirs]
    assert len(unusual) >= 8 and all(theirs[name].max() > 0 for name in unusual)


def saved_with_objects(path):
    """As NVlabs' trainer saves: an OmegaConf configuration beside the weights."""
    theirs = below(golden("groupvit_tiny"), "w.")
    settings = OmegaConf.create(
        {"model": {"img_encoder": {"num_heads": 3, "depths": [2, 1, 1], "x": None},
                   "kind": "${model_name}"}, "model_name": "GroupViT"}
    )  # fmt: skip
    torch.save({"model": theirs, "config": settings, "epoch": 3, "metrics": {"a": 1.0}}, path)


def test_a_file_with_objects_is_read_and_nothing_of_it_is_run(tmp_path):
    path = tmp_path / "theirs.pth"
    saved_with_objects(path)
    content = read_with_inert_objects(str(path), CLASSES_OF_SETTINGS)
    assert isinstance(content["config"], Inert) and content["epoch"] == 3
    settings = plain_settings(content["config"])
    assert settings["model"] == {
        "img_encoder": {"num_heads": 3, "depths": [2, 1, 1], "x": None}, "kind": "${model_name}"
    }  # fmt: skip
    done = convert_groupvit(path, tmp_path / "ours.pth")
    assert any("HEADS 3" in fact and "DEPTHS [2, 1, 1]" in fact for fact in done.facts)
    assert any("non-commercial" in fact for fact in done.facts)


class Evil:
    def __init__(self, function, path):
        self.call = function, (path,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, Path.touch, FileHandler, exec])
def test_code_in_a_file_does_not_run(function, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "evil.pth"
    argument = {Path.touch: ran, exec: f"open({str(ran)!r}, 'w')"}.get(function, str(ran))
    torch.save({"model": {"w": torch.ones(1)}, "config": Evil(function, argument)}, path)
    with pytest.raises(OVDError, match="not a file of tensors"):
        convert_groupvit(path, tmp_path / "out.pth")
    assert not ran.exists() and not (tmp_path / "out.pth").exists()
    if function in (FileHandler, exec):  # others torch names itself as never to be allowed
        name = f"{function.__module__}.{function.__name__}"
        for of in ([name], [f"{function.__module__}."]):
            assert isinstance(read_with_inert_objects(str(path), of)["config"], Inert)
        assert not ran.exists()


@pytest.mark.parametrize("naming", ["nvlabs", "transformers"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_model_there_and_back_is_the_same(naming, suffix, tmp_path):
    first = small_groupvit()
    paths = [tmp_path / f"{name}.{suffix}" for name in ("ours", "theirs", "again")]
    torch.save({"model": first.state_dict()}, tmp_path / "ours.pth")
    convert_groupvit(tmp_path / "ours.pth", paths[1], naming)
    done = convert_groupvit(paths[1], paths[2])
    assert any("released models have 6" in fact for fact in done.facts)
    state = read_with_inert_objects(str(paths[2]), ())
    state = state.get("model", state)
    other = small_groupvit(weights=False, multi_label_loss="" if naming == "transformers" else
                           "soft_targets")  # fmt: skip
    load_weights(other, state, "again").check_whole()
    for key, value in other.state_dict().items():
        assert torch.equal(value, first.state_dict()[key]), key


def test_strange_keys_and_missing_ones_are_named(tmp_path):
    theirs = released(YFCC)
    with pytest.raises(OVDError, match=r"img_encoder\.extra belongs to no part of GroupViT"):
        convert_groupvit_names({**theirs, "img_encoder.extra": torch.zeros(1)}, "ours")
    del theirs["img_encoder.layers.1.downsample.assign.k_proj.bias"]
    with pytest.raises(OVDError, match=r"assign\.k_proj\.bias is missing \(1 in all"):
        convert_groupvit_names(theirs, "ours")
    with pytest.raises(OVDError, match="no checkpoint of GroupViT"):
        convert_groupvit_names({"weight": torch.zeros(1)}, "ours")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.pth").write_bytes(b"no zip file")
    torch.save({"model": {}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for source, out, to, message in (
        ("none.pth", "out.pth", "ours", "cannot be read"),
        ("empty", "out.pth", "ours", "neither model.safetensors nor"),
        ("broken.pth", "out.pth", "ours", "is not a file of tensors"),
        ("old.pth", "out.pth", "ours", "holds no weights of a model"),
        ("broken.pth", "out.bin", "ours", "must end in .pth or .safetensors"),
        ("broken.pth", "broken.pth", "ours", "is the file that is converted"),
        ("broken.pth", "out.pth", "hf", "--to hf is unknown"),
    ):
        with pytest.raises(OVDError, match=message) as caught:
            convert_groupvit(tmp_path / source, tmp_path / out, to)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command(tmp_path):
    ovd = Path(sys.executable).with_name("ovd")
    saved_with_objects(tmp_path / "theirs.pth")

    def command(*words):
        return warm_processes.run(
            [ovd, "convert", "groupvit", *words], cwd=tmp_path, capture_output=True, text=True,
            timeout=240,
        )  # fmt: skip

    done = command("theirs.pth")
    assert done.returncode == 0, done.stderr
    assert "theirs_converted.pth" in done.stdout and "HEADS 3" in done.stdout
    done = command("theirs_converted.pth", "--to", "transformers", "--out", "hf.safetensors")
    assert done.returncode == 0 and "left out" in done.stdout, done.stderr
    done = command("none.pth")
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
