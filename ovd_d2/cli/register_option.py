"""The option ``--register`` of commands that take a data set."""

from typing import Any

import typer


def _run(sources: Any) -> list[str]:
    """Runs the files while the command line is read, before anything asks for a data set.

    ``sources`` is a list of str; on Python 3.10 typer fails on that annotation of a callback.
    """
    if sources:
        import ovd_d2
        from ovd_d2.data.user_code import run_registration

        ovd_d2.register()
        for source in sources:
            run_registration(source)
    return sources


REGISTER = typer.Option(
    [],
    "--register",
    metavar="FILE",
    callback=_run,
    help="A Python file or module of yours that registers data sets: it is run (repeatable).",
)
