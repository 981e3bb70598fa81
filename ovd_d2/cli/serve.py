"""``ovd serve``: a page and REST endpoints."""

import typer

from .predict import _silence_torch
from .register_option import REGISTER

_MODELS = typer.Option(
    [],
    "--model",
    help="As of `ovd predict`: a packaged model, one of `ovd models list`, a folder, or hf:NAME; "
    "default: mini. Several times: side by side.",
)
_HOST = typer.Option("127.0.0.1", help="Where to listen; 127.0.0.1: this machine alone.")
_PORT = typer.Option(7860, min=0, max=65535, help="0: any that is free.")
_DEVICE = typer.Option(None, help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")
_NAMES = typer.Option(1000, min=1, help="Names in one request at most.")
_PIXELS = typer.Option(16_000_000, min=1, help="Pixels of an image at most.")
_MEGABYTES = typer.Option(20, min=1, help="Megabytes of an upload at most.")
_WAITING = typer.Option(8, min=0, help="Requests that may wait for a model.")


def command(
    models: list[str] = _MODELS,
    host: str = _HOST,
    port: int = _PORT,
    device: str | None = _DEVICE,
    max_names: int = _NAMES,
    max_pixels: int = _PIXELS,
    max_megabytes: int = _MEGABYTES,
    max_waiting: int = _WAITING,
    registered: list[str] = REGISTER,
) -> None:
    """Find what you name in a browser, and by POST /v1/predict.

    Whoever reaches the address can use it: there is no login.
    """
    from ovd_d2 import register
    from ovd_d2.web.limits import Limits
    from ovd_d2.web.server import bound_socket, check_packages, serve

    limits = Limits(
        names=max_names, pixels=max_pixels, bytes=max_megabytes << 20, waiting=max_waiting
    )

    def say(address: str) -> None:
        print(f"{address} (Ctrl-C ends it)", flush=True)

    try:
        with bound_socket(host, port) as listening:
            check_packages()
            register()
            _silence_torch()
            serve(models or ["mini"], listening, device, limits, say)
    except KeyboardInterrupt:
        raise typer.Exit from None
