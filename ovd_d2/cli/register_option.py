"""The option ``--register`` of commands that take a data set."""

import typer


def _run(sources: list[str]) -> list[str]:
    """Runs the files while the command line is read, before anything asks for a data set."""
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
