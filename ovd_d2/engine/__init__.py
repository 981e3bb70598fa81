"""Training and evaluation: :class:`OpenVocabTrainer` and what ``train_net.py`` is made of."""

from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.config_file import load_config

from .launch import launch
from .open_vocab_training import OpenVocabTraining
from .setup import argument_parser, error_sentence, open_output_dir, setup
from .train_loop import NonFiniteLossError
from .trainer import OpenVocabTrainer, write_results

__all__ = [
    "AtomicCheckpointer",
    "NonFiniteLossError",
    "OpenVocabTrainer",
    "OpenVocabTraining",
    "argument_parser",
    "error_sentence",
    "launch",
    "load_config",
    "open_output_dir",
    "setup",
    "write_results",
]
