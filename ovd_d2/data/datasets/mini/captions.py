"""Captions for images and for single objects, as a web crawl would have them for all categories."""

from __future__ import annotations

import numpy as np

from ovd_d2.data.datasets.mini.categories import Category

OBJECT_TEMPLATES = (
    "{a}",
    "{a}",
    "a photo of {a}",
    "a picture of {a}",
    "an image of {a}",
    "a drawing of {a}",
    "an icon of {a}",
    "here is {a}",
    "there is {a} in the picture",
    "{name}",
)
IMAGE_TEMPLATES = (
    "{things}",
    "a photo of {things}",
    "a picture of {things}",
    "a scene with {things}",
    "there are {things}",
    "we see {things}",
)
_NO_ARTICLE = (
    "admission tickets|tickets|entrance tickets|bacon|bacon strips|blueberries|bilberries|gloves|"
    "mittens|maracas|rattles|shakers|nesting dolls|Russian dolls|peanuts|groundnuts|peas|socks|"
    "stockings|cooked rice|steamed rice|curry rice|curry with rice|tempura|garlic|dice|"
    "melted cheese|coffee"
)
_PLURALS = frozenset(_NO_ARTICLE.split("|"))


def with_article(noun: str) -> str:
    """ "owl" -> "an owl", "kite" -> "a kite"; plurals and substances stay as they are."""
    if noun in _PLURALS:
        return noun
    return f"{'an' if noun[0].lower() in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def _noun(rng: np.random.Generator, category: Category) -> str:
    """The name, or in one case of three any of the synonyms."""
    if rng.random() < 2 / 3:
        return category.name
    return category.synonyms[int(rng.integers(len(category.synonyms)))]


def object_caption(rng: np.random.Generator, category: Category) -> str:
    """One caption for the crop of an object, e.g. "a drawing of an owl"."""
    noun = _noun(rng, category)
    if rng.random() < 0.2:
        return f"{with_article(noun)}, {category.definition}"
    template = OBJECT_TEMPLATES[int(rng.integers(len(OBJECT_TEMPLATES)))]
    return template.format(a=with_article(noun), name=noun)


def image_caption(rng: np.random.Generator, categories: list[Category], place: str) -> str:
    """One caption that names every category of an image once, in random order."""
    things, _, _ = _list_of_things(rng, categories)
    caption, _ = _in_template(rng, things)
    return f"{caption} in front of {place}" if rng.random() < 0.5 else caption


def grounded_caption(
    rng: np.random.Generator, categories: list[Category]
) -> tuple[str, list[tuple[Category, tuple[int, int]]]]:
    """A caption as :func:`image_caption` makes it, without a place, and what it names.

    Returns:
        the caption; and every category once, in the order of the caption, with the characters
        [begin, end) of its noun, without the article.
    """
    things, named, spans = _list_of_things(rng, categories)
    caption, start = _in_template(rng, things)
    return caption, [(c, (b + start, e + start)) for c, (b, e) in zip(named, spans, strict=True)]


def _list_of_things(
    rng: np.random.Generator, categories: list[Category]
) -> tuple[str, list[Category], list[tuple[int, int]]]:
    """ "a dog, an owl and peas", with its categories and the characters of their nouns."""
    distinct = list(dict.fromkeys(categories))
    named = [distinct[i] for i in rng.permutation(len(distinct))]
    text, spans = "", []
    for place, category in enumerate(named):
        if place:
            text += " and " if place == len(named) - 1 else ", "
        noun = _noun(rng, category)
        text += with_article(noun)
        spans.append((len(text) - len(noun), len(text)))
    return text, named, spans


def _in_template(rng: np.random.Generator, things: str) -> tuple[str, int]:
    """A caption about ``things``, and where in it they begin."""
    template = IMAGE_TEMPLATES[int(rng.integers(len(IMAGE_TEMPLATES)))]
    return template.format(things=things), template.index("{things}")
