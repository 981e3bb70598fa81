#!/usr/bin/env python
"""Trains or evaluates a detector from a config, as every Detectron2 user expects.

    python train_net.py --config-file configs/mini/vild_text.yaml [KEY value ...]
    python train_net.py --config-file ... --resume
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc-per-node 2 train_net.py --config-file ...

Bad input ends with one sentence on stderr and exit code 2; nothing has been written then.
"""

import argparse
import sys
from typing import Any

from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ovd_d2.data.model_kind import brings_weights
from ovd_d2.engine import (
    AtomicCheckpointer,
    OpenVocabTrainer,
    argument_parser,
    error_sentence,
    launch,
    open_output_dir,
    setup,
    write_results,
)
from ovd_d2.errors import OVDError


def train(args: argparse.Namespace) -> dict[str, Any] | None:
    """Trains, then evaluates."""
    cfg = setup(args)
    trainer = OpenVocabTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    open_output_dir(cfg, args)
    return trainer.train()


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates ``MODEL.WEIGHTS``, or with ``--resume`` the newest checkpoint."""
    cfg = setup(args)
    OpenVocabTrainer.check_evaluators(cfg)
    model = OpenVocabTrainer.build_model(cfg)
    whole = bool(cfg.MODEL.WEIGHTS) or not brings_weights(cfg)
    checkpointer = AtomicCheckpointer(model, save_dir=cfg.OUTPUT_DIR, whole=whole)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    open_output_dir(cfg, args)
    results = OpenVocabTrainer.test_at_the_end(cfg, model)
    if comm.is_main_process():
        write_results(cfg, results)
        verify_results(cfg, results)
    return results


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Runs in every training process."""
    try:
        return evaluate(args) if args.eval_only else train(args)
    except OVDError as error:
        print(f"error: {error_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    parsed = argument_parser().parse_args()
    try:
        launch(main, parsed)
    except OVDError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
