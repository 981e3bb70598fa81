"""Training and evaluation as ``train_net.py`` does them, with little on the console."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.engine import (
    OpenVocabTrainer,
    argument_parser,
    launch,
    open_output_dir,
    setup,
    write_results,
)
from ovd_d2.engine.setup import LOGGERS

# Lines of progress; everything else is in log.txt.
_SPOKEN = {"detectron2.utils.events": "eta:", "detectron2.evaluation.evaluator": "Inference done"}


def train(config_file: Path, *, resume: bool) -> None:
    """What ``python train_net.py --config-file FILE [--resume]`` does.

    Raises:
        OVDError: bad config or data.
    """
    words = ["--config-file", str(config_file), *(["--resume"] if resume else [])]
    launch(_train, argument_parser().parse_args(words))


def evaluate(config_file: Path, overrides: Sequence[str]) -> None:
    """What ``python train_net.py --config-file FILE --eval-only KEY VALUE ...`` does.

    Raises:
        OVDError: bad config, weights or data.
    """
    words = ["--config-file", str(config_file), "--eval-only", *overrides]
    launch(_evaluate, argument_parser().parse_args(words))


def _train(args: argparse.Namespace) -> None:
    with _quiet_console():
        cfg = setup(args)
        trainer = OpenVocabTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        open_output_dir(cfg, args)
        trainer.train()


def _evaluate(args: argparse.Namespace) -> None:
    with _quiet_console():
        cfg = setup(args)
        model = OpenVocabTrainer.build_model(cfg)
        if cfg.MODEL.WEIGHTS:
            AtomicCheckpointer(model, whole=True).load(cfg.MODEL.WEIGHTS)
        open_output_dir(cfg, args)
        results = OpenVocabTrainer.test(cfg, model)
        if comm.is_main_process():
            write_results(cfg, results)


@contextmanager
def _quiet_console() -> Iterator[None]:
    """Inside, the console shows warnings and progress alone (pycocotools prints what it likes);
    the handlers go at the end."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = {logger: list(logger.handlers) for logger in loggers}
    setup_logger.cache_clear()
    for logger in loggers:
        for handler in setup_logger(distributed_rank=comm.get_rank(), name=logger.name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(_is_spoken)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        for logger in loggers:
            for handler in [h for h in logger.handlers if h not in before[logger]]:
                logger.removeHandler(handler)
        setup_logger.cache_clear()


def _is_spoken(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING:
        return True
    begin = _SPOKEN.get(record.name)
    has_bar = begin == "eta:" and sys.stderr.isatty()
    return begin is not None and not has_bar and record.getMessage().strip().startswith(begin)


def box_ap(results: dict[str, Any], dataset: str) -> dict[str, float | None]:
    """ "AP", "AP50" and what else there is of one data set, in percent; None for what is nan.

    Args:
        results: of results.json, by data set.
        dataset: its name.
    """
    return results.get(dataset, {}).get("bbox", {})
