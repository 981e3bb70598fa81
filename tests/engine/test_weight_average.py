"""SOLVER.EMA: what is averaged, saved, evaluated and resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_detector import (
    assert_same_weights,
    register,
    run_trainer,
    tiny_config,
    weights,
    write_dataset,
)

from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.engine.config_rules import check_values
from ovd_d2.engine.weight_average import WeightAverage
from ovd_d2.errors import OVDError

GOLDEN = Path(__file__).parents[1] / "golden" / "mavl" / "losses.npz"
EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.7)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_dataset(folder)
    return folder


@pytest.fixture(autouse=True)
def _registered(data):
    torch.set_num_threads(1)
    register(data)


class Recording(OpenVocabTrainer):
    """Keeps the trained weights before the first and after every step, and what was evaluated."""

    def before_train(self):
        super().before_train()
        self.seen = [clone(self.model)]
        self.evaluated = []

    def run_step(self):
        super().run_step()
        self.seen.append(clone(self.model))

    def _evaluate(self):
        self._last_eval_results = {}
        with self.with_saved_weights():
            self.evaluated.append(clone(self.model))
        return {}


def clone(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_a_step_is_the_public_code_s():
    numbers = {k: torch.tensor(v) for k, v in np.load(GOLDEN).items() if k.startswith("ema.")}
    model = torch.nn.Linear(3, 2, bias=False)
    model.weight.data = numbers["ema.before"].clone()
    average = WeightAverage(model, 0.9998)
    average.before_train()
    model.weight.data = numbers["ema.model"].clone()
    average.after_step()
    assert torch.equal(model.weight, numbers["ema.model"])
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), numbers["ema.after"])
    assert torch.equal(model.weight, numbers["ema.model"])


def test_the_average_is_saved_and_evaluated_and_the_weights_train_on(tmp_path):
    plain = run_trainer(tiny_config(tmp_path / "plain"), trainer_class=Recording)
    found = run_trainer(
        tiny_config(tmp_path / "ema", *EMA, "TEST.EVAL_PERIOD", 3), trainer_class=Recording
    )
    assert_same_weights(plain.seen[-1], found.seen[-1])  # training does not notice
    assert_same_weights(clone(found.model), found.seen[-1])
    saved = weights(tmp_path / "ema/model_final.pth")
    for name, first in found.seen[0].items():
        wanted = first
        if first.is_floating_point():
            for after in found.seen[1:]:
                wanted = 0.7 * wanted + 0.3 * after[name]
        else:
            wanted = found.seen[-1][name]
        torch.testing.assert_close(saved[name], wanted, rtol=1e-5, atol=1e-6, msg=name)
    assert len(found.evaluated) == 2
    assert_same_weights(found.evaluated[-1], saved)
    periodic = weights(tmp_path / "ema/model_0000003.pth")
    assert any(not torch.equal(periodic[name], found.seen[4][name]) for name in periodic)


def test_a_resumed_run_ends_with_the_same_average(tmp_path):
    class Stopping(OpenVocabTrainer):
        def run_step(self):
            if self.iter == 5:
                raise KeyboardInterrupt
            super().run_step()

    run_trainer(tiny_config(tmp_path / "whole", *EMA))
    cfg = tiny_config(tmp_path / "parts", *EMA)
    with pytest.raises(KeyboardInterrupt):
        run_trainer(cfg, trainer_class=Stopping)
    resumed = run_trainer(cfg, resume=True)
    assert resumed.start_iter == 4
    whole, parts = (tmp_path / part / "model_final.pth" for part in ("whole", "parts"))
    assert_same_weights(weights(whole), weights(parts))
    trained = [
        torch.load(path, weights_only=True)["trainer"]["hooks"]["WeightAverage"]["weights"]
        for path in (whole, parts)
    ]
    assert_same_weights(*trained)
    assert any(not torch.equal(trained[0][name], weights(whole)[name]) for name in trained[0])


def test_frozen_parameters_cost_nothing():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    average = WeightAverage(model, 0.5)
    assert set(average.state_dict()["weights"]) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var",
    }  # fmt: skip


def test_what_is_refused(tmp_path):
    cfg = tiny_config(tmp_path, *EMA, "TEST.PRECISE_BN.ENABLED", True)
    with pytest.raises(OVDError, match="TEST.PRECISE_BN .* SOLVER.EMA .* set one of the two"):
        check_values(cfg)
    with pytest.raises(OVDError, match="SOLVER.EMA.DECAY is 1.0; it must be at least 0 and below"):
        check_values(tiny_config(tmp_path, "SOLVER.EMA.DECAY", 1.0))
