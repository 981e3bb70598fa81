"""Recipes run as commands a user could type: prepared, run side by side, resumed, collected."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ovd_d2 import __version__
from ovd_d2.benchmarks.recipes.processes import Job, run_side_by_side
from ovd_d2.benchmarks.recipes.run_folder import read_results
from ovd_d2.config_file import config_digest
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import write_json

RECORD = "run.json"  # in the folder of each run: digest of its settings, seconds, finished

Say = Callable[[str], None]
# Given the jobs and the folders of their runs: a context whose value is called again and again.
Watch = Callable[
    [Mapping[str, Job], Mapping[str, Path]], AbstractContextManager[Callable[[], None]]
]


@dataclass(frozen=True)
class Run:
    """One training with its evaluation, or an evaluation alone.

    Attributes:
        name: its folder's name, unique.
        title: what tables call it.
        config: yaml, relative to the checkout.
        folder: OUTPUT_DIR, relative to the checkout or absolute.
        settings: KEY value overrides.
        weights: evaluate these instead of training.
        inputs: texts that decide the outcome beside config and settings.
        processes: that a training is split over, by torchrun; they decide the outcome, too.
        digest: of everything that decides the outcome; set by :func:`prepare`.
    """

    name: str
    title: str
    config: str
    folder: Path
    settings: tuple[str, ...] = ()
    weights: str = ""
    inputs: tuple[str, ...] = field(default=(), repr=False)
    processes: int = 1
    digest: str = ""

    def command(self, *, resume: bool = False) -> list[str]:
        """What trains and evaluates it."""
        words = [sys.executable]
        if self.processes > 1:  # --standalone: at a port of its own
            words += ["-m", "torch.distributed.run", "--standalone"]
            words += ["--nproc-per-node", str(self.processes)]
        words += ["train_net.py", "--config-file", self.config]
        words += ["--eval-only", "MODEL.WEIGHTS", self.weights] if self.weights else []
        words += ["--resume"] if resume and not self.weights else []
        return [*words, "OUTPUT_DIR", str(self.folder), *self.settings]

    def record(self, root: Path) -> dict[str, Any]:
        """What an earlier call noted about this folder; empty if nothing."""
        try:
            return json.loads((root / self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def is_finished(self, root: Path) -> bool:
        """Whether the same run has ended well."""
        record = self.record(root)
        same = record.get("finished") and record.get("digest") == self.digest
        return bool(same) and read_results(root / self.folder) is not None

    def note(self, root: Path, seconds: float, *, finished: bool) -> None:
        """Writes what :meth:`record` reads; ``seconds`` of wall time in all."""
        content = {"digest": self.digest, "seconds": seconds, "finished": finished}
        write_json(root / self.folder / RECORD, content)


def find_checkout(what: str) -> Path:
    """The folder with train_net.py and configs: the current one, or the one ovd_d2 lies in.

    Args:
        what: the command that needs it, for the message.

    Raises:
        OVDError: neither is one.
    """
    for folder in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (folder / "train_net.py").is_file() and (folder / "configs/mini").is_dir():
            return folder
    raise OVDError(f"`{what}` needs train_net.py and configs/mini: run it in a checkout of ovd_d2.")


def seen_from(path: Path, root: Path) -> Path:
    """``path`` as seen from ``root`` if it lies below it, else absolute."""
    path = Path.cwd() / path.expanduser()
    return path.relative_to(root) if path.is_relative_to(root) else path


def show(words: Sequence[str], root: Path, say: Say, prefix: str = "") -> None:
    """Says a command so that it can be typed in ``root``."""
    program = os.path.relpath(words[0], root) if Path(words[0]).is_relative_to(root) else words[0]
    say(f"$ {prefix}{shlex.join([program, *words[1:]])}")


def run_in_foreground(words: Sequence[str], root: Path, say: Say) -> float:
    """Shows and runs a command; returns its seconds.

    Raises:
        OVDError: it failed.
    """
    show(words, root, say)
    started = time.monotonic()
    code = subprocess.run(words, cwd=root, check=False).returncode
    if code:
        raise OVDError(f"`{shlex.join(words)}` ended with exit code {code}; its message is above.")
    return time.monotonic() - started


def prepare(run: Run, root: Path, say: Say) -> Run:
    """Settles the run's digest; moves aside what other settings have left in its folder.

    Raises:
        OVDError: its config is missing or broken.
    """
    manifest = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets") / "mini-v1/manifest.json"
    data = (root / manifest).read_text(encoding="utf-8") if (root / manifest).is_file() else ""
    inputs = (*run.inputs, f"{run.processes} processes") if run.processes > 1 else run.inputs
    digest = config_digest(root / run.config, run.settings, run.weights, inputs, data, __version__)
    run = replace(run, digest=digest)
    folder = root / run.folder
    others = folder.is_dir() and any(folder.iterdir())
    if others and run.record(root).get("digest") != digest:
        aside = folder.with_name(f"{run.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
        say(f"{run.folder} held another run; it is now {aside.name}.")
    return run


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def perform(
    runs: Sequence[Run],
    *,
    at_once: int,
    root: Path,
    logs: Path,
    say: Say,
    watch: Watch,
    ended: Callable[[Run, float], None] = lambda run, seconds: None,
) -> None:
    """Runs what is not finished, ``at_once`` of them side by side (0: as many as cores).

    Args:
        runs: prepared.
        at_once: the processes of each get their share of the cores as threads.
        root: the checkout.
        logs: folder for the console output, one file per run.
        say: shows a line.
        watch: shows progress.
        ended: called with every run that has ended well, now or earlier, and its seconds in all.

    Raises:
        OVDError: a run failed; the end of its output is on stderr.
    """
    for run in runs:
        if run.is_finished(root):
            say(f"{run.name}: finished earlier, see {run.folder}")
            ended(run, run.record(root).get("seconds", 0))
    todo = [run for run in runs if not run.is_finished(root)]
    if not todo:
        return
    processes = max(run.processes for run in todo)
    at_once = min(at_once or max(1, cores() // processes), len(todo))
    threads = str(max(1, cores() // (at_once * processes)))
    jobs: dict[str, Job] = {}
    before: dict[str, float] = {}
    for run in todo:
        resume = (root / run.folder / "last_checkpoint").is_file()
        words = run.command(resume=resume)
        show(words, root, say, f"OMP_NUM_THREADS={threads} ")
        jobs[run.name] = Job(run.name, words, root / logs / f"{run.name}.txt")
        jobs[run.name].log_file.unlink(missing_ok=True)
        (root / run.folder).mkdir(parents=True, exist_ok=True)
        before[run.name] = run.record(root).get("seconds", 0)
        run.note(root, before[run.name], finished=False)
    named = {run.name: run for run in todo}

    def note(job: Job) -> None:
        seconds = before[job.name] + job.seconds
        named[job.name].note(root, seconds, finished=job.exit_code == 0)
        if job.exit_code == 0:
            ended(named[job.name], seconds)

    split = f"{processes} processes each, " if processes > 1 else ""
    say(f"{at_once} at once, {split}{threads} thread(s) each; output in {logs}")
    try:
        with watch(jobs, {run.name: root / run.folder for run in todo}) as look:
            run_side_by_side(
                list(jobs.values()),
                at_once=at_once,
                folder=root,
                environment={"OMP_NUM_THREADS": threads},
                watch=look,
                ended=note,
            )
    finally:
        for job in jobs.values():
            if job.exit_code is None:
                note(job)
    _explain_failures(list(jobs.values()))


def _explain_failures(jobs: Sequence[Job]) -> None:
    failed = [job for job in jobs if job.exit_code != 0]
    for job in failed:
        text = job.log_file.read_text(encoding="utf-8", errors="replace")
        end = "\n".join(text.splitlines()[-20:])
        sys.stderr.write(f"\n--- end of {job.log_file}\n{end}\n")
    if failed:
        names = ", ".join(f"{job.name} (exit code {job.exit_code})" for job in failed)
        raise OVDError(
            f"Training failed: {names}; the end of its output is above. The same command goes on "
            "from the last checkpoint."
        )


def collect(run: Run, root: Path) -> dict[str, Any]:
    """The summary of a finished run: title, AP per task, seconds, iterations, data set, command.

    Raises:
        OVDError: it has no readable results.
    """
    from ovd_d2.benchmarks.recipes.summary import summarise

    found = read_results(root / run.folder)
    if found is None:
        file = root / run.folder / "results.json"
        raise OVDError(f"{file} is missing or broken: remove {run.folder} and run again.")
    iteration, results = found
    with_boxes = [name for name, tasks in results.items() if "bbox" in tasks]
    dataset = (with_boxes or list(results))[-1]
    phrases = [tasks for tasks in results.values() if "phrase_grounding" in tasks][-1:]
    return {
        "title": run.title,
        **summarise({**results[dataset], **(phrases[0] if phrases else {})}),
        "seconds": round(run.record(root).get("seconds", 0), 1),
        "iterations": iteration,
        "dataset": dataset,
        "command": shlex.join(["python", *run.command()[1:]]),
    }
