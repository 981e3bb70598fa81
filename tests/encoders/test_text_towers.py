"""Text towers that are trained: encoders read by transformers."""

import pytest
import torch
from tiny_clip_models import save_hf_bert, save_hf_clip, save_hf_siglip

from ovd_d2.encoders import build_text_encoder
from ovd_d2.encoders.text_towers import build_text_tower

TEXTS = ["a photo of the cat", "red mug", "dog"]


def tower_of(folder):
    return build_text_tower(
        f"trained:hf:{folder}", 8, width=0, heads=0, layers=0, context=16, cut=True
    )


@pytest.mark.parametrize(
    "save, folder_has_image_side",
    [
        (save_hf_clip, True),
        (lambda folder: save_hf_clip(folder, text_only=True), False),
        (save_hf_siglip, True),
        (save_hf_bert, False),
    ],
    ids=["clip", "clip_text", "siglip", "bert"],
)
def test_a_trained_tower_is_the_text_side_alone(tmp_path, save, folder_has_image_side):
    whole = save(tmp_path)
    assert any("vision" in name for name, _ in whole.named_parameters()) == folder_has_image_side
    tower = tower_of(tmp_path)
    names = set(dict(tower.named_parameters()))
    assert not any("vision" in n or "visual" in n or "logit" in n or "pooler" in n for n in names)
    assert names == set(tower.state_dict())
    assert sum("layers.1." in name or "layer.1." in name for name in names) >= 12  # the last block

    features = tower(TEXTS)
    features.square().sum().backward()
    without = [n for n, p in tower.named_parameters() if p.grad is None or not p.requires_grad]
    assert without == []  # DistributedDataParallel would wait for them

    encoder = build_text_encoder(f"hf:{tmp_path}")
    encoder.cut_at(16)
    expected = tower.projection(encoder.features(TEXTS))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_nothing_of_the_model_has_learned_by_looking_for_it(tmp_path):
    whole = save_hf_clip(tmp_path)
    tower = tower_of(tmp_path)
    assert all(p.grad is None for p in tower.parameters())
    for name, parameter in tower.model.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name))
    with torch.no_grad():  # as a model that is only to be evaluated may be built
        assert set(tower_of(tmp_path).state_dict()) == set(tower.state_dict())
