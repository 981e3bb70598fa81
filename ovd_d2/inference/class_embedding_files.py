"""The present classes of a model as a file of embeddings, for a graph whose classes are an input.

Letters: K classes, D embedding width.
"""

import os
from pathlib import Path

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output
from ovd_d2.language import TextEmbeddings, VocabularyLike, as_vocabulary
from ovd_d2.language.embedding_files import write_embedding_file
from ovd_d2.modeling import get_vocabulary
from ovd_d2.modeling.open_vocabulary import part_with

from .opening import check_model_choice, open_predictor
from .predictor import OpenVocabPredictor

SUFFIX = ".safetensors"


def check_embedding_output(what: str, path: str | os.PathLike) -> None:
    """Raises OVDError, before any work, unless ``path`` (of option ``what``) can be written."""
    if Path(path).suffix != SUFFIX:
        raise OVDError(f"{what} {path}: end the name in {SUFFIX}.")
    check_output(what, path)


def class_embeddings(predictor: OpenVocabPredictor) -> TextEmbeddings:
    """(K, D) embeddings of the predictor's classes, by the model's own class embedder.

    Raises:
        OVDError: no classes, or a model that has no class embeddings.
    """
    vocabulary, owner = (
        get_vocabulary(predictor.model),
        part_with(predictor.model, "class_embedder"),
    )
    if owner is None:
        raise OVDError(
            f"{type(predictor.model).__name__} has no class embeddings, it reads the names itself: "
            "give a model with ovd_d2's ROI heads, a DetCLIP or an LSeg."
        )
    if vocabulary is None:
        raise OVDError("There are no names to embed: give some.")
    return owner.class_embedder.embed(vocabulary)


def write_class_embeddings(
    predictor: OpenVocabPredictor, path: str | os.PathLike
) -> TextEmbeddings:
    """Writes ``path`` (.safetensors) and its manifest, which names the encoder and the classes, and
    says which of these are novel ("is_novel"), as an ensemble has to know, and how many of the last
    ones only compete and are not reported ("competitors", if there are any).

    Raises:
        OVDError: as :func:`class_embeddings`, or it cannot be written.
    """
    rows = class_embeddings(predictor)
    manifest = {
        "encoder_id": rows.encoder_id,
        "names": list(rows.names),
        "is_novel": list(get_vocabulary(predictor.model).is_novel),
    }
    if count := _competitors(predictor):
        manifest["competitors"] = count
    try:
        write_embedding_file(Path(path), rows.embeddings, manifest)
    except OSError as error:
        raise OVDError(f"Cannot write {path}: {error.strerror or error}.") from error
    return rows


def embed_names(
    names: VocabularyLike,
    path: str | os.PathLike,
    *,
    model: str | os.PathLike = "",
    config_file: str | os.PathLike | None = None,
    weights: str | os.PathLike = "",
    alone: bool = False,
) -> tuple[TextEmbeddings, int]:
    """:func:`write_class_embeddings` of names for a model.

    Args:
        names: see ``OpenVocabPredictor.set_vocabulary``.
        path: the file to write.
        model: see ``OpenVocabPredictor.from_pretrained``; "": the default one.
        config_file: a yaml, instead of ``model``.
        weights: of ``config_file``.
        alone: see ``set_vocabulary``.

    Returns:
        what is written, and how many of the last rows only compete.

    Raises:
        OVDError: both or neither fit together, no such model, or no usable names.
    """
    check_model_choice(model, config_file, weights)
    as_vocabulary(names)  # bad ones are found before a model is loaded
    predictor = open_predictor(model, config_file, weights, device="cpu")
    predictor.set_vocabulary(names, alone=alone)
    return write_class_embeddings(predictor, path), _competitors(predictor)


def _competitors(predictor: OpenVocabPredictor) -> int:
    return predictor.rules.facts.get("competitors", 0) if predictor.rules else 0
