"""A MAVL as the finder of boxes: small, random, all parts real, beside merging by hand."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from detectron2.modeling import build_model
from PIL import Image
from random_models import (  # noqa: F401  (fixtures)
    checkpoint,
    config,
    make_pixels,
    text_cache,
    text_cache_folder,
)
from tiny_clip_models import openai_clip_model
from torchvision.ops import box_convert

from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.inference.open_detector import to_sample
from ovd_d2.language import Vocabulary
from ovd_d2.proposals.asked_detector import AskedDetector
from ovd_d2.proposals.build import build_label_proposer, build_region_proposer
from ovd_d2.proposals.phrase_grounders import build_phrase_grounder
from ovd_d2.pseudo_labelling import OBJECT_QUERIES, choose_for_label
from ovd_d2.region_store import RegionStore
from ovd_d2.structures import TokenSpans

MINI = Path(__file__).parents[2] / "configs" / "mini"
SIZE = (70, 120)
VOCABULARY = Vocabulary.from_names(["cat", "red_mug", "bow (weapon)"])
OVD = [sys.executable, "-m", "ovd_d2.cli.app"]


def write_model(folder, name="mavl.yaml", *more):
    """Config and weights at random, as a run leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = load_config(
        str(MINI / name),
        ["MODEL.DEVICE", "cpu", "MODEL.TIMM.WEIGHTS", "", "MODEL.TIMM.NAME", "test_efficientnet",
         "MODEL.TIMM.FREEZE_STAGES", "1", "INPUT.MIN_SIZE_TEST", "96", *more],
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.heads.boxes[-1].weight, std=0.2)
    torch.nn.init.normal_(model.heads.classes.weight, std=0.1)
    model.heads.classes.bias.data[-1] = math.log(len(model.heads.classes.bias) - 1)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("mavl"))


@pytest.fixture(scope="module")
def detector(weights):
    return AskedDetector(str(weights))


@pytest.fixture
def calls(detector):
    """How often backbone and text backbone ran."""
    model, counts = detector._model, {"backbone": 0, "text_backbone": 0}
    model._encoded.clear()

    def count(name):
        def hook(*_):
            counts[name] += 1

        return getattr(model, name).register_forward_hook(hook)

    handles = [count(name) for name in counts]
    yield counts
    for handle in handles:
        handle.remove()


def image(seed=0):
    return torch.from_numpy(make_pixels(*SIZE, seed)).permute(2, 0, 1)


def alone(model, cfg, pixels, query):
    """Everything again for one question: (Q, 4) x0 y0 x1 y1 in pixels and (Q,), in any order."""
    sample = to_sample(pixels.permute(1, 2, 0).numpy(), cfg)
    with torch.no_grad():
        text = model.read_texts(model.text_backbone.tokenizer([query]))
        found = model.predict_queries(model.read_images([sample["image"]]), text)
    scores = 1 - found["pred_logits"][0].softmax(dim=-1)[:, -1]
    height, width = pixels.shape[1:]
    corners = box_convert(found["pred_boxes"][0], "cxcywh", "xyxy")
    return corners * torch.tensor([width, height, width, height]), scores


def merged_by_hand(pairs, best=50, threshold=0.5):
    """The best 50 of each question, pooled, less what a better one covers; widths count pixels."""
    rows = []
    for boxes, scores in pairs:
        order = scores.argsort(descending=True)[:best]
        rows += zip(boxes[order].double().tolist(), scores[order].tolist())
    rows.sort(key=lambda row: -row[1])
    kept = []
    for box, score in rows:
        if all(pixel_iou(box, other) <= threshold for other, _ in kept):
            kept.append((box, score))
    return kept


def pixel_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    inside = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return inside / (sum(areas) - inside)


def cut(kept, size=SIZE):
    """The boxes cut to the image, and scores."""
    high = torch.tensor([size[1], size[0], size[1], size[0]])
    boxes = torch.tensor([box for box, _ in kept]).clamp(min=0)
    return boxes.minimum(high).float(), torch.tensor([score for _, score in kept])


def close(found, wanted):
    torch.testing.assert_close(found[1], wanted[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], wanted[0], atol=1e-3, rtol=0)


def test_objects_equal_each_question_by_itself_merged_by_hand(weights, detector, calls):
    proposer = build_region_proposer(f"model:{weights}", [], 300)
    assert proposer.has_scores and proposer.queries == OBJECT_QUERIES
    folder = weights.parent.name
    assert proposer.name.startswith(f"model:{folder}/model_final.pth@")
    assert proposer.name.endswith("'all obscure objects and entities', top 300")
    for seed in (0, 1):
        pairs = [
            alone(detector._model, detector._cfg, image(seed), query) for query in OBJECT_QUERIES
        ]
        wanted = cut(merged_by_hand(pairs))
        (found,) = proposer({}, image(seed))
        assert 5 < len(found[1]) < 200
        close(found, wanted)
    objects = build_label_proposer(f"model:{weights}", None, ())
    close(objects({}, image(1))[0], wanted)
    few = build_region_proposer(f"model:{weights}", [], 3)
    close(few({}, image(1))[0], (wanted[0][:3], wanted[1][:3]))


def test_the_image_once_and_each_question_once(detector, calls):
    pictures = [image(seed) for seed in range(3)]
    queries = detector.class_queries(VOCABULARY)
    assert queries == ["every cat", "every red mug", "every bow (weapon)"]
    for k, picture in enumerate(pictures):
        assert len(detector(picture, queries[: k + 1])) == k + 1
    assert calls == {"backbone": 3, "text_backbone": 3}  # a new question with each image
    detector(pictures[0], queries[::-1])
    assert calls == {"backbone": 4, "text_backbone": 3}
    assert detector(pictures[0], []) == [] and calls["backbone"] == 4
    detector.objects(pictures[0], OBJECT_QUERIES)
    assert calls == {"backbone": 5, "text_backbone": 4}


def test_the_best_box_of_each_label(weights, detector):
    proposer = build_label_proposer(f"model:{weights}", VOCABULARY, (1, 2, 3))
    found = proposer({}, image(), (2, 0))
    for k, one in zip((2, 0), found, strict=True):
        query = f"every {['cat', 'red mug', 'bow (weapon)'][k]}"
        boxes, scores = alone(detector._model, detector._cfg, image(), query)
        best = scores.argmax()
        assert (one[1].diff() <= 0).all() and len(one[1]) == 50
        wanted = cut([(boxes[best].tolist(), scores[best].item())])
        close(choose_for_label(one, SIZE), wanted)
    assert proposer({}, image(), ()) == []


def test_whole_pixels_threshold_and_class_query_are_the_config_s(tmp_path, weights):
    words = ["MODEL.MAVL.WHOLE_PIXELS_TEST", "True", "MODEL.MAVL.SCORE_THRESH_TEST", "0.6",
             "MODEL.MAVL.BOXES_PER_QUERY_TEST", "7", "MODEL.MAVL.CLASS_QUERY", "each {}",
             ]  # fmt: skip
    other = AskedDetector(str(write_model(tmp_path / "run", "mavl.yaml", *words)))
    assert other.class_queries(VOCABULARY)[0] == "each cat"
    ((boxes, scores),) = other(image(), ["every cat"])
    ((_, every),) = AskedDetector(str(weights))(image(), ["every cat"])
    assert 0 < len(scores) == min(7, int((every > 0.6).sum())) < 50 and torch.equal(
        boxes, boxes.trunc()
    )
    boxes, scores = other.objects(image(), OBJECT_QUERIES)
    assert torch.equal(boxes, boxes.trunc()) and (scores > 0.6).all()


def test_a_yaml_of_the_same_name_will_do(tmp_path, weights, detector):
    shutil.copy(weights, tmp_path / "net.pth")
    with pytest.raises(OVDError, match=r"--proposals model:.* needs .*config.yaml"):
        build_region_proposer(f"model:{tmp_path / 'net.pth'}", [], 5)
    shutil.copy(weights.with_name("config.yaml"), tmp_path / "net.yaml")
    other = AskedDetector(str(tmp_path / "net.pth"))
    close(other(image(), ["every cat"])[0], detector(image(), ["every cat"])[0])
    assert "config " not in other.name
    given = build_region_proposer(
        f"model:{weights},config={tmp_path / 'net.yaml'}", [], 5, queries=("every cat",)
    )
    assert ", config net.yaml@" in given.name and given.name.endswith("asked 'every cat', top 5")


def test_without_language(tmp_path):
    path = write_model(tmp_path / "run", "mavl_minus_language.yaml")
    proposer = build_region_proposer(f"model:{path}", [], 5)
    ((boxes, scores),) = proposer({}, image())
    assert proposer.queries == () and "asked" not in proposer.name and 0 < len(boxes) <= 5
    assert (scores.diff() <= 0).all()
    with pytest.raises(OVDError, match="without language .*which reads no --queries"):
        build_region_proposer(f"model:{path}", [], 5, queries=("all objects",))
    with pytest.raises(OVDError, match="without language .*which tells no classes apart"):
        build_label_proposer(f"model:{path}", VOCABULARY, ())


def test_what_does_not_go_together(weights, checkpoint):  # noqa: F811
    with pytest.raises(OVDError, match=r"is a GeneralizedRCNN, which is not asked .*rpn:CHECK"):
        build_region_proposer(f"model:{checkpoint}", [], 5)
    with pytest.raises(OVDError, match=r"is a MAVL, which has no RPN: write model:"):
        build_region_proposer(f"rpn:{weights}", [], 5)
    with pytest.raises(OVDError, match="--queries are for --proposals model:CHECKPOINT"):
        build_region_proposer("gt", [], 5, queries=("all objects",))
    with pytest.raises(OVDError, match="is not asked for objects in words: leave --queries out"):
        build_label_proposer(f"model:{checkpoint}", None, (), queries=("all objects",))


def test_phrases_of_a_caption(weights, tmp_path):
    """The least score lowers MODEL.MAVL's own threshold, as it does for others."""
    words = ("MODEL.MAVL.SCORE_THRESH_TEST", "0.9")
    strict = write_model(tmp_path / "run", "mavl.yaml", *words)
    caption = TokenSpans("a cat beside a red mug", (((2, 5),), ((15, 22),)))
    found, same = (
        build_phrase_grounder(f"model:{path}", 0.0)(image(), caption) for path in (weights, strict)
    )
    assert len(found) == 2 and all(len(scores) > 1 for _, scores in found)
    for one, other in zip(found, same):
        close(one, other)


# As processes.


def ovd(*words, cwd):
    done = warm_processes.run([*OVD, *words], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory, weights):
    """Three images with classes, a tiny encoder, and where a command may write."""
    root = tmp_path_factory.mktemp("work")
    images, annotations = [], []
    (root / "images").mkdir()
    for k in range(1, 4):
        Image.fromarray(make_pixels(*SIZE, k)).save(root / "images" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]})
        for name in range(1, k + 1):
            annotations.append({"id": len(annotations) + 1, "image_id": k, "category_id": name,
                                "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0})  # fmt: skip
    names = [{"id": k, "name": name} for k, name in enumerate(VOCABULARY.names, 1)]
    content = {"images": images, "annotations": annotations, "categories": names}
    (root / "data.json").write_text(json.dumps(content))
    torch.save(openai_clip_model().state_dict(), root / "tiny.pt")
    return root


@pytest.mark.slow
def test_the_commands(work, weights, detector):
    """A region store and both kinds of pseudo-labels; a second run has nothing left to do."""
    (work / "mine.py").write_text(
        "from detectron2.data.datasets import register_coco_instances\n"
        "register_coco_instances('mine', {}, 'data.json', 'images')\n"
    )
    data = "mine.py"
    words = ("regions", "build", "--register", data, "--dataset", "mine", "--topk", "4",
             "--proposals", f"model:{weights}", "--encoder", "openai-clip:tiny.pt",
             "--crops", "1x", "--out", "store")  # fmt: skip
    assert "3 images and 12 regions" in ovd(*words, cwd=work)
    store = RegionStore(work / "store")
    assert "asked 'all objects', 'all entities'" in store.facts.proposals and store.facts.has_scores
    for k in (1, 2, 3):
        pairs = [alone(detector._model, detector._cfg, image(k), one) for one in OBJECT_QUERIES]
        boxes, scores = cut(merged_by_hand(pairs)[:4])
        close((store[k].boxes, store[k].scores), (boxes, scores))
    common = ("--register", data, "--dataset", "mine", "--detector", f"model:{weights}")
    labels = ("pseudo-label", *common, "--labels", "dataset", "--min-score", "0.1")
    assert "6 boxes on 3 images" in ovd(*labels, "--out", "labels.json", cwd=work)
    for one in json.loads((work / "labels.json").read_text())["annotations"]:
        query = detector.class_queries(VOCABULARY)[one["category_id"] - 1]
        boxes, scores = alone(detector._model, detector._cfg, image(one["image_id"]), query)
        wanted, rated = cut([(boxes[scores.argmax()].tolist(), scores.max().item())])
        x, y, width, height = one["bbox"]
        assert np.allclose([x, y, x + width, y + height], wanted[0], atol=0.02)
        assert one["score"] == pytest.approx(rated.item(), abs=1e-4)
    objects = ("pseudo-label", *common, "--boxes", "objects", "--topk", "2",
               "--queries", "all small objects,every cat", "--out", "objects.json")  # fmt: skip
    assert "6 boxes on 3 images" in ovd(*objects, cwd=work)
    info = json.loads((work / "objects.json").read_text())["info"]
    assert info["queries"] == ["all small objects", "every cat"]
