"""ovd_d2: open-vocabulary detection for Detectron2.

Importing it registers the models and data sets with Detectron2; :func:`add_ovd_config` adds the
configuration keys. It needs torch and detectron2 alone::

    import ovd_d2
    from detectron2.config import get_cfg

    cfg = get_cfg()
    ovd_d2.add_ovd_config(cfg)
"""

import importlib
import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"
__all__ = ["__version__", "add_ovd_config", "register"]

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
    return bool(sys.argv) and Path(sys.argv[0]).stem == "ovd"


def __getattr__(name: str) -> object:
    if name == "add_ovd_config":  # config.py imports detectron2
        from ovd_d2.config import add_ovd_config

        return add_ovd_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not _started_by_console_script():
    register()
