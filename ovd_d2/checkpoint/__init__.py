"""Files of weights, ours and foreign."""

from .weights_file import TRUST_VARIABLE, check_trusted, read_weights_file

__all__ = ["TRUST_VARIABLE", "check_trusted", "read_weights_file"]
