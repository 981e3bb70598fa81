"""From command-line arguments to a checked config, and from there to an output folder."""

import argparse
import logging
import os
import re
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ovd_d2.checkpoint import TRUST_VARIABLE, check_trusted
from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.config_file import load_config
from ovd_d2.data.build import check_registered
from ovd_d2.data.held_out import check_novel_names
from ovd_d2.data.mixing import read_sources, training_datasets
from ovd_d2.data.model_kind import brings_weights, check_heads_are_used
from ovd_d2.data.user_code import run_registration
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write
from ovd_d2.layers.device import usable_device
from ovd_d2.modeling.roi_heads.head_checks import check_head_name

from .config_rules import check_values

logger = logging.getLogger(__name__)

LOGGERS = ("fvcore", "detectron2", "ovd_d2")


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's parser with ``--trust`` and ``--register``."""
    parser = default_argument_parser()
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file or module of yours that registers data sets: it is run (repeatable)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="open pickles (.pkl weights and proposals): they can run any code on this machine",
    )
    return parser


def check_config(cfg: CfgNode, *, train: bool = True, resume: bool = False) -> None:
    """Finds what can be known to be wrong before anything is built or written.

    Args:
        cfg: the config.
        train: whether to train, or only to evaluate.
        resume: a checkpoint in OUTPUT_DIR replaces MODEL.WEIGHTS.

    Raises:
        OVDError: naming the key.
    """
    check_values(cfg)
    check_heads_are_used(cfg)
    check_head_name(cfg)
    if cfg.INPUT.MIN_SIZE_TEST == 0 or 0 in cfg.INPUT.MIN_SIZE_TRAIN:
        logger.warning(
            "INPUT.MIN_SIZE_TEST or MIN_SIZE_TRAIN is 0: images keep their sizes, as in Detectron2."
        )
    _check_datasets("DATASETS.TRAIN", cfg.DATASETS.TRAIN if train else ())
    _check_datasets("DATASETS.TEST", cfg.DATASETS.TEST)
    proposals = [*cfg.DATASETS.PROPOSAL_FILES_TRAIN, *cfg.DATASETS.PROPOSAL_FILES_TEST]
    for source in read_sources(cfg) if train else ():
        with source.named_in_errors():
            check_values(source.cfg)
            _check_datasets("DATASETS.TRAIN", source.cfg.DATASETS.TRAIN)
        proposals += source.cfg.DATASETS.PROPOSAL_FILES_TRAIN
    check_novel_names(cfg, [*(training_datasets(cfg) if train else ()), *cfg.DATASETS.TEST])
    for path in proposals if cfg.MODEL.LOAD_PROPOSALS else ():
        check_trusted(path)
    if not (resume and AtomicCheckpointer(torch.nn.Module(), cfg.OUTPUT_DIR).has_checkpoint()):
        check_trusted(cfg.MODEL.WEIGHTS)
        if not (train or cfg.MODEL.WEIGHTS or brings_weights(cfg)):
            raise OVDError(
                "MODEL.WEIGHTS is empty, so --eval-only would score an untrained model: add "
                "MODEL.WEIGHTS and the checkpoint, or --resume for the newest one in OUTPUT_DIR."
            )


def _check_datasets(key: str, names: Sequence[str]) -> None:
    check_registered(key, names)
    for name in names:
        _check_files(key, name)


def _check_files(key: str, name: str) -> None:
    """Raises OVDError if the files that a dataset's metadata names are not there."""
    metadata = MetadataCatalog.get(name)
    for field in ("json_file", "image_root"):
        path = metadata.get(field, None)
        if path and "://" not in path and not os.path.exists(path):
            command = metadata.get("prepare_command", "")
            section = metadata.get("readme_section", "")
            raise OVDError(
                f"{key} {name} needs {path}, which does not exist: "
                + (f"run `{command}`" if command else "prepare it")
                + " as "
                + (f"section '{section}' of " if section else "")
                + "datasets/README.md says, or set DETECTRON2_DATASETS to the folder that holds it."
            )


def register_data_sets(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Runs what ``--register`` and ``DATASETS.REGISTER`` name; the key then says so for the run.

    Raises:
        OVDError: a yaml asks for code that was not asked for on the command line.
    """
    typed = "DATASETS.REGISTER" in (args.opts or [])[::2]
    wanted = list(cfg.DATASETS.REGISTER)
    strange = [source for source in wanted if source not in args.register]
    if strange and not typed and os.environ.get(TRUST_VARIABLE) != "1":
        raise OVDError(
            f"{args.config_file} names {strange[0]} in DATASETS.REGISTER, which would be run as "
            f"code: if you trust it, say so by --register {strange[0]} (or --trust)."
        )
    for source in args.register:
        run_registration(source)
    for source in wanted:
        run_registration(source, "DATASETS.REGISTER")
    cfg.DATASETS.REGISTER = list(dict.fromkeys([*args.register, *wanted]))


class _Backlog(logging.Handler):
    """Keeps records until there is a file for them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def use_cpu_without_gpu(cfg: CfgNode) -> None:
    """Sets ``MODEL.DEVICE`` to "cpu", with a warning, where it is a GPU and there is none."""
    if re.fullmatch(r"cuda(:\d+)?", cfg.MODEL.DEVICE) and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but there is no GPU: using the CPU.", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def setup(args: argparse.Namespace) -> CfgNode:
    """Config, console log and random seeds; writes nothing.

    Args:
        args: of :func:`argument_parser`.

    Returns:
        the frozen config, with ``MODEL.DEVICE`` "cpu" where there is no GPU.

    Raises:
        OVDError: bad config.
    """
    rank = comm.get_rank()
    for name in LOGGERS:
        if not setup_logger(distributed_rank=rank, name=name).hasHandlers():
            continue
        logging.getLogger(name).addHandler(_Backlog())
    if args.trust:
        os.environ[TRUST_VARIABLE] = "1"
    cfg = load_config(args.config_file, args.opts)
    use_cpu_without_gpu(cfg)
    usable_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    register_data_sets(cfg, args)
    check_config(cfg, train=not args.eval_only, resume=args.resume)
    cfg.freeze()
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def open_output_dir(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Makes OUTPUT_DIR with ``log.txt`` (from the very first line) and ``config.yaml``.

    To be called when everything that can be refused has been built.
    """
    rank = comm.get_rank()
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise OVDError(f"OUTPUT_DIR cannot be made ({error}): choose another.") from error
    for name in LOGGERS:
        before = list(logging.getLogger(name).handlers)
        named = setup_logger(
            cfg.OUTPUT_DIR, distributed_rank=rank, name=name, configure_stdout=False
        )
        new = [handler for handler in named.handlers if handler not in before]
        for backlog in [handler for handler in before if isinstance(handler, _Backlog)]:
            named.removeHandler(backlog)
            for record in backlog.records:
                for handler in new:
                    handler.handle(record)
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Command line: %s", args)
    if comm.is_main_process():
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with atomic_write(path) as file:
            file.write(cfg.dump().encode())
        logger.info("Config written to %s:\n%s", path, cfg.dump())


def error_sentence(error: BaseException) -> str:
    """The sentence of an error, also when it comes with the traceback of a worker process."""
    text = str(error).strip()
    if "Original Traceback" not in text:
        return text
    return re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
