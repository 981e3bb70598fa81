"""Concepts and what they mean: DetCLIP's concept dictionary (arXiv 2209.09407, section 3.2).

It enriches class names ("name, definition") and gives the negatives of images whose labels are
phrases. As a file it is ``{"format": "ovd-concepts", "version": 1, "concepts": {name: definition,
...}}`` with "" where no definition is known.

Letters: M concepts, D embedding width.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd_d2.errors import OVDError, reason
from ovd_d2.files.atomic import is_special_file, write_json
from ovd_d2.language.prompts import clean_name
from ovd_d2.language.vocabulary import Vocabulary

FORMAT, FORMAT_VERSION = "ovd-concepts", 1
_DATASET = "dataset:"
_SURROGATE, _CONTROL = re.compile("[\ud800-\udfff]"), re.compile("[\x00-\x1f]")
_REMEDY = "build it again with `ovd vocab dictionary`"


class ConceptDictionary:
    """M concepts in a fixed order, each with a definition or "". Immutable and comparable.

    Names are compared as ``prompts.clean_name`` writes them: "Aerosol_can" is "aerosol can".
    """

    def __init__(self, definitions: Mapping[str, str]) -> None:
        """
        Args:
            definitions: name -> definition, "" where none is known; in order. Of names that are the
                same when cleaned, the first definition that is not empty counts.

        Raises:
            OVDError: a name or definition that is no text, or a name that is empty when cleaned.
        """
        if not isinstance(definitions, Mapping):
            raise OVDError(f"concepts are a mapping of names to definitions, not {definitions!r}")
        self._definitions = _merged(definitions.items())
        self._names = tuple(self._definitions)
        self._places = {name: place for place, name in enumerate(self._names)}
        same: dict[str, list[int]] = {}
        for place, definition in enumerate(self._definitions.values()):
            if definition:
                same.setdefault(definition, []).append(place)
        self._same = same

    @property
    def names(self) -> tuple[str, ...]:
        """The M names, cleaned and distinct, as first seen."""
        return self._names

    def __len__(self) -> int:
        """M, the number of concepts."""
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._places

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConceptDictionary):
            return NotImplemented
        return list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(self._names)

    def __repr__(self) -> str:
        return f"ConceptDictionary({len(self)} concepts)"

    @classmethod
    def load(cls, spec: str) -> "ConceptDictionary":
        """What ``spec`` names.

        Args:
            spec: "" (no concepts); "lvis" (names, synonyms and definitions of LVIS v1, part of
                Detectron2); "imagenet21k" (those of ImageNet-21K's synsets, part of timm, of a
                word's meanings the one it names first in, then the most usual, as
                ``imagenet_names.synsets_usual_first`` guesses it);
                "wordnet" (WordNet's nouns, by nltk); "dataset:NAME" (classes of a registered data
                set); a .json file that :meth:`save` wrote; or several with "+" between, of which
                the first that defines a name counts.

        Raises:
            OVDError: ``spec`` names something that is not there or is damaged, or a package or
                corpus is missing.
        """
        if not isinstance(spec, str):
            raise OVDError(f"concepts are described by a text, not {spec!r}")
        if not spec.strip():
            return cls({})
        whole = spec.strip()
        parts = [whole] if _is_file(whole) else [part.strip() for part in whole.split("+")]
        return cls(_merged(pair for part in parts for pair in _read_part(part, whole)))

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary) -> "ConceptDictionary":
        """The names of K classes and then their synonyms, with the definitions of the classes."""
        words = [(name, *more) for name, more in zip(vocabulary.names, vocabulary.synonyms)]
        return cls(_merged(_words_and_definitions(list(zip(words, vocabulary.definitions)))))

    def items(self) -> Iterator[tuple[str, str]]:
        """(name, definition) of each concept, in order."""
        return iter(self._definitions.items())

    def definition(self, name: str) -> str:
        """The definition of a concept without a full stop at its end; "" if it has none or is not
        in the dictionary."""
        return self._definitions.get(_key(name), "")

    def text(self, name: str, definition: str | None = None) -> str:
        """What the text encoder reads of a concept: "name, definition", or "name" without one.

        Args:
            name: of the dictionary or not; it is cleaned.
            definition: instead of the dictionary's.

        Raises:
            OVDError: nothing is left of the name.
        """
        cleaned = clean_name(name)
        meaning = self.definition(name) if definition is None else _clean_definition(definition)
        return f"{cleaned}, {meaning}" if meaning else cleaned

    def sample(
        self,
        count: int,
        *,
        exclude: Collection[str] = (),
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """Distinct names, drawn uniformly; fewer than ``count`` if there are not so many.

        Costs O(count + len(exclude)), whatever M.

        Args:
            count: 0 or more.
            exclude: names not to draw; a name of the dictionary also keeps those away that have its
                very definition, which are its synonyms.
            generator: of the CPU; None: torch's own.
        """
        if count < 0:
            raise OVDError(f"count is {count}; it must be 0 or more")
        taken = self._places_of(exclude)
        total, free = len(self), len(self) - len(taken)
        if 2 * (count + len(taken)) > total:  # most of them: then listing all is as quick
            places = [place for place in range(total) if place not in taken]
            order = torch.randperm(free, generator=generator)[:count].tolist()
            return [self._names[places[n]] for n in order]
        drawn: dict[int, None] = {}
        while len(drawn) < count:  # every second try hits, at least
            tries = torch.randint(total, (2 * (count - len(drawn)),), generator=generator)
            drawn.update(dict.fromkeys(p for p in tries.tolist() if p not in taken))
        return [self._names[place] for place in list(drawn)[:count]]

    def with_nearest(
        self,
        names: Sequence[str],
        embed: Callable[[Sequence[str]], Tensor],
        threshold: float,
    ) -> "ConceptDictionary":
        """The dictionary with ``names`` at its end, of which those without a definition borrow that
        of the concept with the nearest embedding (DetCLIP, section 3.2).

        Args:
            names: N names.
            embed: names -> (their number, D) floats, of any length.
            threshold: least cosine, -1..1, of a concept to borrow from.
        """
        bare = [name for name in names if not self.definition(name)]
        lenders = [name for name in self._names if self._definitions[name]]
        lent = dict.fromkeys(names, "")
        if bare and lenders:
            theirs = torch.nn.functional.normalize(embed(lenders).float(), dim=1)
            ours = torch.nn.functional.normalize(embed(bare).float(), dim=1)
            for name, cosines in zip(bare, ours @ theirs.T):
                best = int(cosines.argmax())
                if float(cosines[best]) >= threshold:
                    lent[name] = self._definitions[lenders[best]]
        return ConceptDictionary(_merged([*self.items(), *lent.items()]))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the .json file that :meth:`load` reads, atomically; its folder must be there.

        Raises:
            OSError: it cannot be written.
        """
        content = {"format": FORMAT, "version": FORMAT_VERSION, "concepts": self._definitions}
        write_json(path, content)

    def _places_of(self, names: Collection[str]) -> set[int]:
        """The places of ``names`` and of their synonyms."""
        places: set[int] = set()
        for key in {_key(name) for name in names} & self._places.keys():
            places.update(self._same.get(self._definitions[key], (self._places[key],)))
        return places


def _key(name: str) -> str:
    """The cleaned name, or "" if nothing is left of it."""
    try:
        return clean_name(name)
    except OVDError:
        return ""


def _clean_definition(definition: str) -> str:
    return " ".join(definition.split()).rstrip(". ")


def _merged(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Cleaned name -> cleaned definition, the first that is not empty."""
    found: dict[str, str] = {}
    for name, definition in pairs:
        for value in (name, definition):
            if isinstance(value, str) and not _SURROGATE.search(value):
                continue
            what = "name" if value is name else f"definition of {name!r}"
            if not isinstance(value, str):
                raise OVDError(f"a concept's {what} must be a text, not {value!r}")
            raise OVDError(f"a concept's {what} holds half a surrogate pair; repair {value!r}")
        cleaned, meaning = clean_name(name), _clean_definition(definition)
        if _CONTROL.search(cleaned):
            raise OVDError(f"a concept's name holds a control character; remove it from {name!r}")
        found[cleaned] = found.get(cleaned) or meaning
    return found


def _read_part(part: str, spec: str) -> Iterable[tuple[str, str]]:
    """(name, definition) pairs of one part of ``spec``."""
    if part == "lvis":
        return _lvis()
    if part == "imagenet21k":
        from ovd_d2.language.imagenet_names import synsets_usual_first

        return _words_and_definitions(synsets_usual_first())
    if part == "wordnet":
        return _wordnet()
    if part.startswith(_DATASET):
        vocabulary = Vocabulary.from_metadata(part.removeprefix(_DATASET).strip())
        return ConceptDictionary.from_vocabulary(vocabulary).items()
    if part.lower().endswith(".json") or _is_file(part):
        return _read_file(Path(part))
    raise OVDError(
        f"concepts {spec!r}: {part!r} is none of lvis, imagenet21k, wordnet, dataset:NAME and "
        "FILE.json; write one or several of them with '+' between"
    )


def _words_and_definitions(
    entries: Sequence[tuple[Sequence[str], str]],
) -> Iterator[tuple[str, str]]:
    """First words before further ones: a class's name is not another's synonym."""
    yield from ((words[0], definition) for words, definition in entries)
    yield from ((word, definition) for words, definition in entries for word in words[1:])


def _lvis() -> Iterable[tuple[str, str]]:
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    categories = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    return _words_and_definitions([((c["name"], *c["synonyms"]), c["def"]) for c in categories])


def _wordnet() -> Iterable[tuple[str, str]]:
    """WordNet's nouns, each with the definition of its most frequent sense."""
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise OVDError(f"WordNet is read by nltk, which is missing ({error}); run: pip install "
                       "nltk, then python -m nltk.downloader wordnet") from error  # fmt: skip
    try:
        lemmas = sorted(wordnet.all_lemma_names(pos="n"))
    except LookupError as error:
        raise OVDError(
            "WordNet's files are missing; run: python -m nltk.downloader wordnet"
        ) from error
    return ((lemma, wordnet.synsets(lemma, pos="n")[0].definition()) for lemma in lemmas)


def _read_file(path: Path) -> Iterable[tuple[str, str]]:
    if is_special_file(path):
        raise OVDError(f"concept dictionary {path} is a pipe or a device; give a plain file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_key_twice)
        return _checked(content)
    except OVDError as error:
        raise OVDError(f"concept dictionary {path}: {error}; {_REMEDY}") from error
    except OSError as error:
        why = error.strerror or reason(error)
        raise OVDError(
            f"cannot read concept dictionary {path} ({why}); give an existing .json file"
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a NUL in the path, no json
        raise OVDError(
            f"concept dictionary {path} is no valid json ({reason(error)}); {_REMEDY}"
        ) from error


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise OVDError(f"it has the name {key!r} {count} times")
    return dict(pairs)


def _checked(content: Any) -> Iterable[tuple[str, str]]:
    """The concepts of a file's content."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise OVDError(f'it is no concept dictionary, whose "format" is "{FORMAT}"')
    version, concepts = content.get("version"), content.get("concepts")
    if type(version) is not int or version != FORMAT_VERSION:
        raise OVDError(f"it has version {version!r}, this program reads {FORMAT_VERSION}")
    if not isinstance(concepts, dict):
        raise OVDError('its "concepts" are no object {name: definition}')
    spellings: dict[str, str] = {}
    for name, definition in concepts.items():
        _merged([(name, definition)])  # texts, and something left of the name
        other = spellings.setdefault(clean_name(name), name)
        if other != name:
            raise OVDError(f"it has {other!r} and {name!r}, which are the same when cleaned")
    return concepts.items()


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long for a path, or a NUL in it
        return False
