"""Metrics files that were cut short, and the progress bar."""

import io
import json
import sys
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from ovd_d2.engine.hooks import ProgressBar, build_writers, repair_metrics


@given(cut=st.integers(0, 200), start=st.integers(0, 8))
def test_metrics_cut_anywhere(tmp_path_factory, cut, start):
    path = tmp_path_factory.mktemp("metrics") / "metrics.json"
    content = "".join(json.dumps({"iteration": i, "loss": i / 7}) + "\n" for i in range(6))
    path.write_text(content[:cut])
    whole = content[:cut].count("\n")
    if content[:cut] and content[:cut].endswith("}"):
        whole += 1  # complete but for its newline
    repair_metrics(str(path), start)
    lines = path.read_text().splitlines(keepends=True)
    assert all(line.endswith("}\n") for line in lines)
    kept = [json.loads(line)["iteration"] for line in lines]
    assert kept == [i for i in range(whole) if start == 0 or i < start]


def test_no_metrics_yet(tmp_path):
    repair_metrics(str(tmp_path / "metrics.json"), 3)
    assert not list(tmp_path.iterdir())


def test_tensorboard_only_where_installed(tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = [type(writer).__name__ for writer in build_writers(str(tmp_path / "new"), 5, 0)]
    assert names == ["CommonMetricPrinter", "JSONWriter"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_bar(iterations):
    bar = ProgressBar()
    bar.trainer = SimpleNamespace(
        max_iter=10, start_iter=4, storage=SimpleNamespace(latest=lambda: {"total_loss": (0.5, 4)})
    )
    bar.before_train()
    for _ in range(iterations):
        bar.after_step()
    bar.after_train()


def test_progress_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    run_bar(6)
    last = terminal.getvalue().replace("\r", "\n").strip().splitlines()[-1]
    assert "10/10" in last
    assert "loss 0.5" in last
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run_bar(6)
    assert sys.stderr.getvalue() == ""
