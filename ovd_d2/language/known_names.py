"""What a model's training vocabulary knows about names that somebody types.

Letter: K classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ovd_d2.language.prompts import clean_name
from ovd_d2.language.vocabulary import Vocabulary


def with_known_names(vocabulary: Vocabulary, trained: Vocabulary) -> Vocabulary:
    """``vocabulary`` with the synonyms, definitions and novelty that ``trained`` knows.

    A name is known if it is a name of ``trained``, or else a synonym of one of its classes; case
    and "_" for a space do not matter. Synonyms and definition go to a class that has none of its
    own, unless two of the K classes mean the same one: then each keeps its own word. A class is
    base if ``trained`` had labels of it, and novel otherwise, known or not. A vocabulary that marks
    classes as novel itself keeps its marks.

    Args:
        vocabulary: K classes.
        trained: the vocabulary that the model was trained with.

    Returns:
        the K classes in their order; names unchanged.
    """
    rows = known_rows(vocabulary.names, trained)
    shared = Counter(row for row in rows if row is not None)
    synonyms, definitions = list(vocabulary.synonyms), list(vocabulary.definitions)
    for k, row in enumerate(rows):
        bare = vocabulary.synonyms[k] == (vocabulary.names[k],)
        if row is None or shared[row] > 1 or not bare or definitions[k]:
            continue
        synonyms[k] = trained.synonyms[row]
        definitions[k] = trained.definitions[row]
    novel = vocabulary.is_novel
    if not any(novel):
        novel = tuple(row is None or not _has_labels(trained, row) for row in rows)
    return replace(
        vocabulary, synonyms=tuple(synonyms), definitions=tuple(definitions), is_novel=novel
    )


def known_rows(names: Sequence[str], trained: Vocabulary) -> list[int | None]:
    """The class of ``trained`` that each name means; None: a name it does not know."""
    by_word = _rows_by_word(trained)
    return [by_word.get(clean_name(name)) for name in names]


def _rows_by_word(trained: Vocabulary) -> dict[str, int]:
    """Cleaned word -> class. Names come before synonyms, earlier classes before later ones."""
    found: dict[str, int] = {}
    for row, name in enumerate(trained.names):
        found.setdefault(clean_name(name), row)
    for row, words in enumerate(trained.synonyms):
        for word in words:
            found.setdefault(clean_name(word), row)
    return found


def _has_labels(trained: Vocabulary, row: int) -> bool:
    """Whether boxes of a class were among the training labels, as far as is known."""
    seen = not trained.image_counts or trained.image_counts[row] > 0
    return seen and not trained.is_novel[row]
