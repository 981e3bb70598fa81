"""Files of weights, ours and foreign."""

from .detic import DeticParts, from_detic
from .fit import Fit, load_weights
from .glip import ConvertedGLIP, from_glip, to_glip
from .groupvit import ConvertedGroupViT, convert_groupvit_names
from .inert_objects import CLASSES_OF_SETTINGS, plain_settings, read_with_inert_objects
from .lightning import read_lightning_state_dict
from .lseg import ConvertedLSeg, from_lseg, to_lseg
from .mavl import ConvertedMAVL, from_mavl
from .object_centric_ovd import (
    ConvertedCheckpoint,
    from_object_centric_ovd,
    to_object_centric_ovd,
)
from .openai_clip import from_openai_clip, is_openai_clip, to_openai_clip
from .weights_file import (
    TRUST_VARIABLE,
    check_trusted,
    check_weights_name,
    read_state_dict,
    read_weights_file,
    state_dict_in,
    write_state_dict,
)

__all__ = [
    "CLASSES_OF_SETTINGS",
    "TRUST_VARIABLE",
    "ConvertedCheckpoint",
    "ConvertedGLIP",
    "ConvertedGroupViT",
    "ConvertedLSeg",
    "ConvertedMAVL",
    "DeticParts",
    "Fit",
    "check_trusted",
    "check_weights_name",
    "convert_groupvit_names",
    "from_detic",
    "from_glip",
    "from_lseg",
    "from_mavl",
    "from_object_centric_ovd",
    "from_openai_clip",
    "is_openai_clip",
    "to_openai_clip",
    "load_weights",
    "plain_settings",
    "read_lightning_state_dict",
    "read_state_dict",
    "read_weights_file",
    "read_with_inert_objects",
    "state_dict_in",
    "to_glip",
    "to_lseg",
    "to_object_centric_ovd",
    "write_state_dict",
]
