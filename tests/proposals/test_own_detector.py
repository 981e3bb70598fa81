"""A detector of ours as the finder of boxes: random weights, all parts real."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "inference"))

from random_models import (  # noqa: F401  (fixtures)
    checkpoint,
    config,
    make_pixels,
    text_cache,
    text_cache_folder,
)

from ovd_d2.errors import OVDError
from ovd_d2.inference.predictor import OpenVocabPredictor
from ovd_d2.language import Vocabulary
from ovd_d2.modeling.roi_heads import blocked_scoring
from ovd_d2.proposals.build import build_label_proposer
from ovd_d2.proposals.own_detector import DetectedLabels, best_of_classes

VOCABULARY = Vocabulary.from_names(["cat", "red mug", "traffic light", "tie", "bus"])
SIZE = (70, 120)


def image(seed=0):
    return torch.from_numpy(make_pixels(*SIZE, seed)).permute(2, 0, 1)


def test_each_label_gets_its_highest_scored_box(checkpoint):  # noqa: F811
    """Against the detector's own detections without threshold and with next to no NMS."""
    source = DetectedLabels(str(checkpoint), VOCABULARY)
    assert source.name.startswith(f"model:{checkpoint.parent.name}/model_final.pth@")
    predictor = OpenVocabPredictor(
        checkpoint.with_name("config.yaml"), checkpoint, vocabulary=VOCABULARY, device="cpu",
        score_threshold=0.0, topk=5000,
    )  # fmt: skip
    pixels = make_pixels(*SIZE, 3)
    expected = predictor.predict(pixels[:, :, ::-1])
    found = source({}, image(3), (4, 1, 0))
    assert len(found) == 3
    for k, (boxes, scores) in zip((4, 1, 0), found):
        best = expected[expected.pred_classes == k]
        torch.testing.assert_close(scores[0], best.scores.max())
        torch.testing.assert_close(boxes[0], best.pred_boxes.tensor[best.scores.argmax()])
        assert (scores.diff() <= 0).all() and len(boxes) <= 50
        assert (boxes[:, 2:] <= torch.tensor([120.0, 70])).all() and (boxes >= 0).all()


def test_labels_of_very_many(checkpoint, monkeypatch):  # noqa: F811
    source = DetectedLabels(str(checkpoint), VOCABULARY)
    tables = source({}, image(3), (4, 1, 0))
    monkeypatch.setattr(blocked_scoring, "MOST_DENSE_CLASSES", 4)
    monkeypatch.setattr(type(source._model.roi_heads), "boxes_and_scores", lambda *_: 1 / 0)
    for one, two in zip(tables, source({}, image(3), (4, 1, 0)), strict=True):
        assert torch.equal(one[0], two[0])
        torch.testing.assert_close(one[1], two[1], rtol=1e-5, atol=0)
    assert source({}, image(3), ()) == []


def test_the_wanted_labels_do_not_change_each_other(checkpoint):  # noqa: F811
    source = DetectedLabels(str(checkpoint), VOCABULARY)
    together = source({}, image(), (0, 2, 3))
    assert source({}, image(), ()) == []
    for k, (boxes, scores) in zip((0, 2, 3), together):
        ((alone, alone_scores),) = source({}, image(), (k,))
        assert torch.equal(boxes, alone) and torch.equal(scores, alone_scores)


def test_best_of_classes_on_hard_inputs():
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 1, 99, 8], [float("nan"), 0, 1, 1], [0, 0, 5, 5]])
    scores = torch.tensor([[0.1, 0.9, 0.3, 0], [0.2, 0, 0.2, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    third, first = best_of_classes(boxes, scores, (2, 0), (20, 30))
    assert third.image_size == (20, 30)
    assert third.scores.tolist() == pytest.approx([0.3, 0.2, 0])
    assert first.scores.tolist() == pytest.approx([0.2, 0.1, 0])
    assert first.pred_boxes.tensor.tolist() == [[1, 1, 30, 8], [0, 0, 9, 9], [0, 0, 5, 5]]
    assert best_of_classes(boxes, scores, (), (20, 30)) == []
    (none,) = best_of_classes(boxes[:0], scores[:0], (1,), (20, 30))
    assert len(none) == 0
    many = torch.rand(80, 4)
    (some,) = best_of_classes(many, many, (1,), (1, 1))
    assert torch.equal(some.scores, many[:, 1].sort(descending=True).values[:50])


def test_a_run_folder_will_do_and_a_config_can_be_given(checkpoint, tmp_path):  # noqa: F811
    folder = DetectedLabels(str(checkpoint.parent), VOCABULARY)
    given = DetectedLabels(
        str(checkpoint), VOCABULARY, config_file=str(checkpoint.with_name("config.yaml"))
    )
    assert ", config config.yaml@" in given.name and given.name.startswith(folder.name)
    (boxes, _), (same, _) = (source({}, image(), (1,))[0] for source in (folder, given))
    assert torch.equal(boxes, same)
    for bad in (tmp_path / "model_final.pth", tmp_path):
        with pytest.raises(OVDError, match=r"--detector model:.* needs .*which does not exist"):
            build_label_proposer(f"model:{bad}", VOCABULARY, ())


def test_weights_of_another_model_are_refused(checkpoint, tmp_path):  # noqa: F811
    state = torch.load(checkpoint, weights_only=True)["model"]
    (tmp_path / "config.yaml").write_text(checkpoint.with_name("config.yaml").read_text())
    lost = next(key for key in state if key.startswith("roi_heads.box_head"))
    torch.save({"model": {k: v for k, v in state.items() if k != lost}}, tmp_path / "model.pth")
    with pytest.raises(OVDError, match=r"lacks 1 of .* such as roi_heads"):
        DetectedLabels(str(tmp_path / "model.pth"), VOCABULARY)


def test_a_closed_set_model_is_refused(tmp_path):
    from tiny_detector import tiny_config

    (tmp_path / "config.yaml").write_text(tiny_config(tmp_path).dump())
    torch.save({"model": {}}, tmp_path / "model_final.pth")
    with pytest.raises(OVDError, match="has a fixed set of classes"):
        DetectedLabels(str(tmp_path), VOCABULARY)


def test_objects_are_the_rpn_s(checkpoint):  # noqa: F811
    source = build_label_proposer(f"model:{checkpoint}", None, ())
    ((boxes, scores),) = source({}, image())
    assert 1 <= len(boxes) <= 300 and (scores.diff() <= 0).all() and source.name.endswith(", RPN")
