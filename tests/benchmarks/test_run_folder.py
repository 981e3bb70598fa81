"""Reading what a run has left, whole or cut off."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovd_d2.benchmarks.recipes.run_folder import (
    Progress,
    find_predictions,
    read_metrics,
    read_progress,
    read_results,
)
from ovd_d2.config_file import config_digest
from ovd_d2.errors import OVDError


def write_metrics(folder, *iterations):
    lines = [
        json.dumps({"iteration": i, "total_loss": 1 + 1 / (i + 1), "time": 0.5}) for i in iterations
    ]
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")


def test_metrics_without_the_line_that_a_kill_cut_off(tmp_path):
    write_metrics(tmp_path, 19, 39)
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 59, "total_')
    assert [record["iteration"] for record in read_metrics(tmp_path)] == [19, 39]
    assert read_metrics(tmp_path / "nowhere") == []


def test_phases(tmp_path):
    log = tmp_path / "log"
    assert read_progress(tmp_path, log) == Progress()
    (tmp_path / "config.yaml").write_text("SOLVER:\n  MAX_ITER: 100\n")
    assert read_progress(tmp_path, log) == Progress("starting", 0, 100)
    write_metrics(tmp_path, 19, 39)
    log.write_text(" eta: 0:00:30  iter: 39  total_loss: 2\n")
    assert read_progress(tmp_path, log) == Progress("training", 40, 100, 1.025, 30.0)
    write_metrics(tmp_path, 19, 39, 99)
    assert read_progress(tmp_path, log) == Progress("evaluating", 0, 0, 1.01, None)
    with open(log, "a") as file:
        file.write("Inference done 11/400. Dataloading: 0.1 s/iter. ETA=0:01:05\n")
        file.write("Inference done 71/400. Dataloading: 0.1 s/iter. ETA=1 day, 0:00:55\n")
    assert read_progress(tmp_path, log) == Progress("evaluating", 71, 400, 1.01, 86455.0)


def test_training_goes_on_after_an_evaluation_in_between(tmp_path):
    write_metrics(tmp_path, 19)
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 100}")
    (tmp_path / "log").write_text("Inference done 400/400. ETA=0:00:00\n eta: 0:01  iter: 19  \n")
    assert read_progress(tmp_path, tmp_path / "log").phase == "training"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_no_progress_and_no_result(tmp_path, garbage):
    for name in ("metrics.json", "config.yaml", "log", "results.json"):
        (tmp_path / name).write_bytes(garbage)
    read_progress(tmp_path, tmp_path / "log")
    assert read_results(tmp_path) is None


def test_results(tmp_path):
    assert read_results(tmp_path) is None
    content = {"iteration": 20, "results": {"mini_v1_val": {"bbox": {"AP": 1.5}}}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert read_results(tmp_path) == (20, {"mini_v1_val": {"bbox": {"AP": 1.5}}})


def test_predictions(tmp_path):
    assert find_predictions(tmp_path) is None
    (tmp_path / "inference/some").mkdir(parents=True)
    file = tmp_path / "inference/some/coco_instances_results.json"
    file.touch()
    assert find_predictions(tmp_path) == file


def test_digest_sees_base_files_and_settings(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 1\n")
    config = tmp_path / "config.yaml"
    config.write_text("_BASE_: base.yaml\n")
    first = config_digest(config, ["A", "1"])
    assert first == config_digest(str(config), ("A", "1"))
    assert first != config_digest(config, ["A", "2"])
    (tmp_path / "base.yaml").write_text("SEED: 2\n")
    assert first != config_digest(config, ["A", "1"])
    config.write_text("_BASE_: [base.yaml, more.yaml]\n")  # several, as fvcore reads them
    (tmp_path / "more.yaml").write_text("_BASE_: base.yaml\n")
    several = config_digest(config)
    (tmp_path / "more.yaml").write_text("_BASE_: base.yaml\nSEED: 4\n")
    assert several != config_digest(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: nowhere.yaml", r"nowhere\.yaml does not exist"),
        ("_BASE_: config.yaml", "circle"),
        ("- a list", "is not a mapping of config keys"),
        ("a: [", "is not readable yaml"),
        ("!!python/object/apply:os.getcwd []", "a yaml tag that could run code"),
    ],
)
def test_digest_of_a_bad_config(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(OVDError, match=message):
        config_digest(tmp_path / "config.yaml")
