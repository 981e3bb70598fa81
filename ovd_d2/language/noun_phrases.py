"""Noun phrases of a caption as character spans, and left and right of a mirrored image.

GLIP grounds web captions by their noun phrases (section 3.3). With spaCy they are the noun chunks
of a parsed sentence. Without it they are what lies between the words that end a phrase: articles,
prepositions, pronouns, conjunctions, common verbs and words in "-ing". That finds the things of
short captions, and takes an unknown verb for a part of a phrase.

By either way a phrase begins behind its article ("a red car" -> "red car"), and phrases that are no
things ("photo", "front", "left") are left out.
"""

import importlib.util
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.structures.grounding import Span, TokenSpans

logger = logging.getLogger(__name__)

AUTO, STOP_WORDS = "auto", "stop-words"
DEFAULT_PIPELINE = "en_core_web_sm"
_LONGEST = 4  # words of a phrase that no parser has found; the last ones, where the noun is
_WORD = re.compile(r"[^\W_]+(?:[-'’&][^\W_]+)*|[^\w\s]|_")
_SIDE = re.compile(r"\b(left|right)(?=(?:most|wards?|hand|handed)?\b)", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "right": "left"}

_STOP_WORDS = """
a an the this that these those some any each every another other both all no its his her their
our my your it he she they we you i him them us me who whom whose which what there here one's
something someone somebody anyone everyone nobody of in on at by with without from to into onto
over under above below behind beside besides between among through across along around against
near next inside outside within toward towards off out up down about after before during while
as than for upon past atop amid like and or but nor so yet if when where because then also too
very just only not n't more most is are was were be been being am has have had do does did can
could will would shall should may might must get gets got let lets sits sit sat stands stand
stood lies lie lay lays holds hold held wears wear wore rides ride rode looks look looked walks
walk walked runs run ran plays play played shows show showed eats eat ate makes make made takes
take took goes go went seems seem see sees seen saw hangs hang hung leans lean leaned jumps jump
jumped flies fly flew waits wait waited uses use used contains contain covered filled parked
seated surrounded topped taken shown placed mounted attached dressed lined stacked located set
ready able together away apart ahead
"""
_NO_THINGS_WORDS = """
photo photos photograph picture pictures image images view shot close closeup close-up scene
drawing painting icon illustration background foreground front back side sides left right top
bottom middle center centre corner edge end rest kind type variety couple pair bunch group lot
lots number few several many much way day time s
"""
_THINGS_IN_ING_WORDS = """
awning bedding bling building buildings bearing carving ceiling clothing covering crossing
dressing duckling dumpling dumplings earring earrings evening fencing fishing icing king landing
lightning lining morning napkin-ring opening painting parking pudding railing ring rings rigging
roofing serving shelving siding sling spring sting string stocking stuffing swing thing things
topping toppings tubing wedding wing wings wiring writing
"""

_STOP, _NO_THINGS, _THINGS_IN_ING = (
    frozenset(text.split()) for text in (_STOP_WORDS, _NO_THINGS_WORDS, _THINGS_IN_ING_WORDS)
)

NounPhrases = Callable[[str], list[Span]]


def noun_phrase_finder(how: str = AUTO) -> NounPhrases:
    """What finds the noun phrases of a caption: ``find(caption)`` -> [begin, end) characters, in
    order, none overlapping another.

    Args:
        how: "auto": spaCy with en_core_web_sm where both are installed, otherwise stop words (a log
            line says which); "stop-words"; or the name or folder of a pipeline of spaCy.

    Raises:
        OVDError: spaCy or the pipeline is not there.
    """
    if how == AUTO:
        how = chosen_way()
        by = how if how == STOP_WORDS else f"spaCy ({how})"
        logger.info("Noun phrases are found by %s.", by)
    if how == STOP_WORDS:
        return phrases_between_stop_words
    return partial(spacy_noun_phrases, pipeline=load_pipeline(how))


def chosen_way(how: str = AUTO) -> str:
    """``how`` of :func:`noun_phrase_finder` without "auto": what that means on this machine."""
    if how != AUTO:
        return how
    installed = all(importlib.util.find_spec(name) for name in ("spacy", DEFAULT_PIPELINE))
    return DEFAULT_PIPELINE if installed else STOP_WORDS


def load_pipeline(name: str) -> Any:
    """A pipeline of spaCy, by name or folder.

    Raises:
        OVDError: spaCy or the pipeline is not there.
    """
    try:
        import spacy
    except ImportError as error:
        raise OVDError(
            f"spaCy cannot be imported ({error}); run: pip install spacy, or find noun phrases by "
            f"{STOP_WORDS!r}"
        ) from error
    try:
        return spacy.load(name)
    except (OSError, ValueError) as error:
        raise OVDError(
            f"spaCy cannot load the pipeline {name!r}; run: python -m spacy download "
            f"{DEFAULT_PIPELINE}, or find noun phrases by {STOP_WORDS!r}"
        ) from error


def spacy_noun_phrases(caption: str, pipeline: Any) -> list[Span]:
    """The noun chunks of a caption.

    Args:
        caption: the text.
        pipeline: of spaCy, with a parser.
    """
    found = []
    for chunk in pipeline(caption).noun_chunks:
        words = [
            (begin + chunk.start_char, end + chunk.start_char, word)
            for begin, end, word in _words(caption[chunk.start_char : chunk.end_char])
        ]
        found += _phrase(words)
    return found


def phrases_between_stop_words(caption: str) -> list[Span]:
    """The words of a caption between those that end a phrase; needs no library."""
    found, run = [], []
    for begin, end, word in [*_words(caption), (0, 0, ".")]:
        if word in _STOP or not word[0].isalnum() or _is_action(word):
            found += _phrase(run[-_LONGEST:])
            run = []
        else:
            run.append((begin, end, word))
    return found


def _phrase(words: list[tuple[int, int, str]]) -> list[Span]:
    """The span of consecutive words without the stop words at its ends; [] if no thing is left."""
    while words and (words[0][2] in _STOP or not words[0][2][0].isalnum()):
        words = words[1:]
    while words and (words[-1][2] in _STOP or not words[-1][2][0].isalnum()):
        words = words[:-1]
    if all(word in _NO_THINGS or word.isdigit() for _, _, word in words):
        return []
    return [(words[0][0], words[-1][1])]


def _words(text: str) -> list[tuple[int, int, str]]:
    """(begin, end, lower-cased) of each word and punctuation mark."""
    return [(m.start(), m.end(), m.group().lower()) for m in _WORD.finditer(text)]


def _is_action(word: str) -> bool:
    return len(word) > 4 and word.endswith("ing") and word not in _THINGS_IN_ING


def swap_left_right(spans: TokenSpans) -> TokenSpans:
    """The caption of the mirrored image: "left" and "right" change places, and so do "leftmost",
    "right-hand" and the like; spans follow.

    Whole words alone count ("bright" stays); upper and lower case stay as they are. A span that
    ends inside such a word ends behind its other side.
    """
    caption, begins, ends = spans.caption, {}, {}
    parts, place, shift = [], 0, 0
    moved = list(range(len(caption) + 1))
    for match in _SIDE.finditer(caption):
        begin, end = match.span()
        other = _like(match.group(), _OTHER_SIDE[match.group().lower()])
        for inside in range(begin + 1, end):
            begins[inside] = begin + shift
            ends[inside] = begin + shift + len(other)
        for behind in range(place, begin + 1):
            moved[behind] = behind + shift
        parts += [caption[place:begin], other]
        shift += len(other) - (end - begin)
        place = end
    for behind in range(place, len(caption) + 1):
        moved[behind] = behind + shift
    parts.append(caption[place:])
    phrases = tuple(
        tuple((begins.get(b, moved[b]), ends.get(e, moved[e])) for b, e in phrase)
        for phrase in spans.spans
    )
    return TokenSpans("".join(parts), phrases)


def _like(word: str, other: str) -> str:
    """``other`` in the case of ``word``."""
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
