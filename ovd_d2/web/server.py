"""Starts the page and the endpoints on one port."""

import importlib
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError

from .limits import Limits

PACKAGES = ("fastapi", "uvicorn", "gradio", "gradio_image_annotation")
_GRACE = 3  # seconds that running requests have when the server ends
_SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def check_packages() -> None:
    """Raises OVDError if a package of the page is missing."""
    os.environ.update(_SETTINGS)  # gradio reads them when it is imported
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise OVDError(
                f"The page needs {name} ({error}): run pip install 'ovd_d2[web]'."
            ) from error


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port shows before a model is loaded.

    Args:
        host: of this machine.
        port: 0: any that is free.

    Raises:
        OVDError: the port is taken, or the host is none of this machine.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OVDError(
            f"Cannot listen at {host}:{port} ({reason}): choose another --port or --host."
        ) from error
    return found


def build_app(served: Mapping[str, Any], limits: Limits, folder: Path) -> Any:
    """The ASGI app: endpoints, page and guard.

    Args:
        served: title -> :class:`~ovd_d2.web.served_model.ServedModel`.
        limits: what a request may ask for.
        folder: where uploads lie while a page is open.
    """
    os.environ.update(_SETTINGS, GRADIO_TEMP_DIR=str(folder))
    from .guard import Guard
    from .page import mount_page
    from .rest import build_rest

    app = mount_page(build_rest(served), served, limits, folder)
    return Guard(app, limits.bytes, lambda: _bytes_in(folder) < limits.stored)


def serve(
    models: Sequence[str],
    listening: socket.socket,
    device: str | None,
    limits: Limits,
    on_start: Callable[[str], None],
) -> None:
    """Serves until it is interrupted.

    Args:
        models: see ``OpenVocabPredictor.from_pretrained``; several are shown side by side.
        listening: see :func:`bound_socket`.
        device: "cpu", "cuda", ...; None: a GPU if there is one.
        limits: what a request may ask for.
        on_start: called with the address.

    Raises:
        OVDError: a package or model is missing.
    """
    check_packages()
    import uvicorn

    from ovd_d2.inference.predict_files import titles_of

    from .served_model import ServedModel

    with _upload_folder() as folder:
        titles = titles_of(models)
        served = {t: ServedModel.load(t, model, limits, device) for t, model in titles.items()}
        app = build_app(served, limits, Path(folder))
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=_GRACE, server_header=False,
            limit_concurrency=200, ws="none",
        )  # fmt: skip
        host, port = listening.getsockname()[:2]
        on_start(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        uvicorn.Server(config).run(sockets=[listening])


def _upload_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="ovd-serve-", ignore_cleanup_errors=True)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
