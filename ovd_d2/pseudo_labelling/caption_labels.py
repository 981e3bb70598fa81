"""Image-level labels from captions (RKD, section 3.3).

The paper's rule: a class is a label of the image if its name or a synonym occurs in the caption,
lower-cased and between delimiters. What it leaves open is decided here:

* *Delimiters* are white space, "_", "-", "/" and all punctuation. Of these . , ; : ! ? ( ) [ ] and
  quotation marks also end a phrase: "it is hot. Dogs like it" has no hot dog.
* Case, accents and a possessive 's do not count.
* *Plurals*: the last word of a name may stand in the plural ("hot dogs", "knives", "women"). A name
  that is a plural ("scissors", "skis") is not looked for in the singular: "glasses" are no glass.
* *The longest match wins*: "a hot dog" is not a dog, if "hot dog" is a class or one of
  ``other_phrases``; every word belongs to one name at most.
* A note in brackets is no part of a name: "bow_(weapon)" is looked for as "bow".
* A phrase of several classes ("bow") is the label of none, unless it is the very name of one.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from ovd_d2.language import Vocabulary

_PHRASE_END = re.compile(r"[.,;:!?()\[\]{}\"“”«»\n\r]+")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_NOTE = re.compile(r"\([^()]*\)")
_POSSESSIVE = re.compile(r"['’]s?$")
_IRREGULAR = {
    "calf": ("calves",), "child": ("children",), "foot": ("feet",), "goose": ("geese",),
    "half": ("halves",), "knife": ("knives",), "leaf": ("leaves",), "life": ("lives",),
    "loaf": ("loaves",), "man": ("men",), "mouse": ("mice",), "ox": ("oxen",),
    "person": ("people", "persons"), "scarf": ("scarves", "scarfs"), "shelf": ("shelves",),
    "thief": ("thieves",), "tooth": ("teeth",), "wolf": ("wolves",), "woman": ("women",),
}  # fmt: skip
_NONE = -1  # a phrase that takes its words away and labels nothing


class CaptionLabeller:
    """Finds the classes of a vocabulary in captions by the rules of this module's docstring.

    Args:
        vocabulary: K classes, found by their names and synonyms.
        other_phrases: names of things that are no classes and whose words must not be taken for
            one ("hot dog" where "dog" is a class and "hot dog" is not).
    """

    def __init__(self, vocabulary: Vocabulary, other_phrases: Iterable[str] = ()) -> None:
        self._phrases: dict[tuple[str, ...], int] = {}
        owners: dict[tuple[str, ...], set[int]] = {}
        for phrase in other_phrases:
            for words in _spellings(phrase):
                self._phrases[words] = _NONE
        for index, synonyms in enumerate(vocabulary.synonyms):
            for phrase in synonyms:
                for words in _spellings(phrase):
                    owners.setdefault(words, set()).add(index)
        names: dict[tuple[str, ...], set[int]] = {}
        for index, name in enumerate(vocabulary.names):
            for words in _spellings(name):
                names.setdefault(words, set()).add(index)
        for words, classes in (owners | names).items():
            self._phrases[words] = classes.pop() if len(classes) == 1 else _NONE
        self._longest = max((len(words) for words in self._phrases), default=0)

    def __call__(self, caption: str) -> tuple[int, ...]:
        """Indices in [0, K) of the classes that ``caption`` names, ascending, each once."""
        found = set()
        for part in phrases(caption):
            found.update(self._in_phrase(part))
        return tuple(sorted(found))

    def classes_of(self, phrase: str) -> int | None:
        """The class that is called ``phrase`` as a whole; None if there is none."""
        index = self._phrases.get(tuple(_words(phrase)), _NONE)
        return None if index == _NONE else index

    def _in_phrase(self, words: Sequence[str]) -> set[int]:
        matches = []
        for start in range(len(words)):
            for stop in range(start + 1, min(start + self._longest, len(words)) + 1):
                index = self._phrases.get(tuple(words[start:stop]))
                if index is not None:
                    matches.append((start - stop, start, index))  # the longest, then the first
        free, found = [True] * len(words), set()
        for length, start, index in sorted(matches):
            span = slice(start, start - length)
            if all(free[span]):
                free[span] = [False] * -length
                found.add(index)
        return found - {_NONE}


def phrases(text: str) -> list[list[str]]:
    """The words of ``text``, lower-cased, without accents and possessives, phrase by phrase."""
    parts = [_WORD.findall(part) for part in _PHRASE_END.split(_folded(text))]
    return [[_POSSESSIVE.sub("", word) for word in part] for part in parts if part]


def _spellings(name: str) -> list[tuple[str, ...]]:
    """The words of a name, and with the last one in the plural."""
    words = _words(name)
    return [(*words[:-1], last) for last in (words[-1], *plurals(words[-1]))] if words else []


def _words(name: str) -> list[str]:
    """The words of a name without its note; with it where nothing else is left."""
    words = [word for part in phrases(_NOTE.sub(" ", name)) for word in part]
    return words or [word for part in phrases(name) for word in part]


def plurals(word: str) -> tuple[str, ...]:
    """Ways to write the plural of a lower-case English noun.

    "man" is looked up with what stands before it ("snowman", "fireman") as well.
    """
    for singular in ("woman", "man"):
        if word.endswith(singular) and word not in ("human", "german", "talisman", "caiman"):
            return (word.removesuffix("man") + "men",)
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return (word + "es",)
    if len(word) > 1 and word.endswith("y") and word[-2] not in "aeiou":
        return (word[:-1] + "ies",)
    if word.endswith("o"):
        return (word + "s", word + "es")
    return (word + "s",)


def _folded(text: str) -> str:
    """Lower case without accents."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))
