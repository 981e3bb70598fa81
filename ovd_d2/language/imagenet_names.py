"""Names of ImageNet's synsets: the 1000 of ImageNet-1K, and those of ImageNet-21K, as classes that
compete with those of another vocabulary."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.language.vocabulary import Vocabulary

PREFIX = "imagenet21k:"
# WordNet's numbers of acts and games, of attributes such as colours, and of thoughts
_NO_THINGS = ((37396, 1317541), (4616000, 5217168), (5611302, 6252138))


def extend_with_imagenet21k(vocabulary: Vocabulary, count: str | int) -> Vocabulary:
    """``vocabulary`` followed by ``count`` names of ImageNet-21K that it does not have.

    A synset is left out if any of its lemmas is a name or synonym of a class already there; its
    name is its first lemma. The choice is the same on every machine: synsets come in the order of
    the sha256 of their WordNet ids, which is as good as random.

    Args:
        vocabulary: K classes; they keep their places.
        count: how many to add, at least 1.

    Returns:
        K + ``count`` classes; the new ones are not novel and have image count 0, if the others
        have counts.

    Raises:
        OVDError: timm is not there, or there are fewer names than asked for.
    """
    count = _checked_count(count)
    taken = {
        _key(word)
        for name, words in zip(vocabulary.names, vocabulary.synonyms)
        for word in (name, *words)
    }
    names, synonyms, definitions = [], [], []
    for lemmas, definition in synsets():
        if len(names) == count:
            break
        keys = {_key(word) for word in lemmas}
        if keys & taken:
            continue
        taken |= keys
        names.append(lemmas[0])
        synonyms.append(lemmas)
        definitions.append(definition)
    if len(names) < count:
        raise OVDError(
            f"{PREFIX}{count} asks for more names than ImageNet-21K has besides this vocabulary: "
            f"{len(names)}."
        )
    return Vocabulary(
        names=(*vocabulary.names, *names),
        synonyms=(*vocabulary.synonyms, *synonyms),
        definitions=(*vocabulary.definitions, *definitions),
        is_novel=(*vocabulary.is_novel, *(False for _ in names)),
        image_counts=(
            (*vocabulary.image_counts, *(0 for _ in names)) if vocabulary.image_counts else ()
        ),
    )


def imagenet1k_synsets() -> tuple[str, ...]:
    """The 1000 WordNet ids, "n01440764" first, in the order of the class numbers.

    Raises:
        OVDError: timm is not there.
    """
    return tuple(_info("imagenet1k").label_names())


def imagenet1k_names(file: Path | None = None) -> tuple[str, ...]:
    """The 1000 class names that CLIP's authors edited (Radford et al. 2021, section 3.1.4), as
    open_clip has them; or those of a file.

    CLIP calls two pairs of classes "missile" and "sunglasses". These four get the first words of
    their synsets, "missile", "projectile", "sunglass" and "sunglasses", so that names are distinct.

    Args:
        file: UTF-8 text, a name a line, 1000 of them, in the order of the synsets; read if it is
            there.

    Raises:
        OVDError: there is neither file nor open_clip, or a file with another number of names.
    """
    synsets = imagenet1k_synsets()
    if file is not None and file.is_file():
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise OVDError(f"{file} is not readable text ({error}); write it as UTF-8.") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
        if len(names) != len(synsets):
            raise OVDError(f"{file} has {len(names)} names; it needs {len(synsets)}, one a line.")
        return tuple(names)
    try:
        from open_clip import IMAGENET_CLASSNAMES
    except ImportError as error:
        raise OVDError(
            "CLIP's names of ImageNet's classes come with open_clip, which is missing "
            f"({error}): pip install open_clip_torch, or write them into {file or 'a file'}, one a "
            "line in the order of the synsets."
        ) from error
    return _distinct(list(IMAGENET_CLASSNAMES), synsets)


def _distinct(names: list[str], synsets: tuple[str, ...]) -> tuple[str, ...]:
    info, times = _info("imagenet1k"), Counter(names)
    return tuple(
        info.label_name_to_description(synset).split(",")[0] if times[name] > 1 else name
        for name, synset in zip(names, synsets, strict=True)
    )


def _checked_count(count: str | int) -> int:
    text = str(count).strip()
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise OVDError(f"{PREFIX}{count}: write a number of names from 1, such as {PREFIX}4812.")
    return int(text)


def _key(word: str) -> str:
    """What two spellings of a word share."""
    plain = re.sub(r"\(.*?\)", " ", word.lower())
    return " ".join(re.sub(r"[_\-/.'’]", " ", plain).split()) or word.lower()


def synsets() -> tuple[tuple[tuple[str, ...], str], ...]:
    """(lemmas, definition) of the 21,843 synsets, in the order of the sha256 of their ids."""
    return _in_order(lambda label: hashlib.sha256(label.encode()).hexdigest())


def synsets_usual_first() -> tuple[tuple[tuple[str, ...], str], ...]:
    """(lemmas, definition) of the 21,843 synsets, a word's usual meanings before its rarer ones.

    Neither timm nor ImageNet say how usual a meaning is. First come the synsets of ImageNet-12K,
    which have many images; among them what can be seen before acts, attributes and thoughts
    ("ball": not the game; "lemon": not the flavour); then WordNet's numbers, which rise with the
    number of a word's sense. Of 193 words with several meanings that are LVIS classes 154 get
    LVIS's first, with numbers alone 146, in the order of :func:`synsets` 78.

    Raises:
        OVDError: timm is not there.
    """
    many_images = set(_info("imagenet12k").label_names())
    return _in_order(lambda label: (label not in many_images, not _is_thing(label), label))


def _is_thing(label: str) -> bool:
    return not any(start <= int(label[1:]) < end for start, end in _NO_THINGS)


def _in_order(key: Callable[[str], Any]) -> tuple[tuple[tuple[str, ...], str], ...]:
    found = _lemmas_and_definitions()
    return tuple(found[label] for label in sorted(found, key=key))


@cache
def _lemmas_and_definitions() -> dict[str, tuple[tuple[str, ...], str]]:
    """WordNet id -> (lemmas, definition) of the synsets."""
    info, found = _info("imagenet21k"), {}
    for label in info.label_names():
        lemmas = info.label_name_to_description(label)
        definition = info.label_name_to_description(label, detailed=True)[len(lemmas) + 2 :]
        words = tuple(word.strip() for word in lemmas.split(",") if word.strip())
        found[label] = (words, definition)
    return found


def _info(subset: str) -> Any:
    """Names of a subset of ImageNet, by timm."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise OVDError(
            f"ImageNet's names come with timm, which is missing ({error}): pip install timm"
        ) from error
    return ImageNetInfo(subset)
