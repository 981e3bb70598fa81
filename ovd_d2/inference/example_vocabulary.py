"""Vocabularies of words and visual examples: set, kept as profiles, and used again.

A profile is a file of class embeddings (``language/embedding_files.py``) whose manifest also says
by what it was made: "by" ("model" or "crop"), "examples" (how many each name has; 0: its row is
that of its word) and, of rows by "model", "model", a digest of all weights.

Letters: K classes.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ovd_d2 import __version__
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output
from ovd_d2.language import ClassEmbedder, TextEmbeddings, Vocabulary, VocabularyLike
from ovd_d2.language.embedding_files import (
    manifest_path,
    read_embedding_file,
    write_embedding_file,
)
from ovd_d2.language.example_rows import ExampleEmbedder
from ovd_d2.language.known_names import with_known_names
from ovd_d2.modeling.classifiers.embedding_classifier import encoders_differ
from ovd_d2.modeling.open_vocabulary import part_with

from .arguments import is_typed as words_are_typed
from .arguments import wanted_vocabulary
from .example_embeddings import check_sees_examples, check_way, learn_rows
from .examples import Examples, ExamplesLike, as_examples, read_examples

if TYPE_CHECKING:
    from .predictor import OpenVocabPredictor

PROFILE = ".safetensors"


@dataclass(frozen=True)
class ByExamples:
    """What to look for, by examples; a mapping alone means ``ByExamples(mapping)``.

    Attributes:
        examples: class name -> list of (picture, box), None for a class by its word; or a .json
            file of them (see :mod:`ovd_d2.inference.examples`); or a profile (.safetensors).
        how: "model": what the detector sees in a box; "crop": what the image tower of its text
            encoder sees in the crop (see :func:`~ovd_d2.inference.example_embeddings.learn_rows`).
        words: more classes, by their words.
    """

    examples: ExamplesLike | str | os.PathLike
    how: str = "model"
    words: VocabularyLike | None = None

    @property
    def profile(self) -> Path | None:
        """The file, if it is one of rows."""
        of_file = isinstance(self.examples, str | os.PathLike)
        path = Path(self.examples) if of_file else Path()
        return path if path.suffix == PROFILE else None

    def checked(self) -> "ByExamples":
        """The same with a .json read, after all checks that need neither model nor pictures.

        Raises:
            OVDError: naming the file, class or argument.
        """
        check_way(self.how)
        if self.words is not None:
            wanted_vocabulary(self.words)
        if self.profile is not None:
            read_embedding_file(self.profile)
            return self
        given = self.examples
        of_file = isinstance(given, str | os.PathLike)
        return replace(self, examples=read_examples(given) if of_file else as_examples(given))

    def counts(self) -> dict[str, int]:
        """How many examples each class has, once :meth:`checked`."""
        return {name: len(given) for name, given in self.examples.items()}

    def files(self) -> list[str | os.PathLike]:
        """The files that are read."""
        if self.profile is not None:
            return [self.profile, manifest_path(self.profile)]
        if not isinstance(self.examples, Mapping):
            return [self.examples]
        pictures = [e.image for given in as_examples(self.examples).values() for e in given]
        return [image for image in pictures if isinstance(image, str | os.PathLike)]


def given_examples(vocabulary: Any) -> ByExamples | None:
    """The examples if classes are given by some, or by a profile; None: by words alone.

    Raises:
        OVDError: see :meth:`ByExamples.checked`.
    """
    is_path = isinstance(vocabulary, str | os.PathLike)
    if isinstance(vocabulary, Mapping) or (is_path and os.fspath(vocabulary).endswith(PROFILE)):
        vocabulary = ByExamples(vocabulary)
    return vocabulary.checked() if isinstance(vocabulary, ByExamples) else None


def is_typed(vocabulary: Any) -> bool:
    """Whether names are given by words or examples, and all words as
    :func:`~ovd_d2.inference.arguments.is_typed` says."""
    if isinstance(vocabulary, ByExamples):
        vocabulary = vocabulary.words
    return vocabulary is None or isinstance(vocabulary, Mapping) or words_are_typed(vocabulary)


def own_embedder(model: nn.Module) -> ClassEmbedder | None:
    """What embeds words for ``model``; None if it reads them itself."""
    owner = part_with(model, "class_embedder")
    return None if owner is None else owner.class_embedder


def wanted_classes(
    predictor: "OpenVocabPredictor",
    vocabulary: VocabularyLike | ExamplesLike | ByExamples,
    words: ClassEmbedder | None,
) -> tuple[Vocabulary, ClassEmbedder | None]:
    """The classes that a predictor is asked for, and what embeds them (None: the model reads them);
    by ``words`` what has no examples.

    Classes by examples count as novel (no label has taught the model these rows): where branches
    vote, the one that has learned from an image-text teacher counts more. On mini, all classes by
    5 examples: AP 29.2 instead of 28.3.

    Raises:
        OVDError: names, examples, pictures or a profile that cannot be used, or a model that cannot
            use them.
    """
    trained, wanted = predictor.trained, given_examples(vocabulary)
    if wanted is None:
        return wanted_vocabulary(vocabulary, trained), words
    check_sees_examples(predictor.model)
    if wanted.profile is not None:
        names, rows, by_example = _read_profile(wanted.profile, predictor)
    else:
        names, rows = list(wanted.examples), _learned(predictor, wanted.examples, wanted.how)
        by_example = {name for name, given in wanted.examples.items() if given}
    classes = Vocabulary.from_names(names)
    classes = classes if trained is None else with_known_names(classes, trained)
    novel = zip(classes.names, classes.is_novel)
    classes = replace(classes, is_novel=tuple(name in by_example or flag for name, flag in novel))
    if wanted.words is not None:
        classes = _joined(classes, wanted_vocabulary(wanted.words, trained))
    return classes, words if rows is None else ExampleEmbedder(words, rows)


def _learned(
    predictor: "OpenVocabPredictor", examples: Examples, how: str
) -> TextEmbeddings | None:
    if not any(examples.values()):
        return None
    return learn_rows(
        predictor.model, predictor.cfg, examples, words=predictor.words,
        trained=predictor.trained, how=how, input_format=predictor.input_format,
    )  # fmt: skip


def _joined(first: Vocabulary, second: Vocabulary) -> Vocabulary:
    """The classes of both; one that both have is that of the first."""
    new = [k for k, name in enumerate(second.names) if name not in first.names]
    fields = ("names", "synonyms", "definitions", "is_novel")
    return Vocabulary(
        **{f: getattr(first, f) + tuple(getattr(second, f)[k] for k in new) for f in fields}
    )


def write_profile(predictor: "OpenVocabPredictor", wanted: ByExamples, out: Path) -> None:
    """Keeps the rows of a predictor's present classes, words' too, in a profile.

    Args:
        predictor: whose classes are ``wanted``.
        wanted: examples, checked, and no profile.
        out: ends in .safetensors; the manifest goes beside it.

    Raises:
        OVDError: ``out`` cannot be written; nothing is written then.
    """
    owner = part_with(predictor.model, "class_embedder")
    found = owner.class_embedder.embed(predictor.vocabulary)
    counts = wanted.counts()
    manifest = {
        "encoder_id": found.encoder_id,
        "names": list(found.names),
        "examples": [counts.get(name, 0) for name in found.names],
        "by": wanted.how,
        "model": _digest(predictor.model) if wanted.how == "model" else "",
        "ovd_d2": __version__,
    }
    try:
        write_embedding_file(out, found.embeddings, manifest)
    except OSError as error:
        raise OVDError(f"Cannot write {out}: {error.strerror or error}.") from error


def check_profile_path(out: Path, inputs: Sequence[str | os.PathLike]) -> None:
    """Raises OVDError if a profile cannot be written to ``out``, or is one of ``inputs``."""
    if out.suffix != PROFILE:
        raise OVDError(f"A profile is a {PROFILE} file: end the name {out.name} so.")
    check_output("--out", out, inputs)
    check_output("--out", manifest_path(out), inputs)


def _read_profile(
    path: Path, predictor: "OpenVocabPredictor"
) -> tuple[list[str], TextEmbeddings, set[str]]:
    """Names, rows, and which of the names have examples."""
    content, manifest = read_embedding_file(path)
    names, counts = manifest.get("names"), manifest.get("examples")
    is_whole = isinstance(counts, list) and len(counts) == len(content) and names is not None
    if not is_whole or not all(type(count) is int for count in counts):
        raise OVDError(
            f"{path} does not say which names and examples it was made of: make it by "
            "`ovd vocab learn`."
        )
    encoder = predictor.words.encoder_id
    if encoders_differ(manifest["encoder_id"], encoder):
        raise OVDError(
            f"The profile {path} is of the space of {manifest['encoder_id']}, this model's words "
            f"are in that of {encoder}: learn it again with this model (`ovd vocab learn`)."
        )
    if manifest.get("by") == "model" and manifest.get("model") != _digest(predictor.model):
        raise OVDError(
            f"The profile {path} says what another model sees in its examples: learn it again with "
            "this one (`ovd vocab learn`)."
        )
    rows = TextEmbeddings(content, tuple(names), encoder)
    return names, rows, {name for name, count in zip(names, counts) if count}


def _digest(model: nn.Module) -> str:
    """Of all weights."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()[:16]
