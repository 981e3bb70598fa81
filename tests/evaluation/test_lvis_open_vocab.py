"""LVISOpenVocabEvaluator: Detectron2's numbers, base and novel apart, fixed AP."""

import json
import logging
import math
import os

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import lvis_evaluation, verify_results
from detectron2.structures import Boxes, Instances

from ovd_d2.errors import OVDError
from ovd_d2.evaluation import LVISOpenVocabEvaluator
from ovd_d2.evaluation.lvis_backends import _lvis_api_classes

NAMES = ["ant", "bee", "cat", "dog", "eel"]
FREQUENCY = "rcffr"
IS_NOVEL = [True, False, False, True, False]  # on purpose not the rare ones
SIZE = 100


def content(num_images=4, seed=0):
    rng = np.random.default_rng(seed)
    categories = [
        {"id": i + 1, "name": n, "frequency": f} for i, (n, f) in enumerate(zip(NAMES, FREQUENCY))
    ]
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        images.append(
            {
                "id": image_id,
                "height": SIZE,
                "width": SIZE,
                "coco_url": f"http://host/val/{image_id}.jpg",
                "neg_category_ids": [1, 2],
                "not_exhaustive_category_ids": [3],
            }
        )
        for category_id in range(1, 6):
            x, y, w, h = (float(v) for v in rng.integers([0, 0, 20, 20], [50, 50, 50, 50]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return {"categories": categories, "images": images, "annotations": annotations}


def predict(truth, *, seed=1, noise=2.0, masks=False, wrong=0.3, extra=3):
    """(inputs, outputs) of a model that finds most boxes roughly, some with a wrong class."""
    rng = np.random.default_rng(seed)
    batch = []
    for image in truth["images"]:
        boxes, classes = [], []
        for annotation in truth["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = np.array(annotation["bbox"]) + rng.normal(0, noise, 4)
                boxes.append([x, y, x + w, y + h])
                right = rng.random() > wrong
                classes.append(annotation["category_id"] - 1 if right else rng.integers(5))
        for _ in range(extra):
            x, y = rng.integers(0, 50, 2)
            boxes.append([x, y, x + 30, y + 30])
            classes.append(rng.integers(5))
        batch.append((image, instances(boxes, rng.random(len(boxes)), classes, masks)))
    return (
        [{"image_id": i["id"], "height": SIZE, "width": SIZE} for i, _ in batch],
        [{"instances": p} for _, p in batch],
    )


def instances(boxes, scores, classes, masks=False):
    found = Instances((SIZE, SIZE))
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    found.pred_boxes = Boxes(torch.tensor(boxes))
    found.scores = torch.tensor(np.asarray(scores, dtype=np.float32))
    found.pred_classes = torch.tensor(np.asarray(classes, dtype=np.int64))
    if masks:
        grid = torch.arange(SIZE)
        corners = found.pred_boxes.tensor[:, :, None].round()
        columns = (grid >= corners[:, 0]) & (grid < corners[:, 2])
        lines = (grid >= corners[:, 1]) & (grid < corners[:, 3])
        found.pred_masks = lines[:, :, None] & columns[:, None, :]
    return found


@pytest.fixture
def register(tmp_path):
    names = []

    def _register(truth, **metadata):
        name = f"test_lvis_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(truth) if isinstance(truth, dict) else truth)
        DatasetCatalog.register(name, list)
        names.append(name)
        metadata = {"thing_classes": NAMES, "is_novel": IS_NOVEL, **metadata}
        metadata = {k: v for k, v in metadata.items() if v is not None}
        MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="lvis", **metadata)
        return name

    yield _register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluate(name, predictions, **options):
    evaluator = LVISOpenVocabEvaluator(name, distributed=False, **options)
    evaluator.reset()
    for single in zip(*predictions):
        evaluator.process([single[0]], [single[1]])
    return evaluator.evaluate()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("backend", ["hotcoco", "lvis-api"])
def test_standard_metrics_are_detectron2s(register, monkeypatch, backend):
    truth = content()
    name = register(truth)
    predictions = predict(truth, masks=True)
    found = evaluate(name, predictions, backend=backend)

    # Detectron2's own evaluator, on an LVISEval that runs with today's numpy.
    class Evaluation(_lvis_api_classes()[2]):
        _prepare_freq_group = lvis_evaluation_class()._prepare_freq_group

    monkeypatch.setattr("lvis.LVISEval", Evaluation)
    parent = lvis_evaluation.LVISEvaluator(name, distributed=False)
    parent.reset()
    parent.process(*predictions)
    expected = parent.evaluate()
    assert set(found) == set(expected) == {"bbox", "segm"}
    for task, metrics in expected.items():
        assert 0 < metrics["AP"] < 100
        for key, value in metrics.items():
            value = math.nan if value == -100 else value  # lvis-api's -1
            np.testing.assert_allclose(found[task][key], value, rtol=0, atol=1e-9, err_msg=key)


def lvis_evaluation_class():
    import lvis

    return lvis.LVISEval


def test_backends_agree_in_every_metric(register):
    truth = content()
    name = register(truth)
    predictions = predict(truth, masks=True)
    a, b = (
        evaluate(name, predictions, backend=backend, fixed_ap=True)
        for backend in ("hotcoco", "lvis-api")
    )
    for task in ("bbox", "segm"):
        assert len(a[task]) == 9 + 4 + 6
        assert_same(a[task], b[task])


def test_base_and_novel_follow_is_novel_and_not_the_frequency(register):
    truth = content()
    name = register(truth)
    # ant and dog (novel) are found exactly, the others not at all
    perfect = predict(truth, noise=0, wrong=0, extra=0)
    for output in perfect[1]:
        keep = [c in (0, 3) for c in output["instances"].pred_classes.tolist()]
        output["instances"] = output["instances"][torch.tensor(keep)]
    metrics = evaluate(name, perfect)["bbox"]
    assert metrics["AP_novel"] == pytest.approx(100) == metrics["AP50_novel"]
    assert metrics["AP_base"] == 0 == metrics["AP50_base"]
    assert metrics["AP"] == pytest.approx(40)
    assert metrics["APr"] == pytest.approx(50)  # ant, not eel
    assert metrics["APf"] == pytest.approx(50)  # dog, not cat
    assert metrics["APc"] == 0


def test_class_order_of_the_metadata_may_differ_from_the_ids(register):
    truth = content()
    order = {5: 0, 4: 1, 3: 2, 2: 3, 1: 4}
    predictions = predict(truth, masks=False)
    plain = evaluate(register(truth), predictions)["bbox"]
    for output in predictions[1]:
        output["instances"].pred_classes = 4 - output["instances"].pred_classes
    name = register(
        truth,
        thing_dataset_id_to_contiguous_id=order,
        thing_classes=NAMES[::-1],
        is_novel=IS_NOVEL[::-1],
    )
    assert_same(evaluate(name, predictions)["bbox"], plain)


def test_without_is_novel_the_rare_classes_are_novel(register):
    truth = content()
    metrics = evaluate(register(truth, is_novel=None), predict(truth))["bbox"]
    assert metrics["AP_novel"] == metrics["APr"]
    assert metrics["AP_base"] == pytest.approx((metrics["APc"] + 2 * metrics["APf"]) / 3)


def test_no_novel_class_gives_nan_and_says_so(register, caplog):
    truth = content()
    name = register(truth, is_novel=[False] * 5)
    with caplog.at_level(logging.INFO):
        metrics = evaluate(name, predict(truth), fixed_ap=True)["bbox"]
    for key in ("AP_novel", "AP50_novel", "APfixed_novel"):
        assert math.isnan(metrics[key])
    assert metrics["AP_base"] == metrics["AP"] > 0
    assert "No novel class has ground truth" in caplog.text


def test_only_novel_classes_gives_nan_for_base(register):
    truth = content()
    metrics = evaluate(register(truth, is_novel=[True] * 5), predict(truth))["bbox"]
    assert math.isnan(metrics["AP_base"])
    assert metrics["AP_novel"] == metrics["AP"]


def test_novel_class_without_ground_truth_is_left_out(register):
    truth = content()
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 1]
    perfect = predict(truth, noise=0, wrong=0, extra=0)
    assert evaluate(register(truth), perfect)["bbox"]["AP_novel"] == pytest.approx(100)


def test_predicting_nothing_gives_nan_like_detectron2(register, caplog):
    truth = content()
    name = register(truth)
    inputs = [{"image_id": i["id"]} for i in truth["images"]]
    outputs = [{"instances": instances([], [], [])} for _ in inputs]
    metrics = evaluate(name, (inputs, outputs), fixed_ap=True)["bbox"]
    assert len(metrics) == 19 and all(math.isnan(v) for v in metrics.values())
    assert "predicted nothing" in caplog.text
    assert evaluate(name, ([], [])) == {}


def test_one_image_with_and_one_without_predictions(register):
    truth = content(num_images=2)
    inputs, outputs = predict(truth, noise=0, wrong=0, extra=0)
    outputs[1]["instances"] = outputs[1]["instances"][:0]
    metrics = evaluate(register(truth), (inputs, outputs))["bbox"]
    # recall 1/2: precision 1 at 51 of the 101 recall thresholds
    assert metrics["AP"] == pytest.approx(100 * 51 / 101)


def test_all_predictions_of_one_class(register):
    """What a class-agnostic detector gives: every box is class 0."""
    truth = content()
    inputs, outputs = predict(truth, noise=0, wrong=0, extra=0)
    for output in outputs:
        output["instances"].pred_classes.zero_()
    metrics = evaluate(register(truth), (inputs, outputs))["bbox"]
    assert 0 < metrics["AP_novel"] < 50
    assert metrics["AP_base"] == 0


def test_class_out_of_the_vocabulary_is_an_error_at_once(register):
    truth = content()
    name = register(truth)
    evaluator = LVISOpenVocabEvaluator(name, distributed=False)
    evaluator.reset()
    bad = [{"instances": instances([[0, 0, 9, 9]], [0.5], [5])}]
    with pytest.raises(OVDError, match=f"predicts class 5 but data set '{name}' has 5 classes"):
        evaluator.process([{"image_id": 1}], bad)


def test_fixed_ap_has_no_limit_per_image_but_one_per_class(register):
    truth = content()
    name = register(truth)
    predictions = predict(truth, extra=40, noise=0, wrong=0)
    metrics = evaluate(name, predictions, fixed_ap=True, max_dets_per_image=3)["bbox"]
    unlimited = evaluate(name, predictions, max_dets_per_image=-1)["bbox"]
    assert metrics["AP"] < metrics["APfixed"] == unlimited["AP"]
    for name_, key in (("novel", "AP_novel"), ("base", "AP_base"), ("r", "APr"), ("f", "APf")):
        assert metrics[f"APfixed_{name_}"] == unlimited[key]
    assert "APfixed" not in unlimited
    cut = evaluate(name, predictions, fixed_ap=True, fixed_ap_dets_per_category=2)["bbox"]
    assert cut["APfixed"] < metrics["APfixed"]


def test_results_verify_and_flatten(register):
    truth = content()
    results = evaluate(register(truth), predict(truth), fixed_ap=True)
    cfg = get_cfg()
    novel = results["bbox"]["AP_novel"]
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP_novel", novel, 1e-6], ["bbox", "AP50", 50.0, 50.0]]
    assert verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP_novel", novel + 1, 0.5]]
    with pytest.raises(SystemExit):
        verify_results(cfg, results)
    assert not any("-" in key for key in results["bbox"])  # print_csv_format drops such keys


def test_the_table_is_aligned_and_complete(register, caplog):
    truth = content()
    with caplog.at_level(logging.INFO):
        metrics = evaluate(register(truth), predict(truth), fixed_ap=True)["bbox"]
    lines = [line for line in caplog.text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    cells = {line.split("|")[1].strip(): line for line in lines}
    assert {"all", "base", "novel", "rare", "common", "frequent"} <= set(cells)
    assert f"{metrics['AP50_novel']:.2f}" in cells["novel"]
    assert f"{metrics['APfixed']:.2f}" in cells["all"]
    assert cells["novel"].split("|")[2].strip() == "2"  # ant and dog have ground truth


def test_predictions_are_written(register, tmp_path):
    truth = content()
    name = register(truth)
    evaluate(name, predict(truth), output_dir=str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert {r["category_id"] for r in written} <= {1, 2, 3, 4, 5}
    assert len(written) == 4 * 8


def _one_rank(rank, store, json_file, predictions, queue):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    MetadataCatalog.get("shared").set(json_file=json_file, thing_classes=NAMES, is_novel=IS_NOVEL)
    evaluator = LVISOpenVocabEvaluator("shared", distributed=True)
    evaluator.reset()
    evaluator.process(*(part[rank::2] for part in predictions))
    queue.put((rank, evaluator.evaluate()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gathers_from_two_processes(register, tmp_path):
    truth = content()
    name = register(truth)
    predictions = predict(truth)
    # Not "fork": hotcoco's threads, started by other tests, would be missing in the child.
    anew = torch.multiprocessing.get_context("forkserver")
    queue = anew.Queue()
    arguments = (tmp_path / "store", MetadataCatalog.get(name).json_file, predictions, queue)
    ranks = [anew.Process(target=_one_rank, args=(r, *arguments), daemon=True) for r in range(2)]
    for process in ranks:
        process.start()
    results = dict(queue.get(timeout=200) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    assert results[1] is None
    assert_same(results[0]["bbox"], evaluate(name, predictions)["bbox"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("categories"), "lacks the entry 'categories'"),
        (lambda t: t.pop("images"), "lacks the entry 'images'"),
        (lambda t: t.update(categories=[]), "empty list of categories"),
        (lambda t: t.update(images=[], annotations=[]), "empty list of images"),
        (lambda t: t["images"][1].pop("neg_category_ids"), "image 2 lacks 'neg_category_ids'"),
        (
            lambda t: t["categories"][2].update(id=99) or t["annotations"].clear(),
            "number them from 1 without gaps",
        ),
    ],
)
def test_unusable_annotations_are_one_sentence(register, change, message):
    truth = content()
    change(truth)
    name = register(truth)
    with pytest.raises(OVDError, match=message):
        LVISOpenVocabEvaluator(name, distributed=False)


def test_other_wrong_set_ups(register):
    truth = content()
    with pytest.raises(OVDError, match="no valid json"):
        LVISOpenVocabEvaluator(register("{"), distributed=False)
    name = register(truth, readme_section="LVIS")
    os.remove(MetadataCatalog.get(name).json_file)
    with pytest.raises(OVDError, match=rf"{name}\.json is missing: .*section 'LVIS'"):
        LVISOpenVocabEvaluator(name, distributed=False)
    with pytest.raises(OVDError, match="marks 2 classes in is_novel, but .* 5 categories"):
        LVISOpenVocabEvaluator(register(truth, is_novel=[True, False]), distributed=False)
    with pytest.raises(OVDError, match="TEST.LVIS_BACKEND is 'quick'"):
        LVISOpenVocabEvaluator(register(truth), distributed=False, backend="quick")
    with pytest.raises(OVDError, match="not registered with an annotation file"):
        LVISOpenVocabEvaluator("test_lvis_of_nobody", distributed=False)
    MetadataCatalog.remove("test_lvis_of_nobody")
