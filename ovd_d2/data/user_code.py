"""Running a user's own code that registers data sets."""

import hashlib
import importlib
import importlib.util
import logging
import os
import sys

from ovd_d2.errors import OVDError

logger = logging.getLogger(__name__)


def run_registration(source: str, option: str = "--register") -> None:
    """Imports a Python file or module, once per process, with a warning that it runs code.

    Args:
        source: "my_data.py", or a module such as "my_package.data".
        option: what named it, for messages.

    Raises:
        OVDError: it is not there, or it raised.
    """
    is_file = source.endswith(".py") or os.path.sep in source
    if is_file and not os.path.isfile(source):
        raise OVDError(f"{option} {source}: there is no such Python file.")
    path = os.path.realpath(source)
    name = f"ovd_d2_user_code_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    name = name if is_file else source
    if name in sys.modules:
        return
    logger.warning("%s runs the Python code of %s.", option, source)
    try:
        if is_file:
            _run_file(path, name)
        else:
            importlib.import_module(name)
    except Exception as error:  # a user's code raises anything
        sys.modules.pop(name, None)
        text = (str(error).splitlines() or [""])[0]
        raise OVDError(f"{option} {source} failed: {type(error).__name__}: {text}") from error


def _run_file(path: str, name: str) -> None:
    folder = os.path.dirname(path)
    if folder not in sys.path:
        sys.path.append(folder)  # it may import files beside it; last, so that it hides nothing
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
