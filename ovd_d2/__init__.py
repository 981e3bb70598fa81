"""ovd_d2: open-vocabulary detection for Detectron2.

Importing it registers the models and data sets with Detectron2; :func:`add_ovd_config` adds the
configuration keys. It needs torch and detectron2 alone::

    import ovd_d2
    from detectron2.config import get_cfg

    cfg = get_cfg()
    ovd_d2.add_ovd_config(cfg)

:class:`OpenVocabTraining` makes a ``DefaultTrainer`` honour these keys, and so do
:func:`build_train_loader`, :func:`build_test_loader`, :func:`build_evaluator`,
:func:`build_optimizer` and :func:`vocabulary_for`, one by one, in a trainer of one's own.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"
# What is imported, with all it needs, when somebody asks for it.
_WHERE = {
    "OpenVocabTraining": "engine.open_vocab_training",
    "add_ovd_config": "config",
    "build_evaluator": "evaluation.build",
    "build_optimizer": "engine.optimizer",
    "build_test_loader": "data.build",
    "build_train_loader": "data.build",
    "vocabulary_for": "engine.dataset_vocabulary",
}
__all__ = ["__version__", "register", *_WHERE]

GET_DETECTRON2 = "uv pip install --no-deps --python-version 3.10 sal-detectron2==0.7.2"


def register() -> None:
    """Registers models and data sets with Detectron2; ``import ovd_d2`` does it, twice is harmless.

    Raises:
        ImportError: detectron2 is not installed; the message says how to get it.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(
            "ovd_d2 needs detectron2, which is not installed: run `make install` in a checkout of "
            f"ovd_d2, or `{GET_DETECTRON2}` (pip install uv) after torch and torchvision."
        )
    importlib.import_module("ovd_d2.layers.quick_import").install()
    for room in ("modeling", "data"):
        importlib.import_module(f"ovd_d2.{room}")
    # What Detectron2 has but cannot run in some environments: see the two files.
    for mended in ("layers.deform_conv", "evaluation.lvis_api"):
        importlib.import_module(f"ovd_d2.{mended}").install()


def _started_by_console_script() -> bool:
    """Whether this process is the ``ovd`` command itself.

    Its ``--help`` must be quick and its ``doctor`` must run where detectron2 is missing, so there
    the command line calls :func:`register` when a command needs it.
    """
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        return False
    program = Path(sys.argv[0]).name if sys.argv else ""  # not a user's own ovd.py
    return program in ("ovd", "ovd.exe")


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(importlib.import_module(f"ovd_d2.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not _started_by_console_script():
    register()
