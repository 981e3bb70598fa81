"""What every test gets: one thread, fixed seeds, no network; and the mini benchmark on demand."""

import gc
import logging
import os
import random
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Before torch and ovd_d2 are imported: data sets are registered under this folder on import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DETECTRON2_DATASETS", str(ROOT / "datasets"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
import warm_processes  # noqa: E402, F401 (keeps the environment as it is now)
from hypothesis import settings  # noqa: E402

settings.register_profile("any machine", deadline=None)  # slow is not wrong
settings.load_profile("any machine")


# Minutes each, of many tests that are not slow.
LONG_FILES = {"test_all_configs_build.py", "test_model_zoo.py"}


def pytest_collection_modifyitems(items):
    """Files with the most slow tests come first: `make test` gives whole files to its processes,
    and a long one at the end would leave all but one of them without work."""
    slow = Counter(
        item.path for item in items
        if item.get_closest_marker("slow") or item.path.name in LONG_FILES
    )  # fmt: skip
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="module")
def no_search_in_what_stays():
    """Else each full collection of garbage looks through all packages: 0.4 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Python, numpy and torch start each test from the same random state."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def own_environment():
    """Detectron2 sets PYTHONHASHSEED when a trainer starts, packages set theirs when they are
    imported: commands of later tests get none of them."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def own_loggers():
    """Handlers that a test's commands add write to streams that end with the test: they go too."""
    loggers = [logging.getLogger(name) for name in ("ovd_d2", "detectron2", "fvcore")]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    if "detectron2.utils.logger" in sys.modules:
        sys.modules["detectron2.utils.logger"].setup_logger.cache_clear()


@pytest.fixture(scope="session")
def mini_root() -> Path:
    """The mini benchmark's folder under ``$DETECTRON2_DATASETS``, built if it is not there."""
    from filelock import FileLock

    from ovd_d2.benchmarks.mini.build import build_mini

    datasets = Path(os.environ["DETECTRON2_DATASETS"])
    datasets.mkdir(parents=True, exist_ok=True)
    with FileLock(str(datasets / ".mini-v1.lock")):  # one pytest process builds, the others wait
        folder, _ = build_mini(datasets)
    return folder


@pytest.fixture(scope="session")
def cut_mini(mini_root, tmp_path_factory) -> Path:
    """mini-v1 with a few images of each split, for pages whose commands are run; read only."""
    from code_blocks import small_mini

    folder = tmp_path_factory.mktemp("cut") / "mini-v1"
    small_mini(mini_root, folder)
    return folder
