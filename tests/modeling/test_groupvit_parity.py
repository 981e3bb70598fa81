"""The whole GroupViT against the public code's numbers: texts, images, a training step, and
segmentation by one and by several windows."""

import json

import pytest
import torch
from detectron2.utils.events import EventStorage
from groupvit_names import GOLDEN, below, close, golden
from small_groupvit import small_groupvit, words
from torch.nn.functional import interpolate, normalize

from ovd_d2.checkpoint.groupvit import convert_groupvit_names
from ovd_d2.language import GivenEmbeddings, TextEmbeddings, Vocabulary
from ovd_d2.layers import grouping
from ovd_d2.modeling.group_segmentation import (
    GroupSegmentation,
    WindowSegments,
    segment_of_pixels,
)
from ovd_d2.modeling.meta_arch.groupvit import projector

OUTPUTS, GRADIENTS = 2e-5, 1e-4
TINY, SEGMENTED, SLIDE = (
    golden(name) for name in ("groupvit_tiny", "zero_shot_seg", "slide_tiny")
)  # fmt: skip


class Passed(torch.nn.Module):
    """In the place of preprocessing: pixels that are ready."""

    def __call__(self, images):
        return images

    normalise = __call__


def model_of_ready_pixels(**keywords):
    model = small_groupvit(**keywords)
    model.preprocessing = Passed()
    return model


def test_images_and_texts_have_the_golden_embeddings():
    model = model_of_ready_pixels()
    wanted = below(TINY, "eval.")
    with torch.no_grad():
        found = model.image_encoder(TINY["in.image"])
        close(model.image_projector(found.pooled), wanted["image_x"], OUTPUTS)
        rows = model.image_projector(found.tokens.flatten(0, 1)).unflatten(0, (3, 3))
        close(rows, wanted["image_feat"], OUTPUTS)
        close(model.text.tower(words(TINY["in.text"])), wanted["text_encoder_x"], OUTPUTS)
        texts = model.text(words(TINY["in.text"])).unflatten(0, (3, 3))
    close(texts[:, 0], wanted["text_x"], OUTPUTS)
    close(texts[:, 1:], wanted["text_multi_label_x"], OUTPUTS)
    windows = model.encode_windows(TINY["in.image"])
    close(windows.images, normalize(wanted["image_x"], dim=1), OUTPUTS)
    close(windows.segments, normalize(wanted["image_feat"], dim=2), OUTPUTS)
    other = below(TINY, "eval_48x64.")
    windows = model.encode_windows(TINY["in.image_48x64"])
    close(windows.segments, normalize(other["image_feat"], dim=2), OUTPUTS)


def test_classes_are_the_mean_over_prompts_before_the_norm():
    model = model_of_ready_pixels()
    names = [f"class {k}" for k in range(7)]
    rows = iter(words(TINY["in.class_text"]))
    model.class_embedder.texts = lambda vocabulary: [[next(rows), next(rows)] for _ in names]
    found = model.class_embedder.embed(Vocabulary.from_names(names))
    close(found.embeddings, TINY["eval.class_text_embedding"], OUTPUTS)
    model.class_embedder = GivenEmbeddings(found)
    model.set_vocabulary(names)
    outputs = model([{"image": image, "label": 0} for image in TINY["in.image"]])
    logits = torch.stack([output["logits"] for output in outputs]) / model.logit_scale.exp()
    close(logits, TINY["eval.zero_shot_logits"], OUTPUTS)


def test_a_training_step_gives_the_golden_losses_and_gradients(monkeypatch):
    noise = [TINY[f"in.gumbel_noise_stage{stage}"][:, 0] for stage in (1, 2)]
    monkeypatch.setattr(grouping, "gumbel_noise", lambda like: noise.pop(0))
    model = model_of_ready_pixels().train()
    texts = words(TINY["in.text"])
    batch = [
        {"image": image, "caption": texts[3 * i], "prompted_nouns": texts[3 * i + 1 : 3 * i + 3]}
        for i, image in enumerate(TINY["in.image"])
    ]
    with EventStorage():
        losses = model(batch)
    close(losses["loss_contrastive"], TINY["train.loss"], OUTPUTS)
    close(losses["loss_multi_label"], TINY["train.multi_label_loss"], OUTPUTS)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: value for name, value in model.named_buffers() if "running" in name or
               "batches" in name}  # fmt: skip
    theirs = convert_groupvit_names({**gradients, **buffers}, "nvlabs").weights
    for name, value in below(TINY, "train.grad.").items():
        close(theirs[name], value, GRADIENTS, name)
    for name, value in below(TINY, "train.after.").items():
        close(theirs[name], value, GRADIENTS, name)
    # Where the mathematical gradient is 0 both have rounding alone.
    norms = dict(zip(TINY["train.gradnorm_names"].tolist(), TINY["train.gradnorm"].tolist()))
    assert set(norms) <= set(theirs)
    for name, norm in norms.items():
        assert theirs[name].norm().item() == pytest.approx(norm, rel=GRADIENTS, abs=1e-4), name


def segmentation_of(case):
    arrays = below(SEGMENTED, f"{case}.")
    part = GroupSegmentation(background_threshold=float(arrays["cfg.bg_thresh"]))
    height, width = arrays["cfg.image_hw"].tolist()
    maps = arrays["in.attn_soft2"][:, 0] @ arrays["in.attn_soft1"][:, 0]
    found = WindowSegments(
        normalize(arrays["in.image_x"], dim=1),
        normalize(arrays["in.image_feat"], dim=2),
        maps.unflatten(2, (height // 8, width // 8)),
    )
    scale = arrays["cfg.log_logit_scale"].exp().clamp(max=100)
    background = 0 if arrays["cfg.with_bg"] else None
    return arrays, part, found, (height, width), scale, background


@pytest.mark.parametrize("case", ["bg95", "bg35", "nobg", "few", "weak"])
def test_segmentation_of_one_window(case):
    arrays, part, found, size, scale, background = segmentation_of(case)
    classes = normalize(arrays["in.text_embedding"], dim=1)
    maps = interpolate(found.maps, size, mode="bilinear")[0].permute(1, 2, 0)
    close(maps, arrays["attn_map2"], OUTPUTS)
    assert torch.equal(segment_of_pixels(found.maps, size)[0], arrays["group_of_pixel"])
    table = part.scores_of_segments(found, classes, scale, None)[0]
    close(table, arrays["group_class_prob"], OUTPUTS)
    if background is not None:
        threshold = min(float(arrays["cfg.bg_thresh"]), table.max().item())
        assert threshold == pytest.approx(arrays["effective_thresh"].item(), rel=1e-5)
    image = torch.zeros(3, *size)
    asked = []
    encode = lambda pixels: asked.append(pixels.shape) or found  # noqa: E731
    scores = part(encode, image, classes, scale, size, background)
    assert asked == [(1, 3, *size)]
    close(scores, arrays["pred_logits"], OUTPUTS)
    assert torch.equal(scores.argmax(dim=0), arrays["label"])
    original = tuple(arrays["whole.label_at_ori_shape"].shape)
    soft = part(encode, image, classes, scale, original, background).softmax(dim=0)
    close(soft, arrays["whole.softmax_at_ori_shape"], OUTPUTS)
    wrong = (soft.argmax(dim=0) != arrays["whole.label_at_ori_shape"]).float().mean()
    assert wrong <= 0.002


def test_maps_are_resized_bilinearly_also_to_odd_sizes():
    maps = SEGMENTED["resize.in"][:, 0].transpose(1, 2)
    for size, grid in (((33, 50), (4, 6)), ((50, 33), (6, 4))):
        found = interpolate(maps.unflatten(2, grid), size, mode="bilinear")
        wanted = SEGMENTED[f"resize.out_{size[0]}x{size[1]}"][0, 0].permute(2, 0, 1)[None]
        close(found, wanted, OUTPUTS)
        assert torch.equal(segment_of_pixels(maps.unflatten(2, grid), size), wanted.argmax(dim=1))


@pytest.mark.parametrize("case", ["bg", "nobg"])
def test_sliding_windows(case):
    wanted = below(SLIDE, f"{case}.")
    threshold = float(wanted["cfg.bg_thresh"])
    crop, stride = int(SLIDE["cfg.crop"]), int(SLIDE["cfg.stride"])
    part = GroupSegmentation(window=crop, stride=stride, background_threshold=threshold)
    model = model_of_ready_pixels(segmentation=part)
    model.logit_scale.data.copy_(SLIDE["cfg.log_logit_scale"])
    names = [f"class {k}" for k in range(8)]
    rows = normalize(SLIDE["in.text_embedding"], dim=1)
    if case == "bg":
        names, rows = ["background", *names], torch.cat([torch.ones(1, 16), rows])
    model.class_embedder = GivenEmbeddings(TextEmbeddings(rows, tuple(names), "golden"))
    model.set_vocabulary(names)
    image, encoded = SLIDE["in.image"][0], []
    model.image_encoder.register_forward_pre_hook(lambda _, given: encoded.append(given[0]))
    height, width = SLIDE["cfg.ori_shape"].tolist()
    found = model([{"image": image, "height": height, "width": width}])[0]["sem_seg"]
    assert sum(map(len, encoded)) == int(wanted["n_windows"])  # once per window
    close(found.softmax(dim=0).amax(dim=0), wanted["softmax_max"], OUTPUTS)
    assert (found.argmax(dim=0) != wanted["label"]).float().mean() <= 0.002
    found = model([{"image": image}])[0]["sem_seg"]
    close(found, wanted["logits_before_resize"], OUTPUTS)
    for name, (y, x) in (("window0", (0, 0)), ("window_last", (16, 48))):
        one = model([{"image": image[:, y : y + crop, x : x + crop]}])[0]["sem_seg"]
        close(one, wanted[f"{name}.pred_logits"], OUTPUTS)


def test_a_projector_gives_the_golden_numbers():
    """Tokens are normed together with the batch."""
    arrays = below(golden("contrastive"), "proj.")
    weights = below(arrays, "w.")
    names = {"0": "linear_hidden.0", "1": "linear_hidden.1", "3": "linear_out"}
    part = projector(24, hidden=40, dim=16, norm=torch.nn.BatchNorm1d)
    part.load_state_dict({
        key: weights[f"{names[key.split('.')[0]]}.{key.split('.')[1]}"].reshape(value.shape)
        for key, value in part.state_dict().items()
    })  # fmt: skip
    part.eval()
    tokens = arrays["in.x3"].flatten(0, 1)
    close(part(arrays["in.x2"]), arrays["eval.x2"], OUTPUTS)
    close(part(tokens), arrays["eval.x3"].flatten(0, 1), OUTPUTS)
    start = {key: value.clone() for key, value in part.state_dict().items()}
    rows = arrays["in.x2"].clone().requires_grad_()
    found = part.train()(rows)
    found.backward(arrays["in.upstream"])
    close(found, arrays["train.x2"], OUTPUTS)
    close(rows.grad, arrays["train.grad_x2"], GRADIENTS)
    for name in ("running_mean", "running_var"):
        close(
            part.state_dict()[f"1.{name}"], arrays[f"train.after.linear_hidden.1.{name}"], OUTPUTS
        )
    part.load_state_dict(start)
    close(part(tokens), arrays["train.x3"].flatten(0, 1), OUTPUTS)


def test_tokens_are_the_public_codes():
    from clip import tokenize

    texts = json.loads((GOLDEN / "text_processing.json").read_text())["tokens"]
    for text, wanted in texts.items():
        text = "dog " * 90 if text.startswith("dog repeated 90 times") else text
        found = tokenize([text], truncate=True)[0].tolist()
        ids = wanted["ids_up_to_end"]
        assert found == ids + [0] * (77 - len(ids)), text
