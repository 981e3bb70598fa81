"""The whole MAVL, its fusion and its merging of boxes against the public code's numbers."""

import pytest
import torch
from small_mavl import (
    GivenMaps,
    as_text,
    below,
    check_gradients,
    close,
    golden,
    load_public,
    mavl_of,
    small_roberta,
    tokens_of,
)

from ovd_d2.checkpoint.mavl import renamed
from ovd_d2.layers.pixel_nms import pixel_nms
from ovd_d2.modeling.fusion import LateFusion
from ovd_d2.modeling.query_merging import QueryMerging, boxes_in_pixels

FUSION, MODEL, BOXES = golden("fusion"), golden("model"), golden("postprocess")


def test_text_encoder():
    arrays = below(FUSION, "text.")
    vocabulary, width, layers, heads, hidden, positions, _, _ = arrays["config"].tolist()
    part = small_roberta(vocabulary, width, layers, heads, hidden, positions).eval()
    weights = below(arrays, "w.")
    weights = {k: v for k, v in weights.items() if "pooler" not in k and "position_ids" not in k}
    part.model.load_state_dict(weights)
    mask = arrays["in.attention_mask"].bool()
    with torch.no_grad():
        found = part(tokens_of(arrays["in.input_ids"], mask))
    close(found[mask], arrays["out.last_hidden_state"][mask])


def test_projection_of_words():
    arrays = below(FUSION, "resizer.")
    part = LateFusion(24, dim=32, layers=1, heads=8, hidden=48).text_projection.eval()
    names = {"fc": "0", "layer_norm": "1"}
    ours = lambda name: f"{names[name.split('.')[0]]}.{name.split('.')[1]}"  # noqa: E731
    part.load_state_dict({ours(k): v for k, v in below(arrays, "w.").items()})
    words = arrays["in"].clone().requires_grad_()
    found = part(words)
    close(found, arrays["out"])
    found.backward(arrays["upstream"])
    close(words.grad, arrays["grad.in"])
    check_gradients(part, {f"grad.w.{ours(k)}": v for k, v in below(arrays, "grad.w.").items()})


@pytest.mark.parametrize("gradients", [True, False])  # torch has a way of its own without
def test_fusion_layers(gradients):
    arrays = below(FUSION, "fusion.")
    hidden = len(arrays["w.layers.0.linear1.bias"])
    part = LateFusion(24, dim=32, layers=3, heads=8, hidden=hidden).eval()
    part.load_state_dict(below(arrays, "w."), strict=False)
    queries = arrays["in.queries"].clone().requires_grad_()
    words = arrays["in.text"].clone().requires_grad_()
    mask = ~arrays["in.text_padding_mask"]
    with torch.set_grad_enabled(gradients):
        found = part.read(queries, words.transpose(0, 1), mask)
    close(found, arrays["out.queries"])
    if not gradients:
        return
    # The gradients in the file are those of the words after each layer too.
    sequence = torch.cat([queries, words.transpose(0, 1)], dim=1)
    total = 0
    for layer, upstream in zip(part.layers, arrays["upstream"]):
        sequence = layer(sequence, src_key_padding_mask=arrays["in.key_padding_mask"])
        total = total + (sequence * upstream.transpose(0, 1)).sum()
    total.backward()
    close(queries.grad, arrays["grad.queries"])
    close(words.grad, arrays["grad.text"])
    check_gradients(part, arrays)


@pytest.fixture(scope="module")
def model():
    maps = [MODEL[f"in.feature{k}"].clone().requires_grad_() for k in range(3)]
    made = mavl_of(GivenMaps(maps), text_backbone=small_roberta(), pairs_at_once=2)
    load_public(made, below(MODEL, "w."))
    return made


def images():
    return [torch.zeros(3, *size) for size in MODEL["in.image_sizes_hw"].tolist()]


def test_model_forward_and_gradients(model):
    model.zero_grad(set_to_none=True)
    image = model.read_images(images())
    close(image.layers[-1], MODEL["mid.decoder_out"])
    close(image.references, MODEL["mid.reference_points"])
    text = model.read_texts(tokens_of(MODEL["in.input_ids"], MODEL["in.attention_mask"]))
    words = model.fusion.text_projection(text.words)
    close(words[text.mask], MODEL["mid.text_memory_resized"].transpose(0, 1)[text.mask])
    layers = model.fusion(image.layers[-1], text.words, text.mask)
    close(layers[[0, 5]], MODEL["mid.fusion_queries_layers_0_5"])
    found = model.predict_queries(image, text)
    close(found["pred_logits"], MODEL["out.pred_logits"])
    close(found["pred_boxes"], MODEL["out.pred_boxes"])
    assert len(found["aux_outputs"]) == 5
    for k, one in enumerate(found["aux_outputs"]):
        logits = one["pred_logits"]
        close(one["pred_boxes"], MODEL["out.aux_pred_boxes"][k])
        close(logits.logsumexp(dim=-1), MODEL["out.aux_logits_logsumexp"][k])
        close(1 - logits.softmax(dim=-1)[..., -1], MODEL["out.aux_scores"][k])
    total = sum((found[k] * MODEL[f"upstream.{k}"]).sum() for k in ("pred_logits", "pred_boxes"))
    total.backward()
    for k, one in enumerate(model.backbone.maps.values()):
        close(one.grad, MODEL[f"grad.feature{k}"])
        one.grad = None
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, wanted in below(MODEL, "grad.").items():
        if not name.startswith("feature"):
            close(gradients[renamed(name)], wanted, name)
    norms = below(MODEL, "gradnorm.")
    assert len(norms) > 150
    for name, wanted in norms.items():
        assert gradients.pop(renamed(name)).norm().item() == pytest.approx(
            wanted.item(), rel=1e-3, abs=1e-5
        ), name
    assert gradients == {}


def test_levels_and_memory(model):
    features = list(model.backbone.maps.values())
    with torch.no_grad():
        maps, paddings = model.levels(features, MODEL["in.image_mask"])
        close(maps[3], MODEL["mid.src3"])
        padding = torch.cat([one.flatten(1) for one in paddings], dim=1)
        assert torch.equal(padding, MODEL["mid.mask"])
        sizes = [tuple(one.shape[-2:]) for one in maps]
        memory = model.transformer.encode(maps, paddings, sizes, padding, MODEL["mid.valid_ratios"])
    close(memory[:, ::8], MODEL["mid.img_memory"])


def test_several_texts_about_one_image(model):
    """Both texts in one pass, the image once; no image meets another's text."""
    texts = [as_text(MODEL[f"single_{k}.in.input_ids"][0].tolist()) for k in "ab"]
    model.backbone.calls = 0
    with torch.no_grad():
        boxes, scores = model.ask(model.read_images([torch.zeros(3, 96, 128)]), texts)
    assert model.backbone.calls == 1
    for k, one in enumerate("ab"):
        close(boxes[0, k], MODEL[f"single_{one}.out.pred_boxes"][0])
        close(scores[0, k], MODEL[f"single_{one}.out.scores"][0])


def test_pairs_are_image_by_image(model):
    """Two images and two texts, in groups of one and of two texts."""
    texts = [as_text(row) for row in MODEL["in.input_ids"].tolist()]
    with torch.no_grad():
        image = model.read_images(images())
        one_by_one = model.ask(image, texts)
        model.pairs_at_once = 4
        together = model.ask(image, texts)
        model.pairs_at_once = 2
    for first, second in zip(one_by_one, together):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    for k in range(2):  # image k with text k is in the file
        close(together[0][k, k], MODEL["out.pred_boxes"][k])
        close(together[1][k, k], MODEL["out.scores"][k])


# Merging of boxes.


def pooled(names):
    arrays = [below(BOXES, f"query{k}.in.") for k in names]
    boxes = torch.cat([one["pred_boxes"] for one in arrays])
    logits = torch.cat([one["pred_logits"] for one in arrays])
    return boxes, 1 - logits.softmax(dim=-1)[..., -1]


SIZE = tuple(BOXES["image_size_wh"].tolist()[::-1])


def test_boxes_of_one_query():
    boxes, scores = pooled(range(6))
    for k in range(6):
        found = boxes_in_pixels(boxes[k], SIZE, whole=True)
        assert torch.equal(found.long(), BOXES[f"query{k}.out.boxes"])
        close(scores[k], BOXES[f"query{k}.out.scores"], tolerance=1e-6)
    wanted = torch.cat([BOXES[f"query{k}.out.boxes"] for k in range(6)])
    assert (wanted < 0).any() and (wanted[:, 2] > SIZE[1]).any()  # some reach beyond the image


def exactly(found, boxes, scores):
    assert torch.equal(found.boxes.long(), boxes)
    assert found.boxes.long().float().equal(found.boxes)
    close(found.scores, scores, tolerance=1e-6)


def test_merging_of_mavl():
    merging = QueryMerging(whole_pixels=True)
    found = merging(*pooled(range(4)), SIZE)
    exactly(found, BOXES["mavl_merge.boxes"], BOXES["mavl_merge.scores"])
    assert found.groups.eq(0).all()


def test_merging_of_object_centric_ovd():
    merging = QueryMerging(whole_pixels=True, boxes_per_query=50)
    boxes, scores = pooled(range(4))
    corners = boxes_in_pixels(boxes, SIZE, whole=True)
    for k in range(4):
        best, rated = merging.best_of_query(corners[k], scores[k])
        assert torch.equal(best.long(), BOXES[f"rkd.query{k}.top50_boxes"])
        close(rated, BOXES[f"rkd.query{k}.top50_scores"], tolerance=1e-6)
    exactly(merging(boxes, scores, SIZE), BOXES["rkd.merged_boxes"], BOXES["rkd.merged_scores"])
    merging.max_detections = 5
    exactly(merging(boxes, scores, SIZE), BOXES["rkd.top5_boxes"], BOXES["rkd.top5_scores"])


@pytest.mark.parametrize("query", [4, 5])
@pytest.mark.parametrize("threshold", ["0.95", "0.0"])
def test_the_best_box_of_a_class(query, threshold):
    merging = QueryMerging(whole_pixels=True, boxes_per_query=1, score_threshold=float(threshold))
    wanted = below(BOXES, f"pis.query{query}.threshold{threshold}.")
    exactly(merging(*pooled([query]), SIZE), wanted["boxes"], wanted["scores"])


@pytest.mark.parametrize("threshold", ["0.3", "0.5", "0.7"])
def test_nms_counts_pixels(threshold):
    boxes, scores = BOXES["nms.in.boxes"], BOXES["nms.in.scores"]
    kept = pixel_nms(boxes, scores, float(threshold))
    assert torch.equal(boxes[kept], BOXES[f"nms.{threshold}.boxes"])
    assert torch.equal(scores[kept], BOXES[f"nms.{threshold}.scores"])


def test_nms_at_the_threshold():
    boxes, scores = BOXES["nms_edge.in.boxes"], BOXES["nms_edge.in.scores"]
    kept = pixel_nms(boxes, scores, 0.5)
    assert torch.equal(boxes[kept], BOXES["nms_edge.out.boxes"])
