"""The few-shot metric: the public code's numbers, and what a model may give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.label_map_datasets import label_map_dataset
from modeling.two_processes import in_two_processes

from ovd_d2.errors import OVDError
from ovd_d2.evaluation import FewShotSegmentationEvaluator

GOLDEN = np.load(Path(__file__).parents[1] / "golden/segmentation/lseg_metrics.npz")

CAT = {"few_shot_class": 1, "class_names": ("others", "cat"), "label_values": "one:1"}


def golden_set(benchmark, folder):
    """The data set of a benchmark's golden numbers, and its predictions."""
    own = GOLDEN[f"{benchmark}.class_ids_of_interest"].tolist()
    numbers = [own.index(c) + 1 for c in GOLDEN[f"{benchmark}.class_id"].tolist()]
    truth = GOLDEN[f"{benchmark}.gt"].copy()
    if benchmark == "pascal":
        truth[GOLDEN["pascal.ignore"] == 1] = 255
    names = ["others", *(f"c{c}" for c in own)]
    extra = [
        {"few_shot_class": n, "class_names": ("others", names[n]), "label_values": "one:1:255"}
        for n in numbers
    ]
    dataset = label_map_dataset(f"few_{benchmark}", folder, truth, names, extra, ignore_label=255)
    return dataset, GOLDEN[f"{benchmark}.pred"], names


def outputs_of(predictions, records, num_classes):
    """Scores of all classes: those that are not asked for win everywhere, and do not count."""
    outputs = []
    for labels, record in zip(predictions, records):
        scores = torch.full((num_classes, *labels.shape), 9.0)
        scores[0] = 0.5
        scores[record["few_shot_class"]] = torch.from_numpy(labels).float()
        outputs.append({"sem_seg": scores})
    return outputs


@pytest.mark.parametrize("benchmark", ["pascal", "coco", "fss"])
@pytest.mark.parametrize("two", [False, True])
def test_same_as_the_public_code(benchmark, two, tmp_path):
    dataset, predictions, names = golden_set(benchmark, tmp_path)
    with dataset as records:
        evaluator = FewShotSegmentationEvaluator(f"few_{benchmark}")
        outputs = outputs_of(predictions, records, len(names))
        if two:  # a model that scores an image's own class alone
            outputs = [
                {"sem_seg": o["sem_seg"][[0, r["few_shot_class"]]]}
                for o, r in zip(outputs, records)
            ]
        evaluator.process(records, outputs)
        found = evaluator.evaluate()["sem_seg"]
    inter, union = (GOLDEN[f"{benchmark}.{key}"].astype(np.float64) for key in ("inter", "union"))
    ids = GOLDEN[f"{benchmark}.class_id"]
    own = GOLDEN[f"{benchmark}.class_ids_of_interest"]
    iou = [inter[ids == c, 1].sum() / max(union[ids == c, 1].sum(), 1) for c in own]
    assert abs(found["mIoU"] - 100 * np.mean(iou)) < 1e-9
    assert abs(found["FB-IoU"] - 100 * (inter.sum(0) / union.sum(0)).mean()) < 1e-9
    for key, golden in (("mIoU", "miou"), ("FB-IoU", "fb_iou")):
        np.testing.assert_allclose(found[key], GOLDEN[f"{benchmark}.{golden}"], rtol=2e-7)
    assert len(found) == 2 + len(own)


def test_an_episode_that_comes_twice_counts_twice(tmp_path):
    truth = np.array([[[1, 1, 0, 0]], [[1, 1, 1, 0]]])
    extra = [CAT] * 2
    with label_map_dataset("few_twice", tmp_path, truth, ["others", "cat"], extra,
                           ignore_label=255) as records:  # fmt: skip
        evaluator = FewShotSegmentationEvaluator("few_twice")
        episodes = [records[0], records[0], records[1]]
        outputs = outputs_of([np.array([[1, 0, 0, 0]])] * 3, episodes, 2)
        evaluator.process(episodes, outputs)
        assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100 * 3 / 7)


def test_maps_are_brought_to_the_size_of_the_scores(tmp_path):
    truth = np.zeros((1, 4, 4), int)
    truth[0, :2, :2] = 1
    extra = [CAT]
    with label_map_dataset("few_size", tmp_path, truth, ["others", "cat"], extra,
                           ignore_label=255) as records:  # fmt: skip
        evaluator = FewShotSegmentationEvaluator("few_size")
        evaluator.process(
            records, outputs_of([np.kron([[1, 0], [0, 0]], np.ones((3, 3)))], records, 2)
        )
        assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
        with pytest.raises(OVDError, match="scores of 3 classes .* has 2"):
            evaluator.process(records, [{"sem_seg": torch.zeros(3, 4, 4)}])
        with pytest.raises(OVDError, match="scores of 0 classes"):
            evaluator.process(records, [{"instances": None}])


def test_counts_of_two_processes_are_added(tmp_path):
    dataset, predictions, names = golden_set("pascal", tmp_path)
    with dataset as records:
        outputs = outputs_of(predictions, records, len(names))

        def share(rank):
            evaluator = FewShotSegmentationEvaluator("few_pascal")
            evaluator.process(records[rank::2], outputs[rank::2])
            return evaluator.evaluate() or {}

        both, other = in_two_processes(share, tmp_path)
        alone = FewShotSegmentationEvaluator("few_pascal")
        alone.process(records, outputs)
        assert (both, other) == (alone.evaluate(), {})
