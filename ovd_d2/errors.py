"""The one exception that means "the user can fix this"."""


class OVDError(ValueError):
    """Bad input: one sentence that names the file or key at fault and the remedy.

    The command line and ``train_net.py`` print it as ``error: ...`` and exit with code 2.
    """


def reason(error: BaseException) -> str:
    """The first line of another library's error that says something, for a sentence of ours."""
    return next((line for line in str(error).splitlines() if line), type(error).__name__)
