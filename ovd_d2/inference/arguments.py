"""Checks of the predictor's arguments."""

import math
import numbers
from collections.abc import Iterable, Sequence

import torch

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, VocabularyLike, as_vocabulary
from ovd_d2.language.known_names import with_known_names
from ovd_d2.layers.device import usable_device


def wanted_vocabulary(vocabulary: VocabularyLike, trained: Vocabulary | None = None) -> Vocabulary:
    """Whatever says which classes to look for, see ``OpenVocabPredictor.set_vocabulary``.

    Args:
        vocabulary: names in one string or a list, a file, "dataset:NAME", or a vocabulary.
        trained: what the model was trained with: names in a string, list or file get what it knows
            of them; None: nothing is known.

    Raises:
        OVDError: nothing of the kind, or no usable names.
    """
    found = as_vocabulary(vocabulary)
    if trained is None or not is_typed(vocabulary):
        return found
    return with_known_names(found, trained)


def is_typed(vocabulary: VocabularyLike) -> bool:
    """Whether somebody gives names and no more: in a string, list or file; not those of a data set,
    nor a vocabulary that says what is known of them."""
    return not (isinstance(vocabulary, Vocabulary) or is_data_set(vocabulary))


def is_data_set(vocabulary: VocabularyLike) -> bool:
    """Whether the names are those of a data set, "dataset:NAME"."""
    return isinstance(vocabulary, str) and vocabulary.strip().startswith("dataset:")


def as_attributes(attributes: str | Sequence[str]) -> list[str]:
    """The words of "red, striped" or of a list.

    Raises:
        OVDError: no strings, control characters, or nothing in them.
    """
    if isinstance(attributes, str):
        attributes = attributes.split(",")
    if isinstance(attributes, bytes) or not isinstance(attributes, Iterable):
        raise OVDError(f'attributes is {attributes!r}; give "red, striped" or a list of strings.')
    words = list(attributes)
    for word in words:
        if not isinstance(word, str) or any(ord(letter) < 32 for letter in word.strip()):
            raise OVDError(f"attributes holds {word!r}; give strings without control characters.")
    words = [word.strip() for word in words if word.strip()]
    if not words:
        raise OVDError('The attributes are empty: give some, such as "red, striped".')
    return words


def check_count(argument: str, value: int) -> int:
    """``value`` if it is a whole number of at least 1; OVDError naming ``argument`` if not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise OVDError(f"{argument} is {value!r}; it must be a whole number.")
    if value < 1:
        raise OVDError(f"{argument} is {value}; it must be at least 1.")
    return int(value)


def check_score_threshold(value: float) -> float:
    """``value`` if it is a number in [0, 1]; OVDError if not."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or math.isnan(value) or not 0 <= value <= 1:
        raise OVDError(f"The score threshold is {value!r}; score_threshold must be in 0..1.")
    return float(value)


def find_device(device: str | torch.device | None) -> torch.device:
    """Where to compute; None: a GPU if there is one.

    Raises:
        OVDError: no device of that name, or not on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device(device, "The device")
