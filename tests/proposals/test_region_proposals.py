"""Boxes for region stores: annotations, files, RPNs and detectors of transformers."""

import json
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from tiny_detector import TRAIN, register, tiny_config, write_dataset
from tiny_detectors import save_detr, save_dino, save_owl

from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.errors import OVDError
from ovd_d2.proposals.build import build_region_proposer
from ovd_d2.proposals.proposer import best

IMAGE = torch.zeros(3, 48, 64, dtype=torch.uint8)
RECORDS = [{"image_id": number} for number in (1, 2, 3)]


def annotation(box, mode=BoxMode.XYWH_ABS, **more):
    return {"bbox": box, "bbox_mode": mode, **more}


def test_ground_truth():
    source = build_region_proposer("gt", RECORDS, 2)
    assert not source.has_scores and source.name == "gt, top 2"
    annotations = [
        annotation([1, 2, 3, 4]),
        annotation([0, 0, 9, 9], iscrowd=1),
        annotation([5, 6, 7, 8], BoxMode.XYXY_ABS),
        annotation([0, 0, 1, 1]),
    ]
    ((boxes, scores),) = source({"annotations": annotations}, IMAGE)
    assert boxes.tolist() == [[1, 2, 4, 6], [5, 6, 7, 8]] and scores.tolist() == [1.0, 1.0]
    for empty in ({}, {"annotations": []}):
        assert source(empty, IMAGE)[0][0].shape == (0, 4)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"json:{path}"


def result(image_id, box, **more):
    return {"image_id": image_id, "bbox": box, "category_id": 3, **more}


def test_file_of_results(tmp_path, caplog):
    entries = [
        result(2, [0, 0, 1, 1], score=0.1),
        result(1, [10, 20, 30, 40.5], score=0.2),
        result(2, [5, 5, 0, 2], score=0.9),
        result(2, [1, 1, 1, 1], score=0.5),
        result(99, [1, 1, 1, 1], score=0.5),
    ]
    with caplog.at_level(logging.WARNING):
        source = build_region_proposer(write(tmp_path / "found.json", entries), RECORDS, 2)
    assert "boxes for 1 images that the data set does not have" in caplog.text
    assert source.has_scores and source.name.startswith("json:found.json@")
    ((boxes, scores),) = source({"image_id": 2}, IMAGE)
    assert boxes.tolist() == [[5, 5, 5, 7], [1, 1, 2, 2]]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.5]))
    assert source({"image_id": 1}, IMAGE)[0][0].tolist() == [[10, 20, 40, 60.5]]
    ((boxes, scores),) = source({"image_id": 3}, IMAGE)
    assert boxes.shape == (0, 4) and scores.shape == (0,)
    whole = {"info": {}, "images": [], "annotations": entries}
    same = build_region_proposer(write(tmp_path / "label_file.json", whole), RECORDS, 2)
    assert torch.equal(same({"image_id": 2}, IMAGE)[0][0], source({"image_id": 2}, IMAGE)[0][0])
    other = build_region_proposer(write(tmp_path / "found.json", entries[:-1]), RECORDS, 2)
    assert other.name != source.name  # another file is another source, whatever its name


def test_file_without_scores_keeps_its_order(tmp_path):
    entries = [result("a", [n, 0, 1, 1]) for n in range(3)]
    source = build_region_proposer(write(tmp_path / "p.json", entries), [{"image_id": "a"}], 2)
    ((boxes, scores),) = source({"image_id": "a"}, IMAGE)
    assert not source.has_scores and scores.tolist() == [1.0] * len(boxes)
    assert boxes[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read"),
        ({"images": []}, "must hold a list of results"),
        ({"annotations": {}}, "must hold a list of results"),
        ({"annotations": [3]}, "entry 0 is no result"),
        ([{"image_id": 1}], "entry 0 is no result"),
        ([result(1, [0, 0, 1, 1]), result(1, [0, 0, 1])], "entry 1 is no result"),
        ([result(1, [0, 0, -1, 1])], "entry 0 is no result"),
        ([result(1, [0, 0, 1, "wide"])], "entry 0 is no result"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, NaN]}]', "entry 0 is no result"),
        ([result([1], [0, 0, 1, 1])], "entry 0 is no result"),
        ([3], "entry 0 is no result"),
        ([result(1, [0, 0, 1, 1]), result(1, [0, 0, 1, 1], score=1)], "some of its boxes only"),
        ([result(77, [0, 0, 1, 1])], r"no box for any image .*first image id is 77"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    with pytest.raises(OVDError, match=message) as caught:
        build_region_proposer(write(tmp_path / "broken.json", content), RECORDS, 5)
    assert "broken.json" in str(caught.value)


@pytest.mark.parametrize("spec", ["", "nonsense", "rpn", "rpn:", "edge:boxes", "GT"])
def test_unknown_kinds_are_refused(spec):
    with pytest.raises(OVDError, match=f"--proposals {spec} is unknown"):
        build_region_proposer(spec, RECORDS, 5)


def test_top_zero_is_refused():
    with pytest.raises(OVDError, match="--topk 0"):
        build_region_proposer("gt", RECORDS, 0)


def test_best_keeps_the_order_of_ties():
    boxes, scores = best(torch.arange(12.0).view(3, 4), torch.tensor([0.5, 0.9, 0.5]), 2)
    assert boxes[:, 0].tolist() == [4, 0] and scores.tolist() == pytest.approx([0.9, 0.5])


@pytest.fixture
def run_folder(tmp_path):
    """config.yaml and model_final.pth, as train_net.py leaves them, of a random tiny detector."""
    write_dataset(tmp_path / "data")
    register(tmp_path / "data")
    cfg = tiny_config(tmp_path / "run", "INPUT.FORMAT", "BGR")
    model = OpenVocabTrainer.build_model(cfg).eval()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, tmp_path / "run/model_final.pth")
    return tmp_path / "run", model


def test_rpn_proposals_are_the_detectors_own(run_folder, caplog):
    from detectron2.data import DatasetMapper

    from ovd_d2.data.mappers.detection import read_image

    folder, model = run_folder
    with caplog.at_level(logging.WARNING):
        source = build_region_proposer(f"rpn:{folder / 'model_final.pth'}", RECORDS, 7)
    assert f"was trained on {TRAIN}, which is not known to hold boxes of base" in caplog.text
    assert source.name.startswith("rpn:run/model_final.pth@") and source.has_scores
    model.proposal_generator.post_nms_topk = {True: 7, False: 7}
    mapper = DatasetMapper(tiny_config(folder, "INPUT.FORMAT", "BGR"), is_train=False)
    for record in DatasetCatalog.get(TRAIN)[:2]:  # a portrait and a landscape
        pixels = read_image(record["file_name"], "RGB")
        ((boxes, scores),) = source(record, torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        with torch.no_grad():
            sample = mapper(record)
            images = model.preprocess_image([sample])
            features = model.backbone(images.tensor)
            (expected,), _ = model.proposal_generator(images, features, None)
        scale = torch.tensor(pixels.shape[1::-1]) / torch.tensor(sample["image"].shape[:0:-1])
        torch.testing.assert_close(boxes, expected.proposal_boxes.tensor * scale.repeat(2))
        torch.testing.assert_close(scores, expected.objectness_logits.sigmoid())
        assert 0 < len(boxes) <= 7 and (scores.diff() <= 0).all()


def test_base_only_detectors_bring_no_warning(run_folder, caplog):
    from detectron2.data import MetadataCatalog

    folder, _ = run_folder
    MetadataCatalog.get(TRAIN).set(is_novel=[False, False, True])
    with caplog.at_level(logging.WARNING):
        build_region_proposer(f"rpn:{folder / 'model_final.pth'}", RECORDS, 7)
    assert "novel" not in caplog.text


@pytest.mark.parametrize("missing", ["config.yaml", "model_final.pth"])
def test_an_incomplete_run_is_refused(run_folder, missing):
    folder, _ = run_folder
    (folder / missing).unlink()
    with pytest.raises(OVDError, match=f"needs .*{missing}, which does not exist"):
        build_region_proposer(f"rpn:{folder / 'model_final.pth'}", RECORDS, 7)


def test_weights_of_another_detector_are_refused(run_folder):
    folder, model = run_folder
    weights = model.state_dict()
    weights.pop("proposal_generator.rpn_head.conv.weight")
    torch.save({"model": weights}, folder / "model_final.pth")
    with pytest.raises(OVDError, match=r"lacks 1 of .* such as .*rpn_head\.conv\.weight"):
        build_region_proposer(f"rpn:{folder / 'model_final.pth'}", RECORDS, 7)


@pytest.mark.parametrize("save", [save_detr, save_owl, save_dino])
def test_detectors_of_transformers(tmp_path, save):
    pytest.importorskip("transformers")
    save(tmp_path)
    image = (torch.rand(3, 48, 80) * 255).byte()
    source = build_region_proposer(f"hf:{tmp_path}", RECORDS, 5)
    assert source.has_scores and source.name.startswith("hf:") and "@" in source.name
    ((boxes, scores),) = source({"image_id": 1}, image)
    ((again, _),) = build_region_proposer(f"hf:{tmp_path}", RECORDS, 5)({"image_id": 1}, image)
    assert torch.equal(boxes, again)
    assert boxes.dtype == scores.dtype == torch.float32
    assert 1 <= len(boxes) == len(scores) <= 5
    assert (scores.diff() <= 0).all() and scores.min() >= 0 and scores.max() <= 1
    assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor([80, 48])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_detr_boxes_are_its_queries_in_the_original_frame(tmp_path):
    """Against the raw outputs: relative centres and sizes times the image's size."""
    pytest.importorskip("transformers")
    from torchvision.ops import box_convert, nms
    from transformers import DetrImageProcessor

    model = save_detr(tmp_path)
    image = (torch.rand(3, 48, 80) * 255).byte()
    ((boxes, scores),) = build_region_proposer(f"hf:{tmp_path}", RECORDS, 100)({}, image)
    inputs = DetrImageProcessor.from_pretrained(tmp_path)(images=image, return_tensors="pt")
    with torch.no_grad():
        raw = model(**inputs)
    expected = box_convert(raw.pred_boxes[0], "cxcywh", "xyxy") * torch.tensor([80, 48, 80, 48.0])
    limits = torch.tensor([80, 48, 80, 48.0])
    expected = expected.clamp(min=0).minimum(limits)
    objectness = raw.logits[0].softmax(dim=1)[:, :-1].amax(dim=1)
    kept = nms(expected, objectness, 0.7)
    torch.testing.assert_close(boxes, expected[kept], atol=1e-3, rtol=0)
    torch.testing.assert_close(scores, objectness[kept], atol=1e-5, rtol=0)


def test_what_is_no_detector_is_refused(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(OVDError, match=f"--proposals hf:{tmp_path} cannot be used"):
        build_region_proposer(f"hf:{tmp_path}", RECORDS, 5)
