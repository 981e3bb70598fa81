"""Class embeddings: names x prompts x encoder -> (K, D) unit vectors, cached on disk.

Letters: K classes, D embedding width, P prompt templates.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.encoders.registry import TextEncoder, build_text_encoder, text_encoder_id
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.files.locks import lock
from ovd_d2.language.embedding_files import read_embedding_file, write_embedding_file
from ovd_d2.language.prompts import clean_name, fill, load_prompts
from ovd_d2.language.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_CHUNK = 512  # texts encoded between two steps of the progress bar
_ROWS = 1 << 15  # normalised at a time: of a million rows every copy would take gigabytes
_PROGRESS_AFTER = 5.0  # seconds
_LONGEST_WAIT = 3600.0  # seconds, for another process that embeds the same


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """The directions of K classes in an encoder's space.

    Attributes:
        embeddings: (K, D) fp32 on the CPU, rows of L2 norm 1, without gradient. The constructor
            normalises what it is given.
        names: K names, in the order of the rows.
        encoder_id: who made them; "file:DIGEST" for a file that does not say.

    Raises:
        OVDError: another rank, another number of names, or a row that is not finite or is zero.
    """

    embeddings: Tensor
    names: tuple[str, ...]
    encoder_id: str

    def __post_init__(self) -> None:
        embeddings = self.embeddings.detach().cpu().float()
        if embeddings.ndim != 2 or len(embeddings) != len(self.names):
            raise OVDError(
                f"text embeddings of {self.encoder_id} have shape {tuple(embeddings.shape)} for "
                f"{len(self.names)} names; they must be (names, dimensions)"
            )
        normalised = _unit_rows(embeddings)
        bad = ~normalised.sum(dim=1).isfinite()
        if bad.any():
            name = self.names[int(bad.nonzero()[0])]
            raise OVDError(
                f"text embeddings of {self.encoder_id}: the row of '{name}' is zero, nan or inf"
            )
        object.__setattr__(self, "embeddings", normalised)
        object.__setattr__(self, "names", tuple(self.names))

    def __len__(self) -> int:
        """K, the number of classes."""
        return len(self.names)

    @property
    def dim(self) -> int:
        """D, the embedding width."""
        return self.embeddings.shape[1]

    def save(self, path: str | os.PathLike) -> None:
        """Writes ``path`` (.safetensors) and its manifest; ``load_text_embeddings`` reads them.

        Raises:
            OVDError: ``path`` has another suffix, or cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise OVDError(f"text embeddings are saved as .safetensors, not {path}")
        try:
            write_embedding_file(path, self.embeddings, self._manifest())
        except OSError as error:
            raise OVDError(f"cannot write {path} ({error}); choose another place") from error

    def _manifest(self) -> dict[str, Any]:
        return {"encoder_id": self.encoder_id, "names": list(self.names)}


def load_text_embeddings(
    path: str | os.PathLike, vocabulary: Vocabulary | None = None
) -> TextEmbeddings:
    """Class embeddings from a file; see ``embedding_files`` for the two formats.

    Args:
        path: ``.npy`` (K, D) as Detic and object-centric-ovd publish, of any floating type and not
            normalised, or ``.safetensors`` with its manifest.
        vocabulary: the classes wanted. A file that names its rows must name exactly these in this
            order; a file that does not takes their names. Without a vocabulary, unnamed rows are
            called "class_0", "class_1", ... Rows that only compete ("competitors" of the manifest)
            are left out.

    Raises:
        OVDError: missing, damaged, stale or wrong file, or one for another vocabulary.
    """
    path = Path(path)
    content, manifest = read_embedding_file(path)
    names = tuple(manifest.get("names") or ())
    if competitors := manifest.get("competitors", 0):
        content, names = content[:-competitors], names[:-competitors]
    if vocabulary is not None:
        _check_fits(path, content, names, vocabulary)
        names = vocabulary.names
    return TextEmbeddings(
        embeddings=content,
        names=names or tuple(f"class_{index}" for index in range(len(content))),
        encoder_id=manifest.get("encoder_id") or f"file:{file_digest(path)[:12]}",
    )


class TextEmbeddingBank:
    """Embeds vocabularies with one encoder and one prompt set, and remembers them on disk.

    A class's embedding is the mean of unit vectors, one for each template (and each synonym),
    normalised again (CLIP's and ViLD's ensemble in embedding space).

    The cache holds one file per (encoder id with weights digest, templates, words, names); it
    loads no encoder when it has the answer. A file that is damaged or does not say exactly what is
    asked for is named in a warning and built again. Several processes may share a cache folder:
    the first one computes, the others wait.

    Args:
        encoder_spec: see ``text_encoders``, or an encoder object.
        prompts: see ``load_prompts``.
        use_synonyms: average over a class's synonyms too (its name is always among them).
        cache_dir: None: ``$OVD_D2_CACHE``, or ``~/.cache/ovd_d2/text``.
        device: where the encoder computes.
        cache: False: nothing is remembered, for an encoder that is being trained.

    Raises:
        OVDError: unusable prompts.
    """

    def __init__(
        self,
        encoder_spec: str | TextEncoder,
        prompts: str | os.PathLike = "photo",
        use_synonyms: bool = False,
        cache_dir: str | os.PathLike | None = None,
        device: str = "cpu",
        cache: bool = True,
    ) -> None:
        self.cache = cache
        self.templates = load_prompts(prompts)
        self.use_synonyms = use_synonyms
        self.cache_dir = Path(cache_dir) if cache_dir is not None else _default_cache_dir()
        self._spec = encoder_spec if isinstance(encoder_spec, str) else None
        self._encoder = None if isinstance(encoder_spec, str) else encoder_spec
        self._device = device

    @property
    def encoder(self) -> TextEncoder:
        """The encoder, loaded on first use.

        Raises:
            OVDError: it cannot be loaded.
        """
        if self._encoder is None:
            self._encoder = build_text_encoder(self._spec, self._device)
        return self._encoder

    @property
    def encoder_id(self) -> str:
        """The encoder's id; does not load it.

        Raises:
            OVDError: there is no such encoder.
        """
        return text_encoder_id(self._spec) if self._encoder is None else self._encoder.encoder_id

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """The (K, D) embeddings of ``vocabulary``, from the cache or computed and cached.

        Raises:
            OVDError: the encoder cannot be loaded or gives unusable vectors, or a class name has
                no letters.
        """
        request = self._request(vocabulary)
        if not self.cache:
            return self._compute(request)
        path = self._cache_path(request)
        found = _read_cache(path, request)
        if found is not None:
            return found
        with _one_process(path):
            found = _read_cache(path, request, warn=True)
            if found is None:
                found = self._compute(request)
                _write_cache(path, found, request)
        return found

    def write(self, path: Path, vocabulary: Vocabulary) -> None:
        """Writes the embeddings of ``vocabulary`` with all that decides them, for :meth:`read`.

        Raises:
            OVDError: see :meth:`embed`.
            OSError: ``path`` (.safetensors) cannot be written.
        """
        write_embedding_file(path, self.embed(vocabulary).embeddings, self._request(vocabulary))

    def read(self, path: Path, vocabulary: Vocabulary) -> TextEmbeddings | None:
        """What :meth:`embed` would give, from a file of :meth:`write`; None if there is none, or it
        was made otherwise, which a warning says."""
        return _read_cache(path, self._request(vocabulary), warn=True)

    def _request(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """What decides the result, as it is written to the manifest."""
        words = vocabulary.synonyms if self.use_synonyms else [()] * len(vocabulary)
        phrases = [
            list(dict.fromkeys(clean_name(phrase) for phrase in (name, *others)))
            for name, others in zip(vocabulary.names, words)
        ]
        return {
            "encoder_id": self.encoder_id,
            "templates": list(self.templates),
            "phrases": phrases,
            "names": list(vocabulary.names),
        }

    def _cache_path(self, request: dict[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:24]
        kind = request["encoder_id"].partition("@")[0]
        label = "".join(letter if letter.isalnum() else "-" for letter in kind)[:40]
        return self.cache_dir / f"{label}-{key}.safetensors"

    def _compute(self, request: dict[str, Any]) -> TextEmbeddings:
        texts = [
            (row, fill(template, phrase))
            for row, phrases in enumerate(request["phrases"])
            for phrase in phrases
            for template in self.templates
        ]
        sums = torch.zeros(len(request["names"]), self.encoder.dim, dtype=torch.float64)
        for chunk in self._chunks(texts):
            rows = torch.tensor([row for row, _ in chunk])
            sums.index_add_(0, rows, self._encode([text for _, text in chunk]))
        return TextEmbeddings(sums, tuple(request["names"]), request["encoder_id"])

    def _encode(self, texts: list[str]) -> Tensor:
        """(L, D) float64 unit vectors; checks what the encoder gives."""
        distinct = list(dict.fromkeys(texts))
        features = self.encoder.encode(distinct)
        shape = (len(distinct), self.encoder.dim)
        if tuple(features.shape) != shape or not features.isfinite().all():
            raise OVDError(
                f"text encoder {self.encoder_id} gave {tuple(features.shape)} values or nan for "
                f"{shape}; its weights or its code are damaged"
            )
        index = {text: place for place, text in enumerate(distinct)}
        unit = nn.functional.normalize(features.cpu().double(), dim=1)
        return unit[[index[text] for text in texts]]

    def _chunks(self, texts: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
        from tqdm import tqdm

        bar = tqdm(
            total=len(texts), desc="embedding class names", unit="text", delay=_PROGRESS_AFTER
        )
        with bar:
            for start in range(0, len(texts), _CHUNK):
                chunk = texts[start : start + _CHUNK]
                yield chunk
                bar.update(len(chunk))


def _unit_rows(embeddings: Tensor) -> Tensor:
    """Rows divided by their norm, as a new tensor; zero rows become nan.

    Rows that have norm 1 already keep their bits, so that reading a saved file gives exactly what
    was saved.
    """
    found = torch.empty_like(embeddings)
    for rows, result in zip(embeddings.split(_ROWS), found.split(_ROWS)):
        # By the largest entry first: the norm of tiny or huge rows would under- or overflow.
        scaled = rows / rows.abs().amax(dim=1, keepdim=True)
        normalised = nn.functional.normalize(scaled, dim=1)
        is_unit = (rows.norm(dim=1, keepdim=True) - 1).abs() < 1e-6
        result.copy_(torch.where(is_unit, rows, normalised))
    return found


def _check_fits(
    path: Path, content: Tensor, names: tuple[str, ...], vocabulary: Vocabulary
) -> None:
    if len(content) != len(vocabulary):
        turned = content.shape[1] == len(vocabulary)
        raise OVDError(
            f"text embeddings {path} have {len(content)} rows but the vocabulary has "
            f"{len(vocabulary)} names; "
            + ("transpose the file" if turned else "give the file made for this vocabulary")
        )
    if names and names != vocabulary.names:
        place = next(i for i, name in enumerate(names) if name != vocabulary.names[i])
        raise OVDError(
            f"text embeddings {path} were made for another vocabulary: row {place} is "
            f"'{names[place]}', not '{vocabulary.names[place]}'; "
            "give the file made for this vocabulary"
        )


def _default_cache_dir() -> Path:
    return Path(os.environ.get("OVD_D2_CACHE") or "~/.cache/ovd_d2/text").expanduser()


def _read_cache(path: Path, request: dict[str, Any], warn: bool = False) -> TextEmbeddings | None:
    """What the cache has, or None; with ``warn``, says why a file that is there is not used."""
    if not path.exists():
        return None
    try:
        content, manifest = read_embedding_file(path)
        different = [key for key, value in request.items() if manifest.get(key) != value]
        if different:
            raise OVDError(f"{path} was made with another {' and '.join(different)}")
        return TextEmbeddings(content, tuple(request["names"]), request["encoder_id"])
    except OVDError as error:
        if warn:
            logger.warning("Building cached text embeddings again: %s", error)
        return None


def _write_cache(path: Path, embeddings: TextEmbeddings, request: dict[str, Any]) -> None:
    try:
        write_embedding_file(path, embeddings.embeddings, request)
    except OSError as error:
        logger.warning("Text embeddings could not be cached in %s (%s).", path.parent, error)


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Holds the lock of a cache file, released by the system if the process dies.

    Goes on without a lock where none can be had: writing twice is safe, only slower.
    """
    held = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = "another process has been writing it for an hour"
        held = lock(f"{path}.lock", taken=taken, wait=_LONGEST_WAIT)
    except (OSError, OVDError) as error:  # for example a folder that cannot be written
        logger.warning("No lock on the text cache in %s (%s).", path.parent, error)
    try:
        yield
    finally:
        if held is not None:
            held.release()
