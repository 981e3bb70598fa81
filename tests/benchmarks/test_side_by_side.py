"""Processes side by side: order, limits, failures, and none left behind."""

import os
import sys
import time

import pytest

from ovd_d2.benchmarks.recipes.processes import Job, run_side_by_side


def job(tmp_path, name, code):
    return Job(name, [sys.executable, "-c", code], tmp_path / f"logs/{name}.txt")


def run(jobs, tmp_path, at_once, **options):
    run_side_by_side(
        jobs,
        at_once=at_once,
        folder=tmp_path,
        environment={"OVD_TEST": "x"},
        period=0.02,
        **options,
    )


def test_never_more_than_allowed_and_all_end(tmp_path):
    jobs = [job(tmp_path, f"j{i}", "import time; time.sleep(0.2)") for i in range(5)]
    most = []
    run(jobs, tmp_path, 2, watch=lambda: most.append(sum(j.running for j in jobs)))
    assert max(most) == 2
    assert most[-1] == 0
    assert [j.exit_code for j in jobs] == [0] * 5
    assert all(j.seconds >= 0.2 for j in jobs)


def test_output_folder_and_environment(tmp_path):
    code = "import os; print(os.getcwd(), os.environ['OVD_TEST'], 'PATH' in os.environ)"
    run([job(tmp_path, "a", code)], tmp_path, 1)
    assert (tmp_path / "logs/a.txt").read_text() == f"{tmp_path} x True\n"


def test_a_failure_does_not_stop_the_others(tmp_path):
    jobs = [job(tmp_path, "bad", "raise SystemExit(3)"), job(tmp_path, "good", "print('fine')")]
    run(jobs, tmp_path, 1)
    assert [j.exit_code for j in jobs] == [3, 0]


def test_each_end_is_told_at_once(tmp_path):
    jobs = [job(tmp_path, "slow", "import time; time.sleep(1)"), job(tmp_path, "bad", "exit(3)")]
    told = []
    run(
        jobs, tmp_path, 2,
        ended=lambda one: told.append((one.name, one.exit_code, jobs[0].running)),
    )  # fmt: skip
    assert told == [("bad", 3, True), ("slow", 0, False)]


def test_an_interrupt_leaves_no_process(tmp_path):
    endless = job(
        tmp_path, "endless", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    )
    log = endless.log_file

    def interrupt():
        if log.exists() and log.read_text().endswith("\n"):
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run([endless], tmp_path, 1, watch=interrupt)
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
