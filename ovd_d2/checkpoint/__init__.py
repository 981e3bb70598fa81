"""Files of weights, ours and foreign."""

from .detic import DeticParts, from_detic
from .object_centric_ovd import (
    ConvertedCheckpoint,
    from_object_centric_ovd,
    to_object_centric_ovd,
)
from .weights_file import (
    TRUST_VARIABLE,
    check_trusted,
    check_weights_name,
    read_state_dict,
    read_weights_file,
    write_state_dict,
)

__all__ = [
    "TRUST_VARIABLE",
    "ConvertedCheckpoint",
    "DeticParts",
    "check_trusted",
    "check_weights_name",
    "from_detic",
    "from_object_centric_ovd",
    "read_state_dict",
    "read_weights_file",
    "to_object_centric_ovd",
    "write_state_dict",
]
