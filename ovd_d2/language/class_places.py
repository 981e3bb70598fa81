"""Classes of a data set in a vocabulary, by name.

Letter: K classes of the data set.
"""

from collections.abc import Sequence

from ovd_d2.errors import OVDError

_NAMED_AT_MOST = 5


def class_places(
    dataset: str, classes: Sequence[str], vocabulary: Sequence[str]
) -> list[int] | None:
    """Where the classes of a training set are in the vocabulary that the model trains with.

    Args:
        dataset: its name, for the message.
        classes: its K names in the order of its class numbers.
        vocabulary: the model's names.

    Returns:
        K positions in ``vocabulary``; None if every class is at its own already.

    Raises:
        OVDError: the data set has classes that the vocabulary lacks.
    """
    place = {name: index for index, name in enumerate(vocabulary)}
    missing = [name for name in classes if name not in place]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:_NAMED_AT_MOST])
        more = f" and {len(missing) - _NAMED_AT_MOST} more" if missing[_NAMED_AT_MOST:] else ""
        raise OVDError(
            f"DATASETS.TRAIN {dataset} has the classes {shown}{more}, which the model's "
            "vocabulary lacks: MODEL.OPEN_VOCAB.VOCABULARY, or else the first data set of "
            "DATASETS.TRAIN outside of DATASETS.SOURCES, must name them all."
        )
    places = [place[name] for name in classes]
    return None if places == list(range(len(places))) else places
