"""Fixed AP against golden numbers: what is kept, what it is worth, and what stays in memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from ovd_d2.evaluation import LVISOpenVocabEvaluator
from ovd_d2.evaluation.lvis_backends import (
    AREA_RANGES,
    average_precision,
    evaluate_lvis,
    limit_per_image,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluators"
EXPECTED = json.loads((GOLDEN / "lvis_fixed_ap.json").read_text())
CASES = [name for name in EXPECTED if name != "_about"]
SIZE = 1000


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(GOLDEN / "lvis_fixed_ap.npz"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The golden ground truth without its 'ignore' flags, which a data set's file may not have."""
    name, content = "test_lvis_fixed_ap", ground_truth()
    for annotation in content["annotations"]:
        annotation.pop("ignore", None)
    path = tmp_path_factory.mktemp("lvis") / "annotations.json"
    path.write_text(json.dumps(content))
    names = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(json_file=str(path), thing_classes=names)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def ground_truth():
    return json.loads((GOLDEN / "lvis_gt.json").read_text())


def updates(arrays, settings):
    """(input, output, rows) of one image after the other."""
    order = arrays["update_order"].tolist()
    for image_id in order[::-1] if settings["update_order"] == "reversed" else order:
        rows = np.flatnonzero(arrays["det.image_id"] == image_id)
        found = Instances((SIZE, SIZE))
        found.pred_boxes = Boxes(torch.from_numpy(arrays["det.box_xyxy"][rows]))
        found.scores = torch.from_numpy(arrays[settings["scores"]][rows])
        found.pred_classes = torch.from_numpy(arrays["det.category_id"][rows].astype(int) - 1)
        yield {"image_id": image_id}, {"instances": found}, rows


def processed(dataset, arrays, settings, ranks=1):
    """One evaluator per process, and the golden row of every detection by (image, place)."""
    evaluators = [
        LVISOpenVocabEvaluator(
            dataset,
            distributed=ranks > 1,
            fixed_ap=settings["fixed_ap"],
            fixed_ap_dets_per_category=settings["topk"],
        )
        for _ in range(ranks)
    ]
    for evaluator in evaluators:
        evaluator.reset()
        evaluator._lvis_api.dataset = ground_truth()  # its flags count
    for number, (image, output, _) in enumerate(updates(arrays, settings)):
        evaluators[number % ranks].process([image], [output])
    return evaluators


@pytest.mark.parametrize("case", CASES)
def test_golden(case, dataset, arrays, monkeypatch):
    settings, metrics = EXPECTED[case]["settings"], EXPECTED[case]["metrics"]
    evaluators = processed(dataset, arrays, settings, settings["ranks"])
    other = [[e._best.results() for e in evaluators[1:]], [e._predictions for e in evaluators[1:]]]
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data, dst=0: [data, *other.pop(0)])
    evaluator = evaluators[0]
    found = evaluator.evaluate()["bbox"]
    if not settings["fixed_ap"]:
        for key in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
            assert found[key] == pytest.approx(100 * metrics[key], abs=1e-9), key
        results = [r for p in evaluator._predictions for r in p["instances"]]
        results = evaluator._with_dataset_ids(limit_per_image(results, 300))
    else:
        for key, name in (("", "AP"), ("_r", "APr"), ("_c", "APc"), ("_f", "APf")):
            assert found[f"APfixed{key}"] == pytest.approx(100 * metrics[name], abs=1e-9), name
        results = evaluator._with_dataset_ids(evaluator._best.results())
    assert len(results) == EXPECTED[case]["detections_kept"]
    assert_kept(results, arrays, settings["scores"], arrays[f"{case}.kept"])
    evaluation = evaluate_lvis(ground_truth(), results, "bbox", max_dets_per_image=-1)
    assert average_precision(evaluation) == pytest.approx(100 * metrics["AP"], abs=1e-9)
    for place, area in enumerate(AREA_RANGES):  # every class, threshold and area
        of_classes = evaluation.precision[..., place].mean(axis=1)
        expected = arrays[f"{case}.ap_tka"][..., place]
        np.testing.assert_allclose(of_classes, expected, rtol=0, atol=1e-9, err_msg=area)
        recall, expected = evaluation.recall[..., place], arrays[f"{case}.recall_tka"][..., place]
        np.testing.assert_allclose(recall, expected, rtol=0, atol=1e-9, err_msg=area)


def assert_kept(results, arrays, scores, expected):
    """The kept detections are those of the golden rows."""
    corners = arrays["det.box_xyxy"]
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    columns = (arrays["det.image_id"], arrays["det.category_id"], arrays[scores], *boxes.T)
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    found = [(r["image_id"], r["category_id"], r["score"], *r["bbox"]) for r in results]
    assert sorted(found) == sorted(rows[i] for i in expected)


@pytest.mark.parametrize("backend", ["hotcoco", "lvis-api"])
def test_both_back_ends_on_golden_ties(backend, arrays):
    case = "ties_fixed_topk60"
    rows = arrays[f"{case}.kept"]
    boxes = arrays["det.box_xyxy"][rows]
    boxes[:, 2:] -= boxes[:, :2]
    columns = (arrays["det.image_id"], arrays["det.category_id"], arrays["det.score_tied"])
    image_id, category_id, score = (c[rows].tolist() for c in columns)
    results = [
        {"image_id": i, "category_id": c, "score": s, "bbox": b}
        for i, c, s, b in zip(image_id, category_id, score, boxes.tolist(), strict=True)
    ]
    order = {image: n for n, image in enumerate(arrays["update_order"].tolist())}
    results.sort(key=lambda r: order[r["image_id"]])
    found = evaluate_lvis(ground_truth(), results, "bbox", max_dets_per_image=-1, backend=backend)
    expected = arrays[f"{case}.precision_all_areas"]
    np.testing.assert_allclose(found.precision[..., 0], expected, rtol=0, atol=1e-9)


def test_what_does_not_count_does_not_stay_in_memory(dataset, arrays):
    settings = {**EXPECTED["fixed_topk7"]["settings"], "topk": 3}
    (evaluator,) = processed(dataset, arrays, settings)
    evaluator._max_dets_per_image = 2
    evaluator.reset()
    (image, output, rows), *_ = updates(arrays, settings)
    most_seen = 0
    for number in range(60):
        evaluator.process([{"image_id": image["image_id"] + number}], [output])
        most_seen += len(rows)
        held = len(evaluator._best.results()) + sum(
            len(p["instances"]) for p in evaluator._predictions
        )
        assert held <= 3 * 30 + 2 * (number + 1)
    assert most_seen > 10 * held


def test_files_that_are_written(dataset, arrays, tmp_path):
    settings = EXPECTED["fixed_topk7"]["settings"]
    evaluator = LVISOpenVocabEvaluator(
        dataset,
        distributed=False,
        output_dir=str(tmp_path),
        fixed_ap=True,
        fixed_ap_dets_per_category=7,
    )
    evaluator.reset()
    for image, output, _ in updates(arrays, settings):
        evaluator.process([image], [output])
    evaluator.evaluate()
    fixed = json.loads((tmp_path / "lvis_instances_results_fixed_ap.json").read_text())
    standard = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert len(fixed) == 210 and len(standard) == EXPECTED["standard_300"]["detections_kept"]
    assert {r["category_id"] for r in fixed} == set(range(1, 31))
