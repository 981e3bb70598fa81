"""The packaged teacher and exported ones: both sides, one id, and no silent change of weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ovd_d2.encoders.registry as schemes
from ovd_d2.encoders import (
    EncoderScheme,
    ImagePreprocessing,
    build_image_text_model,
    build_text_encoder,
    text_encoder_id,
)
from ovd_d2.encoders.exported import export_teacher
from ovd_d2.encoders.image_towers import build_image_tower
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.language import TextEmbeddingBank

WEIGHTS = Path(build_image_tower.__code__.co_filename).parent / "weights"
SETTINGS = {"kind": "timm", "name": "resnet10t", "dim": 6, "image_size": 32}


class Numbers:
    encoder_id, dim = "numbers@0123456789ab", 6

    def encode(self, texts):
        return nn.functional.normalize(torch.ones(len(texts), 6), dim=1)


@pytest.fixture
def numbers(monkeypatch):
    entry = EncoderScheme(lambda _: Numbers.encoder_id, lambda *_: Numbers(), rest=None)
    monkeypatch.setitem(schemes._SCHEMES, "numbers", entry)


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return build_image_tower(SETTINGS).eval()


@pytest.fixture
def exported(numbers, tower, tmp_path):
    path = tmp_path / "teacher.safetensors"
    export_teacher(
        path, image_tower=tower, settings=SETTINGS, text_encoder=Numbers(),
        preprocessing=ImagePreprocessing(32, (0.5,) * 3, (0.25,) * 3, "squash"),
        text_encoder_spec="numbers", logit_scale=20.0,
    )  # fmt: skip
    return path


def write_facts(path):
    path.with_suffix(".json").write_text(json.dumps({"sha256": file_digest(path)}))


def test_round_trip(exported, tower):
    model = build_image_text_model(f"exported:{exported}")
    assert model.dim == 6 and model.preprocessing.resize == "squash"
    images = torch.randint(0, 256, (3, 3, 40, 20), dtype=torch.uint8)
    with torch.no_grad():
        expected = nn.functional.normalize(tower(model.preprocessing(images)), dim=1)
    torch.testing.assert_close(model.encode_image(images), expected, atol=3e-3, rtol=0)  # fp16
    torch.testing.assert_close(model.encode_text(["a"]), Numbers().encode(["a"]))


def test_one_id_for_both_sides_and_none_of_the_locked_encoder(exported):
    spec = f"exported:{exported}"
    ids = {text_encoder_id(spec), build_text_encoder(spec).encoder_id}
    ids |= {build_image_text_model(spec).encoder_id}
    assert ids == {f"mini-teacher@{file_digest(exported)[:12]}"}


def test_a_changed_file_is_refused_by_its_facts(exported):
    write_facts(exported)
    build_image_text_model(f"exported:{exported}")
    content = bytearray(exported.read_bytes())
    content[-7] ^= 1
    exported.write_bytes(content)
    for build in (build_image_text_model, build_text_encoder, text_encoder_id):
        with pytest.raises(OVDError, match="other sha256"):
            build(f"exported:{exported}")


def test_an_export_replaces_old_facts(exported, tower, numbers):
    write_facts(exported)
    export_teacher(
        exported, image_tower=tower, settings=SETTINGS, text_encoder=Numbers(),
        preprocessing=ImagePreprocessing(32), text_encoder_spec="numbers", logit_scale=21.0,
    )  # fmt: skip
    build_image_text_model(f"exported:{exported}")


def test_facts_that_cannot_be_read(exported):
    for content in ("{", "[]", "{}"):
        exported.with_suffix(".json").write_text(content)
        with pytest.raises(OVDError, match=r"teacher\.json is damaged"):
            text_encoder_id(f"exported:{exported}")


def rewritten(path, change):
    """Writes the file again with ``change(tensors, header)``."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, header = load_file(path), json.loads(metadata["teacher"])
    change(tensors, header)
    save_file(tensors, path, {"teacher": json.dumps(header)})


DAMAGES = {
    "weight gone": (lambda t, h: t.pop("projection.weight"), "no usable image tower"),
    "weight of another shape": (
        lambda t, h: t.update({"projection.weight": torch.zeros(2, 2)}), "no usable image tower"),
    "another kind": (lambda t, h: h["image_tower"].update(kind="x"), "unknown image tower"),
    "preprocessing": (lambda t, h: h["preprocessing"].pop("mean"), "no usable image tower"),
    "preprocessing of another version": (
        lambda t, h: h["preprocessing"].update(colour=1), "no usable image tower"),
    "another text encoder": (
        lambda t, h: h.update(text_encoder_id="numbers@ffffffffffff"), "was trained in the space"),
    "format": (lambda t, h: h.update(format=2), "holds no teacher"),
    "entries": (lambda t, h: h.pop("text_encoder"), "holds no teacher"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(exported, damage):
    change, message = DAMAGES[damage]
    rewritten(exported, change)
    with pytest.raises(OVDError, match=message):
        build_image_text_model(f"exported:{exported}")


def test_no_teacher_file(numbers, tmp_path):
    with pytest.raises(OVDError, match="do not exist; name a file"):
        build_image_text_model(f"exported:{tmp_path}/none.safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"hello")
    with pytest.raises(OVDError, match="holds no teacher"):
        build_text_encoder(f"exported:{path}")
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(OVDError, match="holds no teacher"):
        build_image_text_model(f"exported:{path}")


def test_other_suffix_is_refused(tower, tmp_path):
    with pytest.raises(OVDError, match=r"written as \.safetensors"):
        export_teacher(
            tmp_path / "x.pth", image_tower=tower, settings=SETTINGS, text_encoder=Numbers(),
            preprocessing=ImagePreprocessing(32), text_encoder_spec="numbers", logit_scale=1.0,
        )  # fmt: skip


def test_packaged_teacher_is_what_its_facts_say():
    facts = json.loads((WEIGHTS / "mini_teacher.json").read_text())
    path = WEIGHTS / "mini_teacher.safetensors"
    assert facts["sha256"] == file_digest(path) and facts["bytes"] == path.stat().st_size < 9e6
    model = build_image_text_model("mini-teacher")
    text = build_text_encoder("mini-teacher")
    assert model.encoder_id == text.encoder_id == facts["encoder_id"]
    assert (model.dim, model.preprocessing.image_size) == (384, 64)
    assert facts["text_encoder"] == text_encoder_id("minilm")
    sentences = ["an owl", "a teapot"]
    assert torch.equal(text.encode(sentences), build_text_encoder("minilm").encode(sentences))
    for key in (
        "training",
        "zero_shot_in_percent",
        "licence_of_the_data",
        "licence_of_the_weights_before",
    ):
        assert facts[key], key


def test_packaged_teacher_that_was_tampered_with(tmp_path, monkeypatch):
    from ovd_d2.encoders import exported

    for name in ("mini_teacher.safetensors", "mini_teacher.json"):
        shutil.copy(WEIGHTS / name, tmp_path)
    path = tmp_path / "mini_teacher.safetensors"
    monkeypatch.setattr(exported, "_PACKAGED", path)
    build_text_encoder("mini-teacher")
    rewritten(path, lambda t, h: t["projection.weight"].mul_(1.001))
    with pytest.raises(OVDError, match="other sha256"):
        build_image_text_model("mini-teacher")
    path.with_suffix(".json").unlink()
    with pytest.raises(OVDError, match=r"mini_teacher\.json is missing"):
        build_image_text_model("mini-teacher")


def test_packaged_teacher_names_objects_of_an_unseen_style(mini_root):
    from ovd_d2.evaluation.labelled_crops import (
        LabelledCrops,
        encode_crops,
        load_labelled_crops,
        name_crops,
    )

    everything = load_labelled_crops("mini_v1_objects_val")
    crops = LabelledCrops(
        "sample", everything.records[::20], everything.vocabulary, everything.is_novel
    )
    model = build_image_text_model("mini-teacher")
    embeddings = encode_crops(model.encode_pixels, model.preprocessing, crops)
    metrics = name_crops(embeddings, crops, TextEmbeddingBank(model.text_encoder, "name", True))
    assert metrics["top1"] > 40 and metrics["top1_novel"] > 30  # chance: 0.6
