"""A concept dictionary out of label sets and of the noun phrases of captions (DetCLIP, arXiv
2209.09407, section 3.2).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from ovd_d2.data.named_datasets import check_registered, dataset_errors
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output
from ovd_d2.language import ConceptDictionary, Vocabulary, clean_name
from ovd_d2.language.noun_phrases import AUTO, noun_phrase_finder
from ovd_d2.structures import TokenSpans

_NAMES_FROM = ("dataset:", ".txt", ".json")
_PROGRESS_AFTER = 5.0  # seconds


@dataclass(frozen=True)
class DictionarySettings:
    """Where the concepts and their definitions come from.

    Attributes:
        out: the .json file.
        names: label sets, "dataset:NAME" or .txt and .json files as ``Vocabulary.load`` reads them;
            their synonyms and definitions count too.
        captions: data sets with captions: "pairs:PATH", "grounding:...", or registered.
        definitions: what gives definitions to names that have none: a ``ConceptDictionary.load``
            description; "": nothing.
        noun_phrases: see ``noun_phrase_finder``.
        min_count: phrases that fewer captions have are left out; at least 1.

    Raises:
        OVDError: a value that cannot be meant, or nothing to take concepts from.
    """

    out: Path
    names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    definitions: str = ""
    noun_phrases: str = AUTO
    min_count: int = 2

    def __post_init__(self) -> None:
        if not self.names and not self.captions:
            raise OVDError(
                "give --names (label sets) or --captions (data sets with captions) to take "
                "concepts from"
            )
        for spec in self.names:
            start, *endings = _NAMES_FROM
            if not spec.startswith(start) and not spec.lower().endswith(tuple(endings)):
                raise OVDError(f"--names {spec}: give dataset:NAME, or a .txt or .json file")
        if self.out.suffix.lower() != ".json":
            raise OVDError(f"--out {self.out}: end the name in .json")
        if self.min_count < 1:
            raise OVDError(f"--min-count {self.min_count}: give 1 or more")


@dataclass(frozen=True)
class DictionaryReport:
    """What was built.

    Attributes:
        concepts: in the dictionary.
        defined: those with a definition.
        of_label_sets: those that are names or synonyms of label sets.
        captions: that were read.
        without_phrase: captions without a noun phrase.
        phrases: distinct noun phrases of the captions.
        kept: those that enough captions have.
        most_frequent: up to ten (phrase, captions that have it), the most frequent first.
    """

    concepts: int
    defined: int
    of_label_sets: int
    captions: int
    without_phrase: int
    phrases: int
    kept: int
    most_frequent: tuple[tuple[str, int], ...]


def build_concept_dictionary(settings: DictionarySettings) -> DictionaryReport:
    """Writes the dictionary: label sets in their order, then phrases, the most frequent first. A
    progress bar appears after five seconds.

    Raises:
        OVDError: bad settings, an input that is not there or damaged, or no concept in them.
    """
    check_registered("--captions", settings.captions)
    check_output("--out", settings.out, _input_files(settings))
    finder = noun_phrase_finder(settings.noun_phrases) if settings.captions else None
    known = ConceptDictionary.load(settings.definitions)
    found: dict[str, str] = {}
    for spec in settings.names:
        for name, definition in ConceptDictionary.from_vocabulary(Vocabulary.load(spec)).items():
            found[name] = found.get(name) or definition
    of_label_sets = len(found)
    counts: Counter[str] = Counter()
    captions = without_phrase = 0
    for caption in _captions(settings.captions):
        phrases = {clean_name(caption[begin:end]) for begin, end in finder(caption)}
        counts.update(phrases)
        captions += 1
        without_phrase += not phrases
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    kept = [(phrase, count) for phrase, count in ranked if count >= settings.min_count]
    for phrase, _ in kept:
        found.setdefault(phrase, "")
    if not found:
        raise OVDError(
            f"{', '.join(settings.captions)}: no noun phrase is in {settings.min_count} of the "
            f"{captions} captions; lower --min-count or give more captions"
        )
    dictionary = ConceptDictionary(
        {name: meaning or known.definition(name) for name, meaning in found.items()}
    )
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    dictionary.save(settings.out)
    return DictionaryReport(
        concepts=len(dictionary),
        defined=sum(bool(definition) for _, definition in dictionary.items()),
        of_label_sets=of_label_sets,
        captions=captions,
        without_phrase=without_phrase,
        phrases=len(counts),
        kept=len(kept),
        most_frequent=tuple(ranked[:10]),
    )


def _input_files(settings: DictionarySettings) -> list[str]:
    """The files among what is read."""
    specs = [*settings.names, settings.definitions, *settings.definitions.split("+")]
    sets = [*settings.captions, *(s.removeprefix("dataset:") for s in specs if ":" in s)]
    listed = [name for name in sets if name in DatasetCatalog.list()]
    files = [MetadataCatalog.get(name).get("json_file") for name in listed]
    return [file for file in (*specs, *files) if file]


def _captions(datasets: tuple[str, ...]) -> Iterator[str]:
    """The captions of all data sets, with spaces for what is no printable character."""
    loaded = []
    for name in datasets:
        with dataset_errors("--captions", [name]):
            records = DatasetCatalog.get(name)
        if not isinstance(records, list):
            raise OVDError(f"--captions {name} is a stream of images: give one that is a list")
        loaded.append((name, records))
    total = sum(len(records) for _, records in loaded)
    with tqdm(total=total, desc="noun phrases", unit="caption", delay=_PROGRESS_AFTER) as bar:
        for name, records in loaded:
            seen = False
            for record in records:
                caption = record.get("caption")
                text = caption.caption if isinstance(caption, TokenSpans) else caption
                if isinstance(text, str) and text.strip():
                    seen = True
                    yield "".join(letter if letter.isprintable() else " " for letter in text)
                bar.update()
            if not seen:
                raise OVDError(
                    f"--captions {name} has no captions: give image-text pairs (pairs:PATH), "
                    "grounding data (grounding:FOLDER:FILE.json) or a registered data set with "
                    "captions"
                )
