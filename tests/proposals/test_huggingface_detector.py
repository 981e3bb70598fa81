"""Detectors of transformers that are asked in words; tiny ones with random weights."""

import pytest
import torch
from tiny_detectors import save_detr, save_dino, save_omdet, save_owl
from torchvision.ops import box_convert

from ovd_d2.errors import OVDError
from ovd_d2.proposals.huggingface_detector import dino_text, open_huggingface_detector

pytest.importorskip("transformers")
QUERIES = ["every cat", "every red dog", "all objects"]


def save_tasks(folder):
    """Names that differ give boxes of nearly equal scores, whose order is left to chance."""
    return save_omdet(folder, words_differ=False)


@pytest.fixture(scope="module", params=["dino", "owl", "omdet"])
def model_and_folder(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    save = {"dino": save_dino, "owl": save_owl, "omdet": save_tasks}[request.param]
    return request.param, save(folder), folder


def opened(folder, **options):
    return open_huggingface_detector(folder, f"--detector hf:{folder}", queries=True, **options)


def make_image():
    return (torch.rand(3, 48, 80, generator=torch.Generator().manual_seed(0)) * 255).byte()


def test_every_query_gets_its_own_scores_whatever_it_is_batched_with(model_and_folder):
    _, _, folder = model_and_folder
    image = make_image()
    together = opened(str(folder), batch=3)
    assert together.name.startswith("hf:") and "@" in together.name
    found = together(image, QUERIES)
    assert len(found) == 3 and together(image, []) == []
    for batch in (1, 2):
        apart = opened(str(folder), batch=batch)(image, QUERIES)
        for (boxes, scores), (expected, wanted) in zip(apart, found):
            torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=0)
            torch.testing.assert_close(boxes, expected, atol=1e-2, rtol=0)
    alone = [together(image, [query])[0] for query in QUERIES]
    for (_, scores), (_, wanted) in zip(alone, found):
        torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(found[0][1], found[1][1])  # and the queries do differ
    for boxes, scores in found:
        assert boxes.dtype == scores.dtype == torch.float32 and boxes.shape == (len(scores), 4)
        assert (scores.diff() <= 0).all() and scores.min() >= 0 and scores.max() <= 1


def test_against_the_raw_outputs(model_and_folder):
    kind, model, folder = model_and_folder
    image = make_image()
    boxes, scores = opened(str(folder))(image, ["every red dog"])[0]
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    text = "every red dog." if kind == "dino" else [["every red dog"]]
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        raw = model(**inputs)
    logits, relative = (
        (raw.decoder_class_logits, raw.decoder_coord_logits)
        if kind == "omdet"
        else (raw.logits, raw.pred_boxes)
    )
    best = logits[0].sigmoid().amax(dim=1)
    limits = torch.tensor([80.0, 48, 80, 48])
    side = 80.0 if kind == "owl" else limits  # OWLv2 pads to a square
    expected = box_convert(relative[0], "cxcywh", "xyxy") * side
    if kind == "omdet":  # its own way clips
        expected = expected.clamp(min=0).minimum(limits)
    torch.testing.assert_close(scores, best.sort(descending=True).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, expected[best.argsort(descending=True)], atol=1e-2, rtol=0)


def test_objects_without_a_query(model_and_folder):
    """OWLv2 by its own objectness, the others by the word "object"; OmDet-Turbo after its NMS."""
    kind, model, folder = model_and_folder
    detector, image = opened(str(folder)), make_image()
    boxes, scores = detector.objects(image)
    ((_, asked),) = detector(image, ["object"])
    wanted = asked
    if kind == "owl":
        with torch.no_grad():
            wanted = detector._forward(image, text=[["object"]]).objectness_logits[0].sigmoid()
        assert not torch.allclose(wanted.sort().values, asked.sort().values)
    assert boxes.shape == (len(scores), 4) and 0 < len(scores) <= len(wanted)
    if kind != "omdet":
        torch.testing.assert_close(scores.sort().values, wanted.sort().values)
    else:
        assert all((asked - score).abs().min() < 1e-6 for score in scores)


def test_grounding_dino_is_asked_in_its_own_way():
    assert dino_text("every Red  dog") == "every red dog."
    assert dino_text("every dr. pepper.") == "every dr pepper."


def test_what_cannot_be_asked_is_refused(tmp_path):
    save_detr(tmp_path / "detr")
    with pytest.raises(OVDError, match="is a detr, which cannot be asked for words"):
        opened(str(tmp_path / "detr"))
    (tmp_path / "config.json").write_text('{"model_type": "grounding-dino"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(OVDError, match=r"--detector hf:.* cannot be used"):
        opened(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OVDError, match="its model_type is bert, detectors are conditional_detr, "):
        opened(str(tmp_path))
    with pytest.raises(OVDError, match="neither a folder nor a Hugging Face model"):
        opened(str(tmp_path / "nothing"))
