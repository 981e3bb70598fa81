"""open_clip's two sides, and a student that learns from a store that its image side made."""

import json
import sys

import pytest
import torch
from detectron2.data import DatasetCatalog
from test_image_text_model import as_pil, check, photos
from tiny_detector import TRAIN, register, run_trainer, tiny_config, write_dataset
from tiny_open_clip import NAME, open_clip_model  # noqa: F401
from torch.nn.functional import normalize

from ovd_d2.encoders import build_image_text_model, build_text_encoder, text_encoder_id
from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.jobs.build_region_store import BuildSettings, build_region_store
from ovd_d2.region_store import RegionStore


@torch.no_grad()
def test_both_sides_are_the_models_own(open_clip_model):  # noqa: F811
    import open_clip

    spec, reference = open_clip_model
    before = torch.random.get_rng_state()
    model, encoder = build_image_text_model(spec), build_text_encoder(spec)
    assert model.dim == 16 and model.encoder_id.startswith(f"open_clip:{NAME}@")
    assert model.encoder_id == encoder.encoder_id == text_encoder_id(spec)
    assert torch.equal(before, torch.random.get_rng_state())
    images = photos(3, 32, 32)
    pixels = torch.stack([open_clip.image_transform(32, False)(i) for i in as_pil(images)])
    check(model, reference.encode_image(pixels), images)
    texts = ["a photo of a cat", "dog", "word " * 90]
    expected = normalize(reference.encode_text(open_clip.tokenize(texts)), dim=1)
    for side in (model.encode_text, encoder.encode):
        torch.testing.assert_close(side(texts), expected, atol=5e-6, rtol=0)
    assert model.logit_scale == pytest.approx(reference.logit_scale.exp().item())
    assert model.logit_bias == 0


def test_id_follows_the_weights(open_clip_model):  # noqa: F811
    spec, reference = open_clip_model
    path = spec.split(":", 2)[2]
    first = text_encoder_id(spec)
    state = reference.state_dict()
    torch.save({**state, "logit_scale": state["logit_scale"] + 1}, path)
    assert text_encoder_id(spec) != first
    torch.save(state, path)
    assert text_encoder_id(spec) == first


def test_bad_weights_are_one_sentence(open_clip_model, tmp_path):  # noqa: F811
    for build in (build_text_encoder, build_image_text_model, text_encoder_id):
        with pytest.raises(OVDError, match="model 'tiny-test' with weights 'no_such_tag'"):
            build("open_clip:tiny-test:no_such_tag")
        with pytest.raises(OVDError, match="write open_clip:MODEL:TAG_OR_FILE"):
            build("open_clip:ViT-B-32")


def test_missing_package_names_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(OVDError, match="pip install 'open_clip_torch>=3'"):
        build_image_text_model("open_clip:ViT-B-32:laion2b")


def test_store_built_trained_on_and_predicted(open_clip_model, tmp_path, monkeypatch):  # noqa: F811
    spec, _ = open_clip_model
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "cache"))
    write_dataset(tmp_path / "data", count=6)
    register(tmp_path / "data")
    settings = BuildSettings(TRAIN, "gt", spec, tmp_path / "store", crops="1x", device="cpu")
    assert build_region_store(settings).images == 6
    assert RegionStore(tmp_path / "store").facts.encoder_id == text_encoder_id(spec)
    student = (
        "MODEL.ROI_HEADS.NAME", "OpenVocabROIHeads", "MODEL.OPEN_VOCAB.EMBED_DIM", 16,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "MODEL.OPEN_VOCAB.TEXT_ENCODER", spec,
        "MODEL.REGION_DISTILLATION.WEIGHT", 0.5, "DATASETS.REGION_STORE", tmp_path / "store",
        "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 3,
    )  # fmt: skip
    run_trainer(tiny_config(tmp_path / "run", *student))
    lines = [json.loads(s) for s in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert any(line.get("loss_distill_l1", 0) > 0 for line in lines)
    other = tiny_config(tmp_path / "other", *student, "MODEL.OPEN_VOCAB.TEXT_ENCODER", "minilm",
                        "MODEL.OPEN_VOCAB.EMBED_DIM", 384)  # fmt: skip
    with pytest.raises(OVDError, match=f"open_clip:{NAME}@"):
        run_trainer(other)
    cfg = tiny_config(tmp_path / "run", *student)
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    predictor = OpenVocabPredictor(
        tmp_path / "run/config.yaml", tmp_path / "run/model_final.pth", device="cpu",
        vocabulary="red, blue", score_threshold=0.0,
    )  # fmt: skip
    picture = DatasetCatalog.get(TRAIN)[0]["file_name"]
    assert predictor.encoder_id == text_encoder_id(spec)
    assert predictor.predict(picture).pred_classes.max() <= 1
