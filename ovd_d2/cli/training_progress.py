"""The progress lines of trainings side by side: one bar each, with loss and time left."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ovd_d2.benchmarks.recipes.processes import Job
from ovd_d2.benchmarks.recipes.run_folder import Progress, read_progress

LINE_PERIOD = 15.0  # seconds between progress lines where the output is no terminal


def clock(seconds: float | None) -> str:
    """ "2:05" for 125 seconds, "?" for None."""
    if seconds is None:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def describe(job: Job, progress: Progress) -> str:
    """One line on how far ``job`` is."""
    if job.exit_code is not None:
        ending = "done" if job.exit_code == 0 else f"failed with exit code {job.exit_code}"
        return f"{ending} after {clock(job.seconds)}"
    if not job.running:
        return "waiting"
    loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
    steps = f" {progress.done}/{progress.total}" if progress.total else ""
    return f"{progress.phase}{steps}{loss}, time left {clock(progress.eta_seconds)}"


@contextmanager
def watch(
    jobs: Mapping[str, Job], folders: Mapping[str, Path], line_period: float = LINE_PERIOD
) -> Iterator[Callable[[], None]]:
    """Shows live bars on a terminal, else a line per job every ``line_period`` seconds.

    Args:
        jobs: name to job.
        folders: name to the OUTPUT_DIR of its run.
        line_period: seconds.

    Yields:
        the function that looks at the jobs and brings the display up to date.
    """
    if sys.stdout.isatty():
        with _bars(jobs, folders) as look:
            yield look
    else:
        yield _lines(jobs, folders, line_period)


@contextmanager
def _bars(jobs: Mapping[str, Job], folders: Mapping[str, Path]) -> Iterator[Callable[[], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, refresh_per_second=4) as display:
        tasks = {name: display.add_task(name, start=False, total=None, state="") for name in jobs}

        def look() -> None:
            for name, job in jobs.items():
                task = tasks[name]
                progress = read_progress(folders[name], job.log_file)
                if job.running:
                    display.start_task(task)
                    total = progress.total or None
                    display.update(task, completed=progress.done, total=total)
                elif job.exit_code is not None:
                    display.update(task, completed=1, total=1)
                    display.stop_task(task)
                display.update(task, state=describe(job, progress))

        yield look


def _lines(
    jobs: Mapping[str, Job], folders: Mapping[str, Path], period: float
) -> Callable[[], None]:
    shown: dict[str, tuple[float, str]] = dict.fromkeys(jobs, (-period, ""))

    def look() -> None:
        for name, job in jobs.items():
            last_time, last_text = shown[name]
            ended = job.exit_code is not None
            if not ended and time.monotonic() - last_time < period:
                continue
            text = describe(job, read_progress(folders[name], job.log_file))
            if text != last_text and text != "waiting":
                print(f"[{name}] {text}", flush=True)
                shown[name] = (time.monotonic(), text)

    return look
