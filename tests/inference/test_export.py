"""Exported models: small, whole, self-sufficient, and refused when damaged."""

import json
import shutil

import pytest
import torch
import yaml
from random_models import NAMES, assert_same, make_pixels, write_checkpoint, write_config

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor, export, packaged_models
from ovd_d2.inference.export import export_model
from ovd_d2.inference.model_folders import MODELS, model_folder, read_facts

PIXELS = make_pixels(120, 160)


def test_the_folder_is_small_and_loads(config, checkpoint, exported):
    names = {path.name for path in exported.iterdir()}
    rows = {"class_embeddings.safetensors", "class_embeddings.safetensors.json"}
    assert names == rows | {"model.safetensors", "config.yaml", "facts.json", "vocabulary.json"}
    whole = sum(v.nbytes for v in torch.load(checkpoint, weights_only=True)["model"].values())
    assert (exported / "model.safetensors").stat().st_size < 0.56 * whole
    original = OpenVocabPredictor(config, checkpoint, device="cpu")
    again = OpenVocabPredictor.from_pretrained(exported, device="cpu")
    assert again.vocabulary == original.vocabulary
    first, second = original.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        if value.dim() < 2 or not value.is_floating_point():
            assert torch.equal(value, second[name]), name
        else:
            torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-6)
    a, b = original.predict(PIXELS), again.predict(PIXELS)
    torch.testing.assert_close(a.scores[:3], b.scores[:3], rtol=0.02, atol=0.005)


def test_the_config_has_nothing_of_the_training(exported):
    text = (exported / "config.yaml").read_text()
    cfg = yaml.safe_load(text)
    assert set(cfg) == {"INPUT", "MODEL", "TEST", "VERSION"}
    assert cfg["MODEL"]["TIMM"] == {"NAME": "test_efficientnet"}  # no ImageNet weights, not frozen
    assert cfg["MODEL"]["OPEN_VOCAB"]["TEXT_ENCODER"] == "hashing"
    assert "VOCABULARY" not in cfg["MODEL"]["OPEN_VOCAB"]
    for word in ("TRAIN", "SOLVER", "DATALOADER", "packaged:", "BATCH_SIZE", "/"):
        assert word not in text


def test_facts(config, checkpoint, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parent, run, ignore=shutil.ignore_patterns("exported"))
    results = {"mini_v1_val": {"bbox": {"AP": 12.5}}}
    lines = [
        {"iteration": 1, "time": 2.0},
        {"iteration": 3, "time": 0.5},
        {"iteration": 9, "time": 9},
    ]
    (run / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"cut')
    (run / "results.json").write_text(json.dumps({"iteration": 4, "results": results}))
    facts = export_model(run / "model_final.pth", config, tmp_path / "out")
    assert facts == read_facts(tmp_path / "out")
    assert facts["iterations"] == 4
    assert facts["train_seconds"] == 2 * 2.0 + 2 * 0.5
    assert facts["results"] == results
    assert facts["classes"] == len(NAMES.split(","))
    assert facts["text_encoder_id"] == "hashing@000000000000"
    # results of another iteration are not this checkpoint's
    (run / "results.json").write_text(json.dumps({"iteration": 8, "results": results}))
    assert export_model(run / "model_final.pth", config, tmp_path / "b")["results"] is None


def test_own_prompts_come_along(checkpoint, tmp_path):
    (tmp_path / "templates.txt").write_text("a drawing of a {}\nthe {}\n")
    path = write_config(tmp_path / "config.yaml")
    text = path.read_text().replace(
        "LOGIT_SCALE", f"PROMPTS: {tmp_path}/templates.txt, LOGIT_SCALE"
    )
    path.write_text(text)
    export_model(checkpoint, path, tmp_path / "out")
    (tmp_path / "templates.txt").unlink()
    predictor = OpenVocabPredictor.from_pretrained(tmp_path / "out", device="cpu")
    assert predictor.model.roi_heads.class_embedder.templates == ("a drawing of a {}", "the {}")
    assert str(tmp_path) not in (tmp_path / "out/config.yaml").read_text()


def test_weights_that_fp16_cannot_hold_stay_fp32(config, checkpoint, tmp_path):
    from safetensors.torch import load_file

    content = torch.load(checkpoint, weights_only=True)
    content["model"]["roi_heads.box_head.fc1.weight"][0, 0] = 1e6
    torch.save(content, tmp_path / "big.pth")
    export_model(tmp_path / "big.pth", config, tmp_path / "out")
    state = load_file(tmp_path / "out/model.safetensors")
    assert state["roi_heads.box_head.fc1.weight"].dtype == torch.float32
    assert state["roi_heads.box_head.fc1.weight"][0, 0] == 1e6
    assert state["roi_heads.box_head.fc2.weight"].dtype == torch.float16


def test_an_interrupted_export_leaves_nothing(config, checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_json", full)
    with pytest.raises(OVDError, match="No space left"):
        export_model(checkpoint, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced(config, checkpoint, exported, tmp_path):
    before = (exported / "model.safetensors").read_bytes()
    with pytest.raises(OVDError, match="exists already"):
        export_model(checkpoint, config, exported)
    assert (exported / "model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    export_model(checkpoint, config, tmp_path / "empty")
    assert (tmp_path / "empty/facts.json").is_file()


def test_names_must_be_known(checkpoint, tmp_path):
    lonely = write_config(tmp_path / "lonely.yaml", names="gone/names.txt")
    with pytest.raises(OVDError, match=r"lonely\.yaml: the names of its classes"):
        export_model(checkpoint, lonely, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_is_found(exported, tmp_path):
    def damaged(name, change):
        folder = tmp_path / name
        shutil.copytree(exported, folder)
        change(folder)
        with pytest.raises(OVDError, match=name) as error:
            OpenVocabPredictor.from_pretrained(folder, device="cpu")
        return str(error.value)

    def flip(folder):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-5] ^= 1
        (folder / "model.safetensors").write_bytes(content)

    assert "is damaged" in damaged("flipped", flip)
    assert "Cannot read" in damaged("headless", lambda f: (f / "model.safetensors").unlink())
    assert "does not exist" in damaged("no_config", lambda f: (f / "config.yaml").unlink())
    assert "facts.json" in damaged("no_facts", lambda f: (f / "facts.json").unlink())
    assert "facts.json" in damaged("bad_facts", lambda f: (f / "facts.json").write_text("[]"))


def test_the_registry(exported, tmp_path, monkeypatch):
    from ovd_d2.inference import model_folders as registry

    monkeypatch.setattr(registry, "MODELS", tmp_path)
    with pytest.raises(OVDError, match=r"no model 'mini' \(packaged: none\)"):
        model_folder("mini")
    shutil.copytree(exported, tmp_path / "mini")
    (tmp_path / "unfinished").mkdir()
    assert packaged_models() == ["mini"]
    assert model_folder("mini") == tmp_path / "mini"
    one = OpenVocabPredictor.from_pretrained("mini", device="cpu", vocabulary="cat")
    assert one.vocabulary.names == ("cat",)
    other = OpenVocabPredictor.from_pretrained(exported, device="cpu", vocabulary="cat")
    assert_same(one.predict(PIXELS), other.predict(PIXELS))
    with pytest.raises(OVDError, match=r"no model 'maxi' \(packaged: mini\)"):
        model_folder("maxi")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in MODELS.glob("*/facts.json")))
def test_every_packaged_model_predicts(name):
    predictor = OpenVocabPredictor.from_pretrained(name, device="cpu")
    assert len(predictor.vocabulary) == read_facts(MODELS / name)["classes"]
    assert predictor.predict(PIXELS).image_size == (120, 160)
    assert (MODELS / name / "model.safetensors").stat().st_size < 20e6


def test_a_checkpoint_of_another_config_is_refused(config, tmp_path):
    other = write_config(tmp_path / "other.yaml", dim=8)
    other.write_text(other.read_text().replace("FC_DIM: 32", "FC_DIM: 16"))
    weights = write_checkpoint(other, tmp_path / "other.pth")
    with pytest.raises(OVDError, match=r"other\.pth: .* has shape"):
        export_model(weights, config, tmp_path / "out")
