"""The linear probe and few-shot protocol, and their command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import probe_report as probe_report_module
from ovd_d2.evaluation.labelled_crops import load_labelled_crops
from ovd_d2.evaluation.linear_probe import (
    MOST_FITS,
    few_shot_probe,
    few_shot_rows,
    fit_logistic_regression,
    linear_probe,
    search_strength,
)


def clusters(count, classes=4, dim=8, noise=0.6, seed=0):
    """Rows around one centre per class; the same centres for every seed."""
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return centers[labels] + noise * rng.normal(size=(count, dim)), labels


def test_logistic_regression_minimises_clips_objective():
    """C * sum of cross entropies + half the squared norm of the weights, by plain Newton-free
    gradient descent in torch."""
    features, labels = clusters(60)
    strength = 0.7
    model = fit_logistic_regression(features, labels, strength)
    x, y = torch.tensor(features), torch.tensor(labels)
    weight = torch.zeros(4, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        errors = nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="sum")
        value = strength * errors + 0.5 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    np.testing.assert_allclose(model.coef_, weight.detach().numpy(), atol=5e-3)


def test_search_finds_the_best_of_the_grid_and_asks_each_once():
    asked = []

    def score(strength):
        asked.append(strength)
        return -abs(np.log10(strength) - 0.87)

    best, _ = search_strength(score)
    assert np.log10(best) == pytest.approx(0.875)  # 8 steps per decade
    assert len(asked) == len(set(asked)) <= 15
    assert np.log10(min(asked)) == -6 and np.log10(max(asked)) == 6
    assert search_strength(lambda strength: 1.0)[0] == pytest.approx(1e-6)
    assert search_strength(lambda strength: strength)[0] == pytest.approx(1e6)


def test_probe_learns_and_uses_validation_only_to_refit_if_asked():
    train, validation, test = (clusters(n, seed=s) for n, s in ((80, 1), (40, 2), (400, 3)))
    fits = []
    found = linear_probe(train, validation, test, note_fit=lambda: fits.append(1))
    assert 85 < found["top1"] <= 100 and 1e-6 <= found["C"] <= 1e6
    assert 7 < len(fits) <= MOST_FITS == 16
    shuffled = (validation[0], np.roll(validation[1], 1))
    assert linear_probe(train, shuffled, test, refit_on_both=False)["validation_top1"] < 60


def test_features_of_any_scale_give_the_same_answer():
    splits = [clusters(60, seed=s) for s in (1, 2, 3)]
    large = [(x * 1e4, y) for x, y in splits]
    assert linear_probe(*splits)["top1"] == linear_probe(*large)["top1"]


def test_few_shots_are_balanced_seeded_and_counted():
    labels = np.array([0, 1, 2] * 5)
    rows = few_shot_rows(labels, 2, seed=0)
    assert np.bincount(labels[rows]).tolist() == [2, 2, 2] and len(set(rows)) == 6
    assert (rows == few_shot_rows(labels, 2, seed=0)).all()
    assert not (rows == few_shot_rows(labels, 2, seed=1)).all()
    with pytest.raises(OVDError, match="class number 0 has 5 training images"):
        few_shot_rows(labels, 6, seed=0)


def test_more_shots_help():
    train, validation, test = (
        clusters(n, noise=1.2, seed=s) for n, s in ((80, 1), (80, 2), (400, 3))
    )
    curve = few_shot_probe(train, validation, test, shots=(1, 16), seeds=(0, 1))
    assert curve[16]["top1"] > curve[1]["top1"] + 5
    assert len(curve[1]["runs"]) == 2 and curve[1]["spread"] >= 0


def test_one_class_is_refused():
    with pytest.raises(OVDError, match="at least two classes"):
        fit_logistic_regression(np.zeros((3, 2)), np.zeros(3), 1.0)


@pytest.fixture
def folder(tmp_path):
    """Three colours, told apart by any features."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3), ("test", 3)):
        for name, colour in (
            ("red", (200, 30, 30)),
            ("green", (30, 200, 30)),
            ("sky", (30, 90, 220)),
        ):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 20, (40, 30, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def tiny_clip(tmp_path_factory):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "language"))
    import tiny_clip_models

    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny_clip_models.openai_clip_model().state_dict(), path)
    return f"openai-clip:{path}"


def test_command_on_a_folder(folder, tiny_clip, capsys, monkeypatch):
    monkeypatch.setenv("OVD_D2_CACHE", str(folder / "cache"))
    out = folder / "deep" / "report.json"
    arguments = ["clip", "probe", "--model", tiny_clip, "--folder", str(folder), "--shots", "1,4",
                 "--seeds", "2", "--out", str(out), "--prompts", "photo",
                 "--prompts", "vild63"]  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code in (0, None)
    report = json.loads(out.read_text())
    assert report["linear_probe"]["top1"] == 100 and report["few_shot"]["4"]["top1"] == 100
    assert set(report["zero_shot"]) == {"photo", "vild63"}
    assert report["data"]["test"]["images"] == 9
    table = capsys.readouterr().out
    for text in ("zero-shot, prompts vild63", "linear probe", "4 per class", str(out)):
        assert text in table


def test_too_many_shots_are_refused_before_anything_is_encoded(folder, monkeypatch):
    def encode(*_):
        raise AssertionError("an image was encoded")

    monkeypatch.setattr(probe_report_module, "encode_crops", encode)
    names = {name: str(folder / name) for name in ("train", "test")}
    with pytest.raises(OVDError, match="fewer than the 999999 shots"):
        probe_report_module.probe_report(
            None, **names, validation=str(folder / "val"), shots=(1, 999999)
        )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shots", "1,x"], "--shots 1,x"),
        (["--shots", "0"], "at least 1"),
        (["--shots", "9"], "fewer than the 9 shots"),
        (["--folder", "/nowhere"], "/nowhere/train"),
        (["--test", "mini_v1_val"], "has no labelled images"),
    ],
)
def test_bad_input_is_exit_code_2(folder, tiny_clip, capsys, extra, message, mini_root):
    splits = ["--train", str(folder / "train"), "--validation", str(folder / "val"),
              "--test", str(folder / "test")]  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main(["clip", "probe", "--model", tiny_clip, *splits, *extra])
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_folder_of_classes(folder):
    crops = load_labelled_crops(str(folder / "val"))
    assert crops.vocabulary.names == ("green", "red", "sky")
    assert crops.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    with pytest.raises(OVDError, match="holds no image"):
        load_labelled_crops(str(folder / "val" / "red"))


def test_splits_with_different_classes_are_refused(folder, tiny_clip):
    from ovd_d2.encoders import build_image_text_model
    from ovd_d2.evaluation.probe_report import probe_report

    (folder / "test" / "sky").rename(folder / "test" / "sea")
    with pytest.raises(OVDError, match="different classes"):
        probe_report(
            build_image_text_model(tiny_clip), train=str(folder / "train"),
            validation=str(folder / "val"), test=str(folder / "test"),
        )  # fmt: skip
