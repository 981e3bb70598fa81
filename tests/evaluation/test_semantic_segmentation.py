"""Mean IoU: the public codes' numbers, classes that are not there, base and novel."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import SemSegEvaluator
from evaluation.label_map_datasets import evaluated, label_map_dataset, scores_of
from modeling.two_processes import in_two_processes
from PIL import Image

from ovd_d2.errors import OVDError
from ovd_d2.evaluation import OpenVocabSemSegEvaluator
from ovd_d2.evaluation.semantic_segmentation import class_iou

GOLDEN = Path(__file__).parents[1] / "golden/segmentation"
NAMES = ("sky", "tree", "road", "ant")


@pytest.fixture
def maps():
    """Truth and prediction (6, 5, 7) over four classes; no pixel is truly an ant."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (6, 5, 7))
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 255
    return truth, predicted


def plain_iou(truth, predicted, count):
    """IoU by sets of pixels, nan where the union is empty."""
    values = []
    for c in range(count):
        valid = truth != 255
        a, b = (truth == c) & valid, (predicted == c) & valid
        values.append((a & b).sum() / (a | b).sum() if (a | b).any() else np.nan)
    return 100 * np.array(values)


def test_same_as_mmsegmentation(tmp_path):
    golden = np.load(GOLDEN / "groupvit_miou.npz")
    names = [f"c{i}" for i in range(7)]
    with label_map_dataset("sem_mm", tmp_path, golden["label"], names, ignore_label=255) as records:
        evaluator = OpenVocabSemSegEvaluator("sem_mm", absent="nan")
        found = evaluated(evaluator, records, golden["pred"], 7)["sem_seg"]
    expected = plain_iou(golden["label"], golden["pred"], 7)
    for i in range(7):
        np.testing.assert_allclose(found[f"IoU-c{i}"], expected[i], rtol=0, atol=1e-9)
        np.testing.assert_equal(np.float32(found[f"IoU-c{i}"] / 100), golden["nan.IoU"][i])
    assert np.isnan(found["IoU-c6"]) and found["IoU-c5"] == 0  # nowhere; predicted alone
    assert abs(found["mIoU"] - np.nanmean(expected)) < 1e-9
    assert np.float32(round(found["mIoU"], 2)) == golden["mIoU_percent_rounded"]
    assert np.float32(round(found["mACC"], 2)) == golden["mAcc_percent_rounded"]
    assert np.float32(found["pACC"] / 100) == golden["aAcc"]


def test_same_as_lseg_on_ade20k(tmp_path):
    golden = np.load(GOLDEN / "lseg_metrics.npz")
    truth = np.where(golden["ade.target"] == -1, 255, golden["ade.target"])
    names = [f"c{i}" for i in range(6)]
    with label_map_dataset("sem_ade", tmp_path, truth, names, ignore_label=255) as records:
        evaluator = OpenVocabSemSegEvaluator("sem_ade", absent="zero")
        evaluator.reset()
        scores = torch.from_numpy(golden["ade.logits"])
        evaluator.process(records, [{"sem_seg": s} for s in scores])
        found = evaluator.evaluate()["sem_seg"]
    iou = golden["ade.total_inter"] / golden["ade.total_union"]
    assert abs(found["mIoU"] - 100 * iou.mean()) < 1e-9
    np.testing.assert_allclose(found["mIoU"] / 100, golden["ade.miou"], rtol=6e-8)
    # The public code rounds its accuracy to hundredths of a per cent.
    assert abs(found["pACC"] / 100 - golden["ade.pixacc"]) < 1e-4


def test_three_rules_for_classes_that_are_not_there(maps, tmp_path):
    truth, predicted = maps
    expected = plain_iou(truth, predicted, 4)
    assert expected[3] == 0  # an ant was seen where there is none
    means = {"no_truth": expected[:3].mean(), "nan": expected.mean(), "zero": expected.mean()}
    with label_map_dataset("sem_rules", tmp_path, truth, NAMES, ignore_label=255) as records:
        for absent, mean in means.items():
            evaluator = OpenVocabSemSegEvaluator("sem_rules", absent=absent)
            assert abs(evaluated(evaluator, records, predicted, 4)["sem_seg"]["mIoU"] - mean) < 1e-9
        without = np.where(predicted == 3, 0, predicted)
        expected = plain_iou(truth, without, 4)
        for absent, mean in (("nan", expected[:3].mean()), ("zero", expected[:3].sum() / 4)):
            evaluator = OpenVocabSemSegEvaluator("sem_rules", absent=absent)
            assert abs(evaluated(evaluator, records, without, 4)["sem_seg"]["mIoU"] - mean) < 1e-9
    with pytest.raises(OVDError, match="absent is 'no'; it must be no_truth or nan or zero"):
        class_iou(np.zeros((2, 2)), "no")


def read(name, dtype):
    return np.array(Image.open(name)).astype(dtype)


def test_detectron2s_results_by_default(maps, tmp_path):
    truth, predicted = maps
    with label_map_dataset("sem_d2", tmp_path, truth, NAMES, ignore_label=255) as records:
        found = evaluated(OpenVocabSemSegEvaluator("sem_d2"), records, predicted, 4)["sem_seg"]
        # Detectron2's reader of maps asks numpy 2 for what it refuses.
        stock = SemSegEvaluator("sem_d2", sem_seg_loading_fn=read)
        stock = evaluated(stock, records, predicted, 4)["sem_seg"]
    assert set(found) == set(stock)
    for key, value in stock.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12, err_msg=key)


def test_base_and_novel_without_background(maps, tmp_path, caplog):
    truth, predicted = maps
    names = ("background", "tree", "road", "ant")
    expected = plain_iou(truth, predicted, 4)
    with label_map_dataset(
        "sem_novel", tmp_path, truth, names, is_novel=[False, False, True, True]
    ) as records:
        evaluator = OpenVocabSemSegEvaluator("sem_novel", output_dir=str(tmp_path / "out"))
        with caplog.at_level(logging.INFO):
            found = evaluated(evaluator, records, predicted, 4)["sem_seg"]
    assert found["mIoU"] == pytest.approx(expected[:3].mean())  # with background
    assert found["mIoU_base"] == pytest.approx(expected[1])
    assert found["mIoU_novel"] == pytest.approx(expected[2])  # no ant is there
    assert found["hIoU"] == pytest.approx(2 / (1 / expected[1] + 1 / expected[2]))
    assert "| base      |         1 |" in caplog.text
    written = torch.load(tmp_path / "out/sem_seg_evaluation.pth", weights_only=True)
    assert written["mIoU_novel"] == found["mIoU_novel"]
    rows = json.loads((tmp_path / "out/sem_seg_predictions.json").read_text())
    assert {"file_name", "category_id", "segmentation"} == set(rows[0])


def test_counts_of_two_processes_are_added(maps, tmp_path):
    truth, predicted = maps
    with label_map_dataset("sem_two", tmp_path, truth, NAMES) as records:
        alone = evaluated(OpenVocabSemSegEvaluator("sem_two"), records, predicted, 4)["sem_seg"]

        def share(rank):
            evaluator = OpenVocabSemSegEvaluator("sem_two")
            mine = slice(rank, None, 2)
            return evaluated(evaluator, records[mine], predicted[mine], 4) or {}

        both, other = in_two_processes(share, tmp_path)
    assert other == {}
    np.testing.assert_equal(dict(both["sem_seg"]), dict(alone))


def test_no_image_at_all(tmp_path):
    with label_map_dataset("sem_none", tmp_path, np.zeros((1, 2, 3)), NAMES):
        evaluator = OpenVocabSemSegEvaluator("sem_none")
        evaluator.reset()
        assert np.isnan(evaluator.evaluate()["sem_seg"]["mIoU"])


def test_what_is_refused(maps, tmp_path):
    truth, _ = maps
    with label_map_dataset("sem_bad", tmp_path, truth, NAMES, is_novel=[True]) as records:
        with pytest.raises(OVDError, match="marks 1 classes in is_novel"):
            OpenVocabSemSegEvaluator("sem_bad")
        evaluator = OpenVocabSemSegEvaluator("sem_bad", is_novel=[False] * 4)
        evaluator.reset()
        with pytest.raises(OVDError, match=r"shape \(3, 5, 7\) for 0.jpg, .* wants \(4, 5, 7\)"):
            evaluator.process(records[:1], [{"sem_seg": torch.zeros(3, 5, 7)}])
        with pytest.raises(OVDError, match="asks for label maps, which the model does not give"):
            evaluator.process(records[:1], [{"instances": None}])
    with label_map_dataset("sem_bad", tmp_path, truth, NAMES[:2]) as records:
        evaluator = OpenVocabSemSegEvaluator("sem_bad")
        evaluator.reset()
        with pytest.raises(OVDError, match="sem_bad_0.png holds the value 2, .* has 2 classes"):
            evaluator.process(records[:1], [{"sem_seg": torch.zeros(2, 5, 7)}])
    with (
        label_map_dataset("sem_bad", tmp_path, truth, []),
        pytest.raises(OVDError, match="'sem_bad' has no stuff_classes"),
    ):
        OpenVocabSemSegEvaluator("sem_bad")


def test_perfect_on_mini(mini_root):
    """Maps that no file holds, and names of two lengths: background is neither base nor novel."""
    from ovd_d2.data.datasets.semantic import read_label_map

    records = DatasetCatalog.get("mini_v1_sem_seg_val")[:30]
    evaluator = OpenVocabSemSegEvaluator("mini_v1_sem_seg_val", absent="nan")
    evaluator.reset()
    for record in records:
        truth = read_label_map(record, 161)
        evaluator.process([record], [{"sem_seg": scores_of(truth, 161)}])
    found = evaluator.evaluate()["sem_seg"]
    assert (found["mIoU"], found["mIoU_base"], found["mIoU_novel"]) == (100, 100, 100)
    assert found["hIoU"] == 100
