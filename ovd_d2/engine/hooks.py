"""Hooks around Detectron2's: saving, evaluating without side effects, progress, metrics."""

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.data import random_state
from ovd_d2.files.atomic import atomic_write

logger = logging.getLogger(__name__)


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Saves every ``period`` iterations and at the end, and keeps the newest few.

    Runs on every process: the random state of each goes into the checkpoint.
    """

    def __init__(self, checkpointer: AtomicCheckpointer, period: int, keep: int = 0) -> None:
        """
        Args:
            checkpointer: writes on the main process only.
            period: in iterations; 0 or less saves at the end only.
            keep: newest periodic checkpoints that stay; 0 keeps all.
        """
        super().__init__(checkpointer, period)
        self.keep = keep

    def after_step(self) -> None:
        """Saves if it is time."""
        iteration = self.trainer.iter
        periodic = self.period > 0 and (iteration + 1) % self.period == 0
        final = iteration >= self.max_iter - 1
        if not (periodic or final):
            return
        with self.trainer.gathered_random_states(), self.trainer.with_saved_weights():
            if periodic:
                self.checkpointer.save(f"{self.file_prefix}_{iteration:07d}", iteration=iteration)
                self.checkpointer.prune(self.keep)
            if final:
                self.checkpointer.save(f"{self.file_prefix}_final", iteration=iteration)


class EvalHook(hooks.EvalHook):
    """Evaluates every period and after a training that finished; training does not notice."""

    def _do_eval(self) -> None:
        with random_state.preserved():
            super()._do_eval()

    def after_train(self) -> None:
        """The last evaluation; none after a training that failed."""
        if self.trainer.iter < self.trainer.max_iter:
            self._eval_after_train = False
        super().after_train()


class PreciseBN(hooks.PreciseBN):
    """Detectron2's, from the same batches every time and without moving the random state."""

    def update_stats(self) -> None:
        """Recomputes the statistics of the batch norms in training mode."""
        if self._disabled:
            return
        start = self._data_loader.state_dict()
        with random_state.preserved():
            super().update_stats()
        self._data_iter = None  # the next one begins anew; its loading processes end
        self._data_loader.load_state_dict(start)


class ProgressBar(HookBase):
    """A bar with iterations, loss, learning rate and ETA, on the main process of a terminal."""

    def __init__(self, loggers: tuple[str, ...] = ("detectron2", "fvcore", "ovd_d2")) -> None:
        """
        Args:
            loggers: their lines are printed above the bar instead of through it.
        """
        self._loggers = loggers
        self._bar: Any = None

    def before_train(self) -> None:
        """Draws the empty bar."""
        if not (comm.is_main_process() and sys.stderr.isatty()):
            return
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        self._stack = ExitStack()
        self._bar = self._stack.enter_context(
            tqdm(
                total=self.trainer.max_iter,
                initial=self.trainer.start_iter,
                desc="training",
                unit="it",
                dynamic_ncols=True,
            )
        )
        named = [logging.getLogger(name) for name in self._loggers]
        self._stack.enter_context(logging_redirect_tqdm(named))

    def after_step(self) -> None:
        """Moves the bar."""
        if self._bar is None:
            return
        latest = self.trainer.storage.latest()
        shown = {"loss": "total_loss", "lr": "lr"}
        parts = [f"{k} {latest[name][0]:.4g}" for k, name in shown.items() if name in latest]
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._stack.close()
            self._bar = None


class PeriodicWriter(hooks.PeriodicWriter):
    """Detectron2's, with writers made when training starts, so that a failed start writes none."""

    def __init__(self, build_writers: Callable[[], list[EventWriter]], period: int = 20) -> None:
        """
        Args:
            build_writers: makes the writers.
            period: in iterations.
        """
        super().__init__([], period)
        self._build_writers = build_writers

    def before_train(self) -> None:
        """Makes the writers; on resuming, metrics of iterations still to come are dropped."""
        self._writers = self._build_writers()

    def after_train(self) -> None:
        """Writes what is left and closes."""
        super().after_train()
        self._writers = []


def build_writers(output_dir: str, max_iter: int, start_iter: int) -> list[EventWriter]:
    """Terminal, ``metrics.json`` and, where tensorboard is installed, its event files.

    Args:
        output_dir: made if needed.
        max_iter: for the ETA.
        start_iter: first iteration of this run; later ones leave ``metrics.json`` first.
    """
    os.makedirs(output_dir, exist_ok=True)
    metrics_file = os.path.join(output_dir, "metrics.json")
    repair_metrics(metrics_file, start_iter)
    writers: list[EventWriter] = [CommonMetricPrinter(max_iter), JSONWriter(metrics_file)]
    if importlib.util.find_spec("tensorboard"):
        writers.append(TensorboardXWriter(output_dir))
    return writers


def repair_metrics(metrics_file: str, start_iter: int) -> None:
    """Drops a line cut short by a kill and, on resuming, lines of iterations that will run again.

    Args:
        metrics_file: one JSON object per line; may be missing.
        start_iter: first iteration still to run; 0 keeps all whole lines, as Detectron2 appends.
    """
    if not os.path.exists(metrics_file):
        return
    with open(metrics_file, "rb") as file:
        lines = file.readlines()
    kept = []
    for line in lines:
        try:
            iteration = json.loads(line)["iteration"]
        except (ValueError, KeyError, TypeError):
            logger.warning("Dropped a broken line of %s.", metrics_file)
            continue
        if start_iter == 0 or iteration < start_iter:
            kept.append(line.rstrip(b"\n") + b"\n")
    if kept != lines:
        with atomic_write(metrics_file) as file:
            file.writelines(kept)
