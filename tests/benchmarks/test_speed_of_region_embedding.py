"""``ovd speed regions`` on a tiny model: both sides do the same work, and the table says so."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ovd_d2.benchmarks.speed import region_embedding as bench_regions
from ovd_d2.cli.app import main
from ovd_d2.encoders import ImagePreprocessing, ImageTextModel
from ovd_d2.errors import OVDError


@pytest.fixture
def tiny():
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "language"))
    from tiny_clip_models import openai_clip_model

    class Text:
        encoder_id, dim = "tiny@0", 32

    model = openai_clip_model().requires_grad_(False)
    return ImageTextModel(Text(), model.encode_image, ImagePreprocessing(32))


def test_both_sides_embed_the_same(tiny):
    told = []
    result = bench_regions.measure_regions(
        tiny, images=2, regions=5, batch=4, repeats=3, progress=told.append
    )
    assert result.cosine > 0.999
    assert told == ["cpu: from files to embeddings", "cpu: preprocessing alone"]
    for what in ("build", "preprocessing"):
        runs = getattr(result, what)
        assert {side: len(seconds) for side, seconds in runs.items()} == {"ours": 3, "usual": 3}
        assert min(runs["ours"] + runs["usual"]) > 0
    runs = {"ours": [1.0, 2.0, 4.0], "usual": [3.0, 4.0, 20.0]}
    result.build = runs
    assert result.per_second("build", "ours") == 5  # 10 regions in 2 seconds
    assert result.times_faster("build") == 3  # of 3, 2 and 5


def test_a_difference_is_seen(tiny, monkeypatch):
    encode = bench_regions._encode_usually
    monkeypatch.setattr(bench_regions, "_encode_usually", lambda m, r, b: encode(m, r, b.flip(0)))
    result = bench_regions.measure_regions(tiny, images=1, regions=4, repeats=1)
    assert result.cosine < 0.999


def test_numbers_below_one_are_refused(tiny):
    for wrong in ({"images": 0}, {"regions": 0}, {"repeats": 0}, {"batch": -1}):
        with pytest.raises(OVDError, match="have to be 1 or more"):
            bench_regions.measure_regions(tiny, **wrong)


def test_the_model_is_a_vit_b32(monkeypatch):
    from ovd_d2.encoders.openai_clip import import_clip

    seen = {}

    def build(**settings):
        seen.update(settings)
        raise StopIteration

    monkeypatch.setattr(import_clip().model, "CLIP", build)
    with pytest.raises(StopIteration):
        bench_regions.random_vit_b32()
    tower = {key: value for key, value in seen.items() if key.startswith(("vision", "image"))}
    assert tower == {"image_resolution": 224, "vision_layers": 12, "vision_width": 768,
                     "vision_patch_size": 32}  # fmt: skip
    assert seen["embed_dim"] == 512


def bench(capsys, *words):
    with pytest.raises(SystemExit) as exit_info:
        main(["speed", "regions", "--images", "1", "--boxes", "3", "--repeats", "1", *words])
    assert exit_info.value.code == 0
    return capsys.readouterr().out


def test_the_command(tiny, monkeypatch, capsys):
    monkeypatch.setattr(bench_regions, "random_vit_b32", lambda device: tiny)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (facts,) = json.loads(bench(capsys, "--json"))
    assert facts["device"] == "cpu" and facts["batch"] == 32 and facts["cosine"] > 0.999
    assert facts["times_faster"].keys() == {"build", "preprocessing"}
    speeds = facts["regions_per_second"]["build"]
    ratio = speeds["ours"] / speeds["usual"]
    assert facts["times_faster"]["build"] == pytest.approx(ratio)
    text = bench(capsys)
    assert "preprocessing alone" in text and "random ViT-B/32" in text and "least cosine" in text


def test_an_unknown_device_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["speed", "regions", "--device", "abacus"])
    assert exit_info.value.code == 2
    assert "error: --device abacus: " in capsys.readouterr().err
