"""GroupViT against transformers' own: encoders, projectors, soft maps, and a training step. Its
segmentation follows another rule (the golden numbers are for that)."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from groupvit_names import close, golden
from small_groupvit import small_groupvit, words
from torch.nn.functional import normalize

from ovd_d2.checkpoint import convert_groupvit_names
from ovd_d2.jobs.convert_groupvit import convert_groupvit
from ovd_d2.layers import grouping

TINY = golden("groupvit_tiny")


@pytest.fixture(scope="module")
def theirs():
    """Random weights, those of the norms too."""
    from transformers import GroupViTConfig, GroupViTModel

    config = GroupViTConfig(
        text_config={
            "vocab_size": 60, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 1, "max_position_embeddings": 12, "eos_token_id": 59,
        },
        vision_config={
            "hidden_size": 24, "intermediate_size": 96, "depths": [2, 1, 1],
            "num_hidden_layers": 4, "num_group_tokens": [6, 3, 0], "num_output_groups": [6, 3, 0],
            "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
        },
        projection_dim=16, projection_intermediate_dim=40,
    )  # fmt: skip
    torch.manual_seed(3)
    model = GroupViTModel(config)
    for name, value in model.named_parameters():
        if not name.endswith("logit_scale"):
            value.data = torch.randn_like(value) * value.shape[-1] ** -0.5 + (
                1.0 if "norm" in name and name.endswith("weight") else 0.0
            )
        if "assign.q_proj" in name:
            value.data.mul_(5)
    return model.eval()


@pytest.fixture
def ours(theirs, tmp_path):
    """By their own folder."""
    theirs.save_pretrained(tmp_path)
    done = convert_groupvit(tmp_path, tmp_path / "ours.pth")
    assert any("HEADS 3, TEXT.HEADS 1" in fact for fact in done.facts)
    model = small_groupvit(weights=False, multi_label_loss="")
    model.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True)["model"])
    model.preprocessing = lambda images: images
    return model


def test_both_encoders_agree(ours, theirs):
    images, texts = TINY["in.image"], TINY["in.text"].flatten(0, 1)
    with torch.no_grad():
        wanted = theirs(input_ids=texts, pixel_values=images, output_attentions=True)
        found = ours.image_encoder(images)
    close(found.tokens, wanted.vision_model_output.last_hidden_state, 1e-5)
    close(found.pooled, wanted.vision_model_output.pooler_output, 1e-5)
    for stage, grouped in enumerate(found.groupings):
        soft = wanted.vision_model_output.attentions[stage]
        close(grouped.soft, soft.flatten(0, -3).reshape(grouped.soft.shape), 1e-5)
    windows = ours.encode_windows(images)
    close(windows.images, wanted.image_embeds, 1e-5)
    rows = normalize(ours.text.encode(words(TINY["in.text"])), dim=1)
    close(rows, wanted.text_embeds, 1e-5)
    logits = ours.logit_scale.exp() * windows.images @ rows.T
    close(logits, wanted.logits_per_image, 1e-5)


def test_a_training_step_agrees(ours, theirs, monkeypatch):
    noise = [TINY[f"in.gumbel_noise_stage{stage}"] for stage in (1, 2)]
    mine, other = iter(noise), iter(noise)
    monkeypatch.setattr(grouping, "gumbel_noise", lambda like: next(mine)[:, 0])
    gumbel = torch.distributions.gumbel.Gumbel
    monkeypatch.setattr(gumbel, "sample", lambda self, shape: next(other).reshape(shape))
    texts, images = TINY["in.text"][:, 0], TINY["in.image"]
    batch = [{"image": i, "caption": t} for i, t in zip(images, words(texts))]
    with EventStorage():
        loss = ours.train()(batch)["loss_contrastive"]
    loss.backward()
    theirs.zero_grad()
    wanted = theirs.train()(input_ids=texts, pixel_values=images, return_loss=True).loss
    wanted.backward()
    theirs.eval()
    close(loss, wanted, 1e-5)
    gradients = {n: p.grad for n, p in ours.named_parameters()}
    state = {n: v for n, v in ours.state_dict().items() if n not in gradients}
    found = convert_groupvit_names({**gradients, **state}, "transformers").weights
    largest = max(p.grad.abs().max() for p in theirs.parameters())
    for name, parameter in theirs.named_parameters():
        # Where the mathematical gradient is 0 both have rounding alone.
        floor = 1e-6 * largest.item()
        torch.testing.assert_close(
            found[name], parameter.grad, rtol=1e-3,
            atol=1e-4 * parameter.grad.abs().max().item() + floor, msg=name,
        )  # fmt: skip


def test_ours_goes_back(ours, theirs):
    back = convert_groupvit_names(ours.state_dict(), "transformers").weights
    assert not any(theirs.load_state_dict(back, strict=True))
