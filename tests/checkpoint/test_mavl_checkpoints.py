"""MAVL's checkpoints: every key, a file as its training writes it, the released architecture."""

import argparse
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from detectron2.modeling import build_model

from ovd_d2.checkpoint import from_mavl, load_weights, read_state_dict
from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.jobs.convert_mavl import convert_mavl

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "modeling"))

from small_mavl import Words, close, golden, tokens_of  # noqa: E402

from ovd_d2.modeling.text_backbone import HuggingFaceTextBackbone  # noqa: E402

KEYS = json.loads((TESTS / "golden/mavl/state_dict_keys.json").read_text())
YAMLS = {"mdef_detr": "mavl_r101", "mdef_detr_minus_language": "mavl_r101_minus_language"}
COUNTS = {"mdef_detr": 1092, "mdef_detr_minus_language": 816}


def shapes_of(name):
    shapes = KEYS["mdef_detr"]
    if name == "mdef_detr":
        return shapes
    lacks, rows = tuple(KEYS["minus_language"]["lacks"]), KEYS["minus_language"]
    return {
        key: [rows["rows_of_class_embed"], *shape[1:]] if key.startswith("class_embed.") else shape
        for key, shape in shapes.items()
        if not key.startswith(lacks)
    }


def released(name):
    """Names and shapes of a model of theirs, without numbers."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes_of(name).items()}


def roberta_base(cfg):
    """Its shape, without its weights and words, which are on the hub."""
    from transformers import RobertaConfig, RobertaModel

    settings = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )
    return HuggingFaceTextBackbone(model=RobertaModel(settings), tokenizer=Words())


def from_yaml(monkeypatch, name, device):
    monkeypatch.setattr("ovd_d2.modeling.meta_arch.mavl.build_text_backbone", roberta_base)
    file = str(TESTS.parent / f"configs/mavl/{name}.yaml")
    with torch.device(device):
        return build_model(load_config(file, ["MODEL.DEVICE", device]))


@pytest.mark.parametrize("name", YAMLS)
def test_the_yamls_build_the_released_models(monkeypatch, name):
    theirs = released(name)
    assert len(theirs) == COUNTS[name]
    found = from_mavl({f"module.{key}": value for key, value in theirs.items()})
    assert len(found.weights) + len(found.left_out) == len(theirs)
    unread = ("class_embed.", "bbox_embed.", "transformer.text_encoder.")
    assert all(key.startswith(unread) for key in found.left_out)
    model = from_yaml(monkeypatch, YAMLS[name], "meta")
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert ours == {key: value.shape for key, value in found.weights.items()}
    pooler = 768 * 768 + 768 if name == "mdef_detr" else 0
    for kind, chosen in (("all", lambda p: True), ("trainable", lambda p: p.requires_grad)):
        count = sum(p.numel() for p in model.parameters() if chosen(p))
        assert count + pooler == KEYS["parameters"][name][kind]


def test_newer_files_lack_the_position_ids():
    theirs = released("mdef_detr")
    before = from_mavl(theirs)
    del theirs["transformer.text_encoder.embeddings.position_ids"]
    after = from_mavl(theirs)
    assert set(before.weights) == set(after.weights)
    assert len(before.left_out) == len(after.left_out) + 1


def test_strange_keys_missing_ones_and_other_heads_are_named():
    theirs = released("mdef_detr_minus_language")
    for extra in ("transformer.extra.weight", "input_proj.9.0.weight", "class_embed.0.extra"):
        with pytest.raises(OVDError, match="belongs to no part of MAVL: nothing is converted"):
            from_mavl({**theirs, extra: torch.zeros(1)})
    missing = "transformer.decoder.layers.3.norm2.bias"
    with pytest.raises(OVDError, match=r"decoder\.3\.norm2\.bias .* is missing \(1 in all\)"):
        from_mavl({key: value for key, value in theirs.items() if key != missing})
    with pytest.raises(OVDError, match="no checkpoint of MAVL"):
        from_mavl({"query_embed.weight": torch.zeros(3, 4)})
    heads = {"class_embed.0.bias": torch.zeros(2), "class_embed.4.bias": torch.ones(2)}
    with pytest.raises(OVDError, match=r"class_embed\.4\.bias differs from class_embed\.0\.bias"):
        from_mavl({**theirs, **heads})


# A small file as training writes it.


def small_file(path, ema=True):
    """The model without language, with narrow layers and one encoder and decoder layer."""
    narrow = {256: 16, 512: 16, 1024: 16, 2048: 16, 300: 7, 128: 8, 64: 8}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes_of("mdef_detr_minus_language").items():
        if any(f"coder.layers.{k}." in key for k in range(1, 6)):
            continue
        sizes = [narrow.get(n, n) for n in shape]
        if "sampling_offsets" in key or "attention_weights" in key:  # 4 heads, 4 levels, 2 points
            sizes[0] = 64 if "sampling_offsets" in key else 32
        value = torch.randn(sizes, generator=generator)
        first = key.replace(".".join(key.split(".")[:2]), key.split(".")[0] + ".0", 1)
        alias = key.startswith(("class_embed.", "bbox_embed."))
        state[key] = state[first] if alias and first in state else value
    args = argparse.Namespace(nheads=4, lr=1e-4, output_dir=Path("out"), ema=ema)
    averaged = {key: value + 1 for key, value in state.items()} if ema else None
    content = {"model": state, "model_ema": averaged, "optimizer": {"state": {}}, "epoch": 3}
    torch.save({**content, "args": args}, path)
    return state


def test_a_file_of_training_is_read_without_running_it(tmp_path):
    source, out = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    state = small_file(source)
    with pytest.raises(Exception, match="Namespace"):
        torch.load(source, weights_only=True)
    done = convert_mavl(source, out)
    ours = read_state_dict(str(out))
    assert done.entries == len(ours) == len(from_mavl(state).weights)
    query = "transformer.query_embed.weight"
    assert torch.equal(ours[query], state["query_embed.weight"])
    assert "HEADS 4" in done.facts[0] and "POINTS 2" in done.facts[0]
    assert any("--ema" in fact for fact in done.facts)
    convert_mavl(source, tmp_path / "ema.pth", ema=True)
    averaged = read_state_dict(str(tmp_path / "ema.pth"))
    assert torch.equal(averaged[query], state["query_embed.weight"] + 1)
    small_file(source, ema=False)
    with pytest.raises(OVDError, match="holds no averaged weights"):
        convert_mavl(source, tmp_path / "none.pth", ema=True)
    assert not (tmp_path / "none.pth").exists()


def test_other_objects_are_refused(tmp_path):
    torch.save(
        {"model": {}, "args": subprocess.Popen.__new__(subprocess.Popen)}, tmp_path / "a.pth"
    )
    with pytest.raises(OVDError, match="not a file of tensors"):
        convert_mavl(tmp_path / "a.pth", tmp_path / "b.pth")


def test_the_written_config_is_the_recipe(monkeypatch, tmp_path):
    """With the shapes of the released models; numbers do not matter."""
    monkeypatch.setattr(
        "ovd_d2.jobs.convert_mavl.write_state_dict", lambda path, weights: Path(path).touch()
    )
    for name, recipe in YAMLS.items():
        monkeypatch.setattr(
            "ovd_d2.jobs.convert_mavl.read_with_inert_objects", lambda *_: {"model": ""}
        )
        monkeypatch.setattr(
            "ovd_d2.jobs.convert_mavl.state_dict_in", lambda *_, name=name: released(name)
        )
        convert_mavl(tmp_path / "theirs.pth", tmp_path / f"{name}.safetensors")
        written = load_config(str(tmp_path / f"{name}.yaml"))
        wanted = load_config(str(TESTS.parent / f"configs/mavl/{recipe}.yaml"))
        assert Path(written.MODEL.WEIGHTS) == Path(f"{name}.safetensors")
        written.MODEL.WEIGHTS = ""
        assert written.MODEL == wanted.MODEL
        for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
            assert written.INPUT[key] == wanted.INPUT[key]


@pytest.mark.slow
def test_the_command(tmp_path):
    small_file(tmp_path / "theirs.pth")
    ovd = [sys.executable, "-m", "ovd_d2.cli.app", "convert", "mavl"]
    run = lambda *words: warm_processes.run(  # noqa: E731
        [*ovd, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    done = run("theirs.pth", "--ema")
    assert done.returncode == 0, done.stderr
    assert "theirs_converted.safetensors: " in done.stdout and "LANGUAGE False" in done.stdout
    cfg = load_config(str(tmp_path / "theirs_converted.yaml"))
    assert (cfg.MODEL.MAVL.HEADS, cfg.MODEL.MAVL.ENCODER_LAYERS) == (4, 1)
    done = run("theirs.pth", "--out", "theirs.pth")
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1


# The released architecture with numbers.

FULL = golden("full_size")


def made(key, shape):
    """The formula of tests/golden/mavl/README.md."""
    key = (
        key.replace(".".join(key.split(".")[:2]), key.split(".")[0] + ".0", 1)
        if key.startswith(("class_embed.", "bbox_embed."))
        else key
    )
    state = np.random.RandomState((zlib.crc32(key.encode()) + int(FULL["seed"])) % 2**32)
    u = 2 * state.random_sample(int(np.prod(shape))).reshape(shape) - 1
    if key == "query_embed.weight":
        u = 2 * u
    elif key == "transformer.level_embed":
        u = 0.5 * u
    elif len(shape) >= 2:
        u = u * np.sqrt((6 if len(shape) == 4 else 3) / np.prod(shape[1:]))
    elif key.endswith("sampling_offsets.bias"):
        u = 3 * u
    elif key.endswith("running_var"):
        u = 1 + 0.2 * u
    elif key.endswith("weight"):
        u = (1 + 0.2 * u) * (0.3 if key.endswith("bn3.weight") else 1)
    else:
        u = 0.1 * u
    found = torch.from_numpy(u.astype(np.float32))
    if key == "bbox_embed.0.layers.2.weight":
        found = found * 4
    if key == "class_embed.0.bias":
        found[-1] = 5
    return found


@pytest.mark.slow
def test_the_released_architecture_gives_the_golden_numbers(monkeypatch):
    theirs = {
        key: made(key, shape)
        for key, shape in shapes_of("mdef_detr").items()
        if not key.endswith("position_ids")
    }
    for key, value in FULL.items():
        if key.startswith("check.first4."):
            assert torch.equal(theirs[key.removeprefix("check.first4.")].flatten()[:4], value)
    model = from_yaml(monkeypatch, "mavl_r101", "cpu").eval()
    load_weights(model, from_mavl(theirs).weights, "made").check_whole()
    del theirs
    pixels = FULL["in.image_rgb_uint8"].permute(2, 0, 1)
    with torch.no_grad():
        maps = model.backbone(((pixels - model.pixel_mean) / model.pixel_std)[None])
        for k, name in enumerate(("res3", "res4", "res5")):
            close(maps[name].abs().mean(), FULL[f"mid.feature{k}.mean_abs"])
            close(maps[name][0, :6, :2, :2], FULL[f"mid.feature{k}.corner"], tolerance=2e-4)
        image = model.read_images([pixels])
        text = model.read_texts(tokens_of(FULL["in.input_ids"]))
        close(text.words[0, :3], FULL["mid.text_last_hidden_state"])
        close(model.fusion.text_projection(text.words)[0], FULL["mid.text_memory_resized"])
        close(image.references[0], FULL["mid.reference_points"])
        close(image.layers[-1, 0, :4], FULL["mid.decoder_out.first4"])
        found = model.predict_queries(image, text)
    close(found["pred_boxes"][0], FULL["out.pred_boxes"])
    close(found["pred_logits"][0, :20], FULL["out.pred_logits.first20"])
    close(1 - found["pred_logits"].softmax(dim=-1)[0, :, -1], FULL["out.scores"])
