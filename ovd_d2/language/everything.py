"""Names for "what is in here?": those of LVIS and Objects365, each thing once.

Letter: K classes.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources

from ovd_d2.language.prompts import clean_name
from ovd_d2.language.vocabulary import Vocabulary


@cache
def everything() -> Vocabulary:
    """The 1203 classes of LVIS v1, by Detectron2's list, with their synonyms and definitions; then
    those of Objects365 that are none of them.

    A name of Objects365 is one of LVIS if they are spelled alike but for case, "_", "-", spaces, an
    explanation in brackets and a plural, LVIS's synonyms counted; of "cabinet/shelf" one part is
    enough. Names are cleaned as prompts show them, so "bow_(weapon)" is "bow (weapon)". Nothing
    is marked as novel: the model knows what it has learned.
    """
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    categories = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    names = [clean_name(category["name"]) for category in categories]
    synonyms = [tuple(map(clean_name, category["synonyms"])) for category in categories]
    definitions = [category["def"] for category in categories]
    taken = {key for words in (names, *synonyms) for word in words for key in _spellings(word)}
    for name in objects365_names():
        parts = [name, *name.split("/")]
        if not any(key in taken for part in parts for key in _spellings(part)):
            names.append(clean_name(name))
            synonyms.append((names[-1],))
            definitions.append("")
            taken.update(_spellings(name))
    return Vocabulary(tuple(names), tuple(synonyms), tuple(definitions))


@cache
def objects365_names() -> tuple[str, ...]:
    """The 365 names of Objects365 v2 in their order; those that are misspelled, or do not say what
    is meant ("Tennis": the ball), corrected."""
    file = resources.files("ovd_d2.language") / "objects365.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    return tuple(content["meant"].get(name, name) for name in content["names"])


def _spellings(word: str) -> Iterator[str]:
    """What words for one thing share: with and without brackets, as it is and as a singular."""
    for text in (word, re.sub(r"\(.*?\)", "", word)):
        key = re.sub(r"[\s_.-]", "", text.lower())
        if not key:
            continue
        yield key
        if key.endswith("s") and not key.endswith("ss"):
            yield key[:-1]
        if key.endswith("es"):
            yield key[:-2]
