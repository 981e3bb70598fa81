"""What a model's training vocabulary knows about names that somebody types.

Letter: K classes.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
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


def competing_names(
    wanted: Sequence[Vocabulary], trained: Vocabulary, close: Collection[int] = ()
) -> Vocabulary | None:
    """The classes of ``trained`` that compete with others: those that no class of ``wanted`` means.

    A class means what its name means, and what synonyms of its own mean, which ``trained`` did not
    give it. A word that is a name of ``trained`` means this class alone, a word that is none means
    every class that it is a synonym of. A competitor is novel if it would be as a class that is
    looked for, see :func:`with_known_names`.

    Args:
        wanted: vocabularies of classes that are looked for, or compete already.
        trained: the vocabulary that the model was trained with.
        close: rows of ``trained`` that do not compete either, see :meth:`KnownRows.close_to`.

    Returns:
        them, in their order; None: there are none.
    """
    meant = _rows_meant([word for one in wanted for word in _own_words(one, trained)], trained)
    rows = [row for row in range(len(trained)) if row not in meant and row not in close]
    if not rows:
        return None
    return Vocabulary(
        names=tuple(trained.names[row] for row in rows),
        synonyms=tuple(trained.synonyms[row] for row in rows),
        definitions=tuple(trained.definitions[row] for row in rows),
        is_novel=tuple(not _has_labels(trained, row) for row in rows),
    )


def _own_words(vocabulary: Vocabulary, trained: Vocabulary) -> list[str]:
    """Names, and synonyms but those of a class that ``trained`` knows."""
    words = list(vocabulary.names)
    for row, synonyms in zip(known_rows(vocabulary.names, trained), vocabulary.synonyms):
        if row is None or synonyms != trained.synonyms[row]:
            words += synonyms
    return words


def _rows_meant(words: Sequence[str], trained: Vocabulary) -> set[int]:
    of_names, of_synonyms = defaultdict(set), defaultdict(set)
    for row, (name, synonyms) in enumerate(zip(trained.names, trained.synonyms)):
        of_names[clean_name(name)].add(row)
        for word in synonyms:
            of_synonyms[clean_name(word)].add(row)
    cleaned = {clean_name(word) for word in words}
    return {row for word in cleaned for row in of_names.get(word) or of_synonyms.get(word, ())}


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
