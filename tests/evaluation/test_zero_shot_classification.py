"""Top-1 and top-5 per split, from logits or embeddings, with ties, nan and empty splits."""

import logging
import math

import numpy as np
import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.zero_shot_classification import (
    ZeroShotClassificationEvaluator,
    ensemble_prompts,
)


def evaluate(labels, outputs, num_classes, **options):
    names = [f"class {i}" for i in range(num_classes)]
    evaluator = ZeroShotClassificationEvaluator(names, distributed=False, **options)
    evaluator.process([{"label": label} for label in labels], outputs)
    results = evaluator.evaluate()
    return results.get("classification", results)


def test_against_a_plain_transcription():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 12, generator=generator)
    labels = torch.randint(0, 12, (200,), generator=generator)
    is_novel = [i % 3 == 0 for i in range(12)]
    logits[torch.arange(200), labels] += 1.0
    metrics = evaluate(labels.tolist(), [{"logits": x} for x in logits], 12, is_novel=is_novel)
    order = logits.argsort(dim=1, descending=True)
    novel = np.array(is_novel)[labels]
    for k in (1, 5):
        hit = np.array([label in row[:k] for label, row in zip(labels, order)])
        assert metrics[f"top{k}"] == pytest.approx(100 * hit.mean(), abs=1e-4)
        assert metrics[f"top{k}_novel"] == pytest.approx(100 * hit[novel].mean(), abs=1e-4)
        assert metrics[f"top{k}_base"] == pytest.approx(100 * hit[~novel].mean(), abs=1e-4)
    hit = (order[:, 0] == labels).float()
    mean_class = np.mean([hit[labels == c].mean() for c in range(12)])
    assert metrics["mean_class_top1"] == pytest.approx(100 * mean_class, abs=1e-4)
    assert 0 < metrics["top1"] < metrics["top5"] < 100


def test_embeddings_of_any_scale_give_cosine_similarity():
    classes = torch.eye(6)[:, :4] + 0.1
    images = [{"image_embedding": 37.0 * classes[i]} for i in range(4)]
    scaled = classes * torch.arange(1, 7)[:, None]
    metrics = evaluate([0, 1, 2, 3], images, 6, class_embeddings=scaled)
    assert metrics["top1"] == 100


def test_prompt_ensemble_normalises_before_and_after_the_mean():
    prompts = torch.tensor([[[100.0, 0.0]], [[0.0, 1.0]]])  # P = 2, K = 1
    found = ensemble_prompts(prompts)
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5]]))
    single = ensemble_prompts(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(single, torch.tensor([[0.6, 0.8]]))


def test_prompt_ensemble_in_the_evaluator():
    prompts = torch.stack([torch.eye(3), torch.eye(3)[[0, 2, 1]], torch.eye(3)])
    images = [{"image_embedding": row} for row in torch.eye(3)]
    assert evaluate([0, 1, 2], images, 3, class_embeddings=prompts)["top1"] == 100
    wrong = evaluate([0, 1, 2], images, 3, class_embeddings=prompts[1])
    assert wrong["top1"] == pytest.approx(100 / 3)


def test_ties_and_nan_get_no_credit():
    flat, broken = torch.zeros(10), torch.full((10,), math.nan)
    for logits in (flat, broken):
        metrics = evaluate([0, 9], [{"logits": logits}] * 2, 10)
        assert metrics["top1"] == metrics["top5"] == 0
    half = torch.tensor([1.0, 1.0, 0.0])
    assert evaluate([0], [{"logits": half}], 3)["top1"] == 0


def test_fewer_than_five_classes_and_one_class():
    metrics = evaluate([0, 1], [{"logits": torch.tensor([0.0, 1.0])}] * 2, 2)
    assert (metrics["top1"], metrics["top5"]) == (50, 100)
    assert evaluate([0], [{"logits": torch.zeros(1)}], 1)["top1"] == 100


def test_empty_splits_are_nan_and_unlabelled_images_are_left_out(caplog):
    logits = [{"logits": torch.tensor([1.0, 0.0])}] * 2
    with caplog.at_level(logging.INFO):
        metrics = evaluate([0, -1], logits, 2, is_novel=[False, True])
    assert metrics["top1"] == metrics["top1_base"] == 100
    assert math.isnan(metrics["top1_novel"]) and math.isnan(metrics["top5_novel"])
    assert "| novel" in caplog.text
    assert "top1_base" not in evaluate([0], logits[:1], 2)
    assert evaluate([-1], logits[:1], 2) == {}


def test_reset_forgets():
    evaluator = ZeroShotClassificationEvaluator(["a", "b"], distributed=False)
    evaluator.process([{"label": 0}], [{"logits": torch.tensor([0.0, 1.0])}])
    evaluator.reset()
    evaluator.process([{"label": 1}], [{"logits": torch.tensor([0.0, 1.0])}])
    assert evaluator.evaluate()["classification"]["top1"] == 100


def test_gathers_from_all_processes(monkeypatch):
    evaluator = ZeroShotClassificationEvaluator(["a", "b"])
    evaluator.process([{"label": 0}], [{"logits": torch.tensor([0.0, 1.0])}])
    comm = "ovd_d2.evaluation.zero_shot_classification.comm"
    monkeypatch.setattr(f"{comm}.gather", lambda data, dst: [data, [(1, 0), (1, 0), (0, 0)]])
    assert evaluator.evaluate()["classification"]["top1"] == 75
    monkeypatch.setattr(f"{comm}.is_main_process", lambda: False)
    assert evaluator.evaluate() is None


def test_wrong_input_is_one_sentence():
    with pytest.raises(OVDError, match="class_embeddings has 2 classes but there are 3"):
        evaluate([], [], 3, class_embeddings=torch.eye(2))
    with pytest.raises(OVDError, match="is_novel has 1 classes"):
        evaluate([], [], 3, is_novel=[True])
    with pytest.raises(OVDError, match="not finite"):
        evaluate([], [], 1, class_embeddings=torch.tensor([[math.nan, 1.0]]))
    with pytest.raises(OVDError, match="logits has 2 classes"):
        evaluate([0], [{"logits": torch.zeros(2)}], 3)
    with pytest.raises(OVDError, match="has the label 3 but there are 3 classes"):
        evaluate([3], [{"logits": torch.zeros(3)}], 3)
    with pytest.raises(OVDError, match="pass class_embeddings"):
        evaluate([0], [{"image_embedding": torch.ones(2)}], 3)
    with pytest.raises(OVDError, match=r"shape \(2,\) but the class embeddings have width 3"):
        evaluate([0], [{"image_embedding": torch.ones(2)}], 3, class_embeddings=torch.eye(3))
