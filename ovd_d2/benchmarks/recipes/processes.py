"""Several training commands at once, each its own process, watched until all have ended."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STOP_PATIENCE = 10  # seconds between asking a process to stop and killing it


@dataclass
class Job:
    """One command.

    Attributes:
        name: what it is called in messages.
        command: program and arguments.
        log_file: takes its stdout and stderr.
        seconds: wall time it has run for.
        exit_code: None until it has ended.
    """

    name: str
    command: Sequence[str]
    log_file: Path
    seconds: float = 0.0
    exit_code: int | None = None
    _process: subprocess.Popen | None = field(default=None, repr=False)
    _started: float = field(default=0.0, repr=False)

    @property
    def running(self) -> bool:
        """Whether its process has been started and has not ended."""
        return self._process is not None and self.exit_code is None

    def start(self, folder: str | os.PathLike, environment: Mapping[str, str]) -> None:
        """Starts the process in ``folder``, with ``environment`` added to this process's."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def poll(self) -> None:
        """Brings ``seconds`` and ``exit_code`` up to date."""
        if self._process is not None and self.exit_code is None:
            self.seconds = time.monotonic() - self._started
            self.exit_code = self._process.poll()

    def stop(self) -> None:
        """Ends the process if it runs: asks first, kills it when it does not listen."""
        if not self.running:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run_side_by_side(
    jobs: Sequence[Job],
    *,
    at_once: int,
    folder: str | os.PathLike,
    environment: Mapping[str, str],
    watch: Callable[[], None] = lambda: None,
    ended: Callable[[Job], None] = lambda job: None,
    period: float = 0.5,
) -> None:
    """Runs all ``jobs``, in order, ``at_once`` at a time; returns when the last has ended.

    A job that fails does not stop the others; see its ``exit_code``. If this call is interrupted,
    no process is left behind.

    Args:
        jobs: the commands; updated in place.
        at_once: at least 1.
        folder: their working folder.
        environment: variables added to this process's.
        watch: called every ``period`` seconds and once at the end, to show progress.
        ended: called with every job as soon as it has ended.
        period: seconds.
    """
    waiting = list(jobs)
    try:
        while waiting or any(job.running for job in jobs):
            while waiting and sum(job.running for job in jobs) < at_once:
                waiting.pop(0).start(folder, environment)
            watch()
            time.sleep(period)
            for job in [job for job in jobs if job.running]:
                job.poll()
                if not job.running:
                    ended(job)
        watch()
    finally:
        for job in jobs:
            job.stop()
