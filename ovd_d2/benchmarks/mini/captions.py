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
    distinct = list(dict.fromkeys(categories))
    nouns = [with_article(_noun(rng, distinct[i])) for i in rng.permutation(len(distinct))]
    things = ", ".join(nouns[:-1]) + (" and " if len(nouns) > 1 else "") + nouns[-1]
    caption = IMAGE_TEMPLATES[int(rng.integers(len(IMAGE_TEMPLATES)))].format(things=things)
    return f"{caption} in front of {place}" if rng.random() < 0.5 else caption
