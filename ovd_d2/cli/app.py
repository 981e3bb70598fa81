"""The console script ``ovd``.

A command is a module of this package with a ``typer.Typer`` named ``app`` (several sub-commands) or
a function ``command``; "-" in a command is "_" in its module. Modules import nothing heavy at the
top, and only the module of the command asked for is imported, so ``ovd --help`` is quick and
``ovd doctor`` runs in a broken environment.

Bad input (:class:`~ovd_d2.errors.OVDError`) and files or folders that cannot be used (``OSError``)
end any command with one line on stderr, exit code 2.
"""

import importlib
import sys
from collections.abc import Iterable, Sequence

import typer

from ovd_d2 import __version__
from ovd_d2.errors import OVDError

COMMANDS = (
    "benchmark", "clip", "convert", "demo", "doctor", "export", "finetune", "ground", "mini",
    "models", "predict", "pseudo-label", "regions", "serve", "speed", "video", "vocab",
)  # fmt: skip
RENAMED = {"bench": "speed"}


def build_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with the commands ``names``, whose modules are imported."""
    app = typer.Typer(
        help="Open-vocabulary detection for Detectron2.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich would take twice as long as all the rest of `ovd --help`
    )

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", is_eager=True, callback=_show_version),
    ) -> None:
        """Open-vocabulary detection for Detectron2."""

    for name in names:
        module = importlib.import_module(f"ovd_d2.cli.{name.replace('-', '_')}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ovd_d2 {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs ``ovd`` with ``arguments`` (default: the process's) and exits.

    Exit codes: 0 done, 1 a check failed, 2 bad input (one line ``error: ...`` on stderr).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    asked = [word for word in arguments[:1] if word in COMMANDS]
    try:
        if arguments and arguments[0] in RENAMED:
            raise OVDError(f"ovd {arguments[0]} is now called ovd {RENAMED[arguments[0]]}.")
        build_app(asked or COMMANDS)(args=arguments, prog_name="ovd")
    except OVDError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # files and folders that cannot be used, wherever that shows
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _sentence(error: OSError) -> str:
    """What the system says about which file."""
    reason = error.strerror or str(error) or type(error).__name__
    name = str(error.filename or "")
    if len(name) > 300:
        name = f"{name[:100]}...{name[-100:]}"
    return f"{name}: {reason}: give a path that can be used." if name else f"{reason}."


if __name__ == "__main__":
    main()
