"""Recall of phrases: golden numbers, both protocols, several processes, every wrong prediction."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.data.datasets.flickr30k_entities import parse_annotation, parse_sentences
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.phrase_grounding import (
    NEVER,
    PhraseGroundingEvaluator,
    PhraseTarget,
    boxes_of_phrases,
    first_right_box,
    phrase_targets,
    rank_predictions,
    recall_of_phrases,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluators"
INPUT = json.loads((GOLDEN / "flickr_grounding_input.json").read_text())
EXPECTED = json.loads((GOLDEN / "flickr_grounding.json").read_text())


def golden_records(split):
    records = []
    for image_id in map(str, INPUT["split"][split]):
        boxes, _, _ = parse_annotation(INPUT["annotations_xml"][image_id], "xml")
        sentences = parse_sentences(INPUT["sentences_txt"][image_id], "txt")
        for sentence_id, (_, phrases) in enumerate(sentences):
            phrases = [{**p, "boxes": boxes[p["entity"]]} for p in phrases if p["entity"] in boxes]
            record = {"image_id": int(image_id), "sentence_id": sentence_id, "phrases": phrases}
            records.append(record)
    return records


def golden_predictions(split):
    return [((p["image_id"], p["sentence_id"]), p["boxes"]) for p in INPUT["predictions"][split]]


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("protocol", ["any", "merged"])
def test_golden(split, protocol):
    expected = EXPECTED[f"{split}_{protocol}"]
    targets = phrase_targets(golden_records(split))
    found = rank_predictions(golden_predictions(split), targets, protocol=protocol)
    assert len(found) == expected["sentences"]
    places = [place for of_sentence in found.values() for place in of_sentence]
    types = [phrase.types for phrases in targets.values() for phrase in phrases]
    assert len(places) == expected["phrases"]
    metrics = recall_of_phrases(places, types)
    names = {
        key.replace("R@", "Recall@").replace("upper", "Upper") + ("" if "_" in rest else "_all"): v
        for key, v in metrics.items()
        for rest in [key.removeprefix("upper_bound")]
    }
    assert names.keys() == expected["recall"].keys()
    for name, value in names.items():
        assert value == pytest.approx(expected["recall"][name], abs=1e-9), name
    for k, totals in expected["totals"].items():
        for name, total in totals.items():
            members = [p for p, t in zip(places, types, strict=True) if name in ("all", *t)]
            assert len(members) == total
            hits = sum(p < (NEVER if k == "-1" else int(k)) for p in members)
            assert hits == expected["hits"][k][name]


def instances(boxes, scores, phrases):
    found = Instances((500, 500))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.tensor(phrases, dtype=torch.int64)
    return found


def as_model_output(lists):
    """Shuffled detections whose scores give the order of ``lists``."""
    rows = [
        (box, 1 - place / 100, phrase)
        for phrase, boxes in enumerate(lists)
        for place, box in enumerate(boxes)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    boxes, scores, phrases = zip(*(rows[i] for i in order), strict=True) if rows else ([], [], [])
    return {"instances": instances(list(boxes), list(scores), list(phrases))}


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_evaluator_gives_the_golden_numbers(split, monkeypatch):
    targets = phrase_targets(golden_records(split))
    batches = [
        ({"image_id": key[0], "sentence_id": key[1]}, as_model_output(lists))
        for key, lists in golden_predictions(split)
        if key in targets
    ]
    evaluators = [PhraseGroundingEvaluator(targets) for _ in range(2)]
    for number, (sample, output) in enumerate(batches):
        evaluators[number % 2].process([sample], [output])
    with pytest.raises(OVDError, match="sentences have no prediction, such as sentence"):
        evaluators[0].evaluate()
    monkeypatch.setattr(
        "detectron2.utils.comm.gather", lambda data, dst=0: [data, evaluators[1]._found]
    )
    results = evaluators[0].evaluate()
    for protocol, name in (("any", "phrase_grounding"), ("merged", "phrase_grounding_merged")):
        for k in ("1", "5", "10"):
            expected = EXPECTED[f"{split}_{protocol}"]["recall"][f"Recall@{k}_all"]
            assert results[name][f"R@{k}"] == pytest.approx(100 * expected, abs=1e-9)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_golden_lists_of_boxes(case):
    arrays = {
        key.removeprefix(f"c{case}."): value
        for key, value in np.load(GOLDEN / "flickr_post_process.npz").items()
        if key.startswith(f"c{case}.")
    }
    count = int(arrays["num_phrases"])
    height, width = arrays["original_hw"]
    scale = np.array([width, height]) / arrays["resized_wh"]
    boxes = arrays["boxes"].astype(np.float64) * np.tile(scale, 2)
    found = Instances((int(height), int(width)))
    found.pred_boxes = Boxes(torch.from_numpy(boxes))
    found.scores = torch.from_numpy(arrays["scores"])
    found.pred_classes = torch.from_numpy(arrays["labels"]) - 1
    lists = boxes_of_phrases(found, count)
    assert len(lists) == count
    for number, boxes in enumerate(lists):
        expected = arrays[f"out.phrase{number}.boxes"][:-1]  # the last is an added box of zeros
        assert boxes.shape == expected.shape
        np.testing.assert_allclose(boxes, expected, rtol=0, atol=1e-3)


# By hand ------------------------------------------------------------------------------------------

LEFT, RIGHT, BOTH = [0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 20, 10]


def test_a_box_of_exactly_half_is_right():
    assert first_right_box([LEFT], [BOTH]) == 0
    assert first_right_box([[0, 0, 9.999, 10]], [BOTH]) == NEVER


def test_any_box_and_merged_boxes():
    assert first_right_box([[50, 50, 60, 60], RIGHT], [LEFT, RIGHT]) == 1
    assert first_right_box([[0, 0, 9, 10], BOTH], [LEFT, RIGHT], protocol="merged") == 1
    assert first_right_box([], [LEFT], protocol="merged") == NEVER


def test_types_ranks_and_no_phrases():
    metrics = recall_of_phrases([0, 4, 5, NEVER], [("a", "b"), ("a",), ("b", "b"), ()])
    assert (metrics["R@1"], metrics["R@5"], metrics["R@10"]) == (0.25, 0.5, 0.75)
    assert metrics["upper_bound"] == 0.75
    assert (metrics["R@1_a"], metrics["R@5_a"], metrics["R@5_b"]) == (0.5, 1.0, 0.5)
    assert math.isnan(recall_of_phrases([])["R@1"])
    assert set(recall_of_phrases([0], ranks=(3,))) == {"R@3", "upper_bound"}


def test_a_second_prediction_of_a_sentence_is_passed_over():
    targets = {(1, 0): [PhraseTarget([LEFT])]}
    lists = [((1, 0), [[LEFT]]), ((1, 0), [[RIGHT]])]
    assert rank_predictions(lists, targets) == {(1, 0): [0]}
    assert rank_predictions(lists[::-1], targets) == {(1, 0): [NEVER]}
    evaluator = PhraseGroundingEvaluator(targets, distributed=False)
    for box in (LEFT, RIGHT):
        evaluator.process([{"image_id": 1}], [{"instances": instances([box], [1], [0])}])
    assert evaluator.evaluate()["phrase_grounding"]["R@1"] == 100
    evaluator.reset()
    with pytest.raises(OVDError, match="1 of 1 sentences have no prediction"):
        evaluator.evaluate()


def test_images_without_detections_and_phrases_without_boxes_count_as_missed():
    targets = {(1, 0): [PhraseTarget([LEFT], ("x",)), PhraseTarget([RIGHT])]}
    targets[(2, 0)] = [PhraseTarget([LEFT])]
    evaluator = PhraseGroundingEvaluator(targets, distributed=False, protocols=["any"])
    outputs = [instances([RIGHT], [0.1], [1]), instances([], [], [])]
    evaluator.process(
        [{"image_id": 1, "sentence_id": 0}, {"image_id": 2, "sentence_id": 0}],
        [{"instances": output} for output in outputs],
    )
    metrics = evaluator.evaluate()
    assert list(metrics) == ["phrase_grounding"]
    assert metrics["phrase_grounding"]["R@1"] == pytest.approx(100 / 3)
    assert metrics["phrase_grounding"]["R@1_x"] == 0


def test_wrong_predictions_and_targets_are_one_sentence():
    targets = {(1, 0): [PhraseTarget([LEFT])]}
    for lists in ([], [[LEFT], [LEFT]]):
        with pytest.raises(OVDError, match=f"has {len(lists)} lists of boxes for 1 phrases"):
            rank_predictions([((1, 0), lists)], targets)
    with pytest.raises(OVDError, match="has 1 lists of boxes for 0 phrases"):
        rank_predictions([((7, 0), [[LEFT]])], targets)
    with pytest.raises(OVDError, match="1 of 1 sentences have no prediction.*'?0'? of image 1"):
        rank_predictions([], targets)
    with pytest.raises(OVDError, match="protocol is 'all': use one of any, merged"):
        rank_predictions([], targets, protocol="all")
    with pytest.raises(OVDError, match="protocols has 'all'"):
        PhraseGroundingEvaluator(targets, protocols=["all"])
    with pytest.raises(OVDError, match="targets is empty"):
        PhraseGroundingEvaluator({})
    with pytest.raises(OVDError, match="boxes of a PhraseTarget is empty"):
        phrase_targets([{"image_id": 1, "phrases": [{"boxes": []}]}])
    record = {"image_id": 1, "phrases": [{"boxes": [LEFT]}]}
    with pytest.raises(OVDError, match="Two records have image_id 1 and sentence_id 0"):
        phrase_targets([record, record])
    assert phrase_targets([{"image_id": 1, "phrases": []}]) == {}
    evaluator = PhraseGroundingEvaluator(targets)
    output = [{"instances": instances([LEFT], [1], [1])}]
    with pytest.raises(OVDError, match="predicts phrase 1 of a sentence with 1 phrases"):
        evaluator.process([{"image_id": 1, "sentence_id": 0}], output)
    with pytest.raises(OVDError, match="Sentence 3 of image 1 is not among the targets"):
        evaluator.process([{"image_id": 1, "sentence_id": 3}], output)
