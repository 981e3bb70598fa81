"""Training data of several sources, each with keys of its own, mixed as the config says.

``DATASETS.SOURCES`` is a list of mappings:

    DATASETS:
      MIXING: alternate
      SOURCES:
        - {NAME: detection, RATIO: 1}
        - NAME: labels
          RATIO: 4
          OPTS: [DATASETS.TRAIN, ["labels:labels.json"], SOLVER.IMS_PER_BATCH, 64]

RATIO counts batches, not images: with batches of 16 and 64 images, as here, RATIO 1 for both is 1:4
in images. A source's loader is that of the whole config with its OPTS merged in. ``DATASETS.TRAIN``
of the whole config names the classes as ever, but is trained on only by sources that leave it as it
is.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ovd_d2.config_file import explain_config_error
from ovd_d2.errors import OVDError

logger = logging.getLogger(__name__)

KEY = "DATASETS.SOURCES"
MODES = ("alternate", "together")
# What loaders read, and may therefore differ between sources. "INPUT." is all below it.
_LOADER_KEYS = (
    "DATASETS.TRAIN", "DATASETS.TRAIN_REPEAT_FACTOR", "DATASETS.PROPOSAL_FILES_TRAIN",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN", "DATASETS.REGION_STORE",
    "DATASETS.REGIONS_PER_IMAGE", "DATASETS.REGIONS_CHOICE", "INPUT.", "DATALOADER.",
    "SOLVER.IMS_PER_BATCH",
)  # fmt: skip
# Below INPUT, but the model's or of testing.
_OTHER_KEYS = ("INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")


@dataclass(frozen=True, eq=False)
class Source:
    """One of the sources to mix.

    Attributes:
        name: unlike that of any other.
        ratio: its share of the batches is this over the sum of all; above 0.
        cfg: frozen, as if this source were all there is; its vocabulary is that of the whole.
    """

    name: str
    ratio: Fraction
    cfg: CfgNode

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Inside, the sentence of an ``OVDError`` begins with the source."""
        with _named(self.name):
            yield


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except OVDError as error:
        raise OVDError(f"Source {name!r} of {KEY}: {error}") from error


def read_sources(cfg: CfgNode) -> list[Source]:
    """The sources of ``DATASETS.SOURCES`` in their order; none where it is empty.

    Raises:
        OVDError: one sentence on what is wrong with ``DATASETS.SOURCES`` or ``DATASETS.MIXING``.
    """
    mode, entries = cfg.DATASETS.MIXING, cfg.DATASETS.SOURCES
    if mode not in MODES:
        raise OVDError(f"DATASETS.MIXING is {mode!r}; it must be {' or '.join(map(repr, MODES))}.")
    sources: list[Source] = []
    for number, entry in enumerate(entries, start=1):
        name = _checked_name(number, entry, [source.name for source in sources])
        with _named(name):
            if mode == "together" and "RATIO" in entry:
                raise OVDError(
                    'it has a RATIO, but with DATASETS.MIXING "together" every batch has images of '
                    "all sources: set SOLVER.IMS_PER_BATCH in its OPTS instead."
                )
            ratio = _checked_ratio(entry.get("RATIO", 1))
            sources.append(Source(name, ratio, _source_config(cfg, entry.get("OPTS", []))))
    return sources


def training_datasets(cfg: CfgNode) -> list[str]:
    """The names of all data sets that are trained on, each once."""
    configs = [source.cfg for source in read_sources(cfg)] or [cfg]
    return list(dict.fromkeys(name for one in configs for name in one.DATASETS.TRAIN))


def with_seed(cfg: CfgNode, seed: int, place: int) -> CfgNode:
    """``cfg`` with the seed of the source at ``place``, unlike that of any other place.

    Args:
        cfg: of a source.
        seed: of the whole, non-negative.
        place: in ``DATASETS.SOURCES``, from 0.
    """
    cfg = cfg.clone()
    cfg.defrost()
    # torch's and numpy's generators take 32 bits, of which samplers want a positive int.
    cfg.SEED = int(np.random.SeedSequence([seed, place]).generate_state(1)[0]) >> 1
    cfg.freeze()
    return cfg


def _checked_name(number: int, entry: Any, taken: Sequence[str]) -> str:
    known = ("NAME", "RATIO", "OPTS")
    if not isinstance(entry, Mapping):
        raise OVDError(f"{KEY}: number {number} is {entry!r}, not a mapping of {', '.join(known)}.")
    strange = [key for key in entry if key not in known]
    if strange:
        raise OVDError(
            f"{KEY}: number {number} has the key {strange[0]!r}; a source has {', '.join(known)}."
        )
    name = entry.get("NAME")
    if not isinstance(name, str) or not name:
        raise OVDError(f"{KEY}: number {number} has no NAME; give it one, such as 'detection'.")
    if name in taken:
        raise OVDError(f"{KEY} has two sources with the NAME {name!r}; give each its own.")
    return name


def _checked_ratio(ratio: Any) -> Fraction:
    if type(ratio) not in (int, float) or not math.isfinite(ratio) or ratio <= 0:
        raise OVDError(f"RATIO is {ratio!r}; it must be a number above 0.")
    return Fraction(str(ratio))  # 0.1 as it is written, not its nearest binary fraction


def _source_config(cfg: CfgNode, opts: Any) -> CfgNode:
    """``cfg`` for one source."""
    if not isinstance(opts, list | tuple) or not all(isinstance(key, str) for key in opts[::2]):
        raise OVDError(f"OPTS is {opts!r}; it must be a list [KEY, value, KEY, value, ...].")
    if len(opts) % 2:
        raise OVDError(
            f"OPTS are pairs of KEY and value, but there are {len(opts)} entries, the last one "
            f"being {opts[-1]!r}."
        )
    one = cfg.clone()
    one.defrost()
    try:
        one.merge_from_list(list(opts))
    except Exception as error:
        raise OVDError(explain_config_error("OPTS", error, cfg)) from error
    for key in opts[::2]:
        allowed = any(key == k or (k.endswith(".") and key.startswith(k)) for k in _LOADER_KEYS)
        if not allowed or key in _OTHER_KEYS:
            raise OVDError(
                f"OPTS sets {key}, which is not of the data alone, so it must be the same for all "
                "sources: set it in the whole config."
            )
    if "SOLVER.IMS_PER_BATCH" in opts[::2] and cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise OVDError(
            "OPTS sets SOLVER.IMS_PER_BATCH, which SOLVER.REFERENCE_WORLD_SIZE does not scale: set "
            "that to 0, and batch sizes and learning rate for the processes that there are."
        )
    if not one.MODEL.OPEN_VOCAB.VOCABULARY and cfg.DATASETS.TRAIN:
        one.MODEL.OPEN_VOCAB.VOCABULARY = f"dataset:{cfg.DATASETS.TRAIN[0]}"
    one.DATASETS.SOURCES = []
    one.freeze()
    return one


def source_order(ratios: Sequence[Fraction], start: int = 0) -> Iterator[int]:
    """Which source each batch is of, for ever: a function of the batch's number alone.

    After any number n of batches, source i has had less than one batch more or fewer than its exact
    share n * ratio_i / sum. The way to it (Baruah et al. 1996, "Proportionate progress"): batch c
    of a source, from 0, may come once its share has reached c and must come before the share
    passes c + 1; among those that may, the one that must soonest is next, or else the first.

    Args:
        ratios: above 0.
        start: number of the first batch to name.
    """
    common = math.lcm(*(ratio.denominator for ratio in ratios))
    weights = [int(ratio * common) for ratio in ratios]
    divisor = math.gcd(*weights)
    weights = [weight // divisor for weight in weights]
    total = sum(weights)  # after so many batches everything starts anew
    counts = [0] * len(weights)
    n = start - start % total
    while True:
        n_in_turn = n % total
        if n_in_turn == 0:
            counts = [0] * len(weights)
        open_to = [i for i, w in enumerate(weights) if counts[i] * total // w <= n_in_turn]
        chosen = min(open_to, key=lambda i: -(-(counts[i] + 1) * total // weights[i]))
        counts[chosen] += 1
        if n >= start:
            yield chosen
        n += 1


class MixedLoader:
    """Infinite batches of several loaders, resumed exactly.

    In mode "alternate" each batch is of one source, in all processes of the same one; in mode
    "together" it is one batch of each, one behind the other.
    """

    def __init__(
        self,
        loaders: Mapping[str, Any],
        *,
        mode: str = "alternate",
        ratios: Mapping[str, Fraction] | None = None,
    ) -> None:
        """
        Args:
            loaders: name -> infinite loader of lists of samples, with ``state_dict`` and
                ``load_state_dict``; in order.
            mode: see the class.
            ratios: name -> share of the batches, for "alternate"; None: equal shares.
        """
        self.loaders = dict(loaders)
        self._mode = mode
        self._ratios = {name: Fraction((ratios or {}).get(name, 1)) for name in loaders}
        self._batches = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        streams = {name: iter(loader) for name, loader in self.loaders.items()}

        def batch_of(name: str) -> list[dict[str, Any]]:
            with _named(name):
                return next(streams[name])

        names = list(streams)
        order = source_order(list(self._ratios.values()), self._batches)
        while True:
            if self._mode == "together":
                batch = [sample for name in names for sample in batch_of(name)]
            else:
                batch = batch_of(names[next(order)])
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the order of the sources, and each source's own by its name."""
        return {
            "mode": self._mode,
            "ratios": {name: str(ratio) for name, ratio in self._ratios.items()},
            "batches": self._batches,
            "sources": {
                name: loader.state_dict()
                for name, loader in self.loaders.items()
                if hasattr(loader, "state_dict")  # an iterable data set has no place
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the last batch of ``state``; takes effect at the next ``iter()``.

        Sources go on where those of the same name were, new ones start at their beginning; with
        other sources, ratios or mode a log line says that the continuation is not exact.
        """
        if "sources" not in state:
            logger.warning(
                "The checkpoint was made without %s: all sources start at their beginning.", KEY
            )
            return
        self._batches = state["batches"]
        for name, loader in self.loaders.items():
            if name in state["sources"]:
                with _named(name):
                    loader.load_state_dict(state["sources"][name])
        for key, title in (("mode", "DATASETS.MIXING"), ("ratios", f"the ratios of {KEY}")):
            before, now = state[key], self.state_dict()[key]
            if before != now or (key == "ratios" and list(before) != list(now)):
                logger.warning(
                    "The checkpoint was made with %s = %s, now it is %s: training goes on, but not "
                    "exactly as it would have.",
                    title, before, now,
                )  # fmt: skip
