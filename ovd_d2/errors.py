"""The one exception that means "the user can fix this"."""


class OVDError(ValueError):
    """Bad input: one sentence that names the file or key at fault and the remedy.

    The command line and ``train_net.py`` print it as ``error: ...`` and exit with code 2.
    """
