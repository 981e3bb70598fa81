"""What a pre-training costs: its schedule from the yaml, its work and bytes per sample measured.

Operations are counted, bytes are measured; hours on a GPU, gigabytes per second and gigabytes of
pictures follow from assumptions, which :class:`Assumptions` holds and every result repeats.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from detectron2.config import CfgNode

from ovd_d2.benchmarks.speed.pretraining_step import BOXES, KINDS, PAIRS, Asked, Measured
from ovd_d2.data.mixing import read_sources
from ovd_d2.errors import OVDError

# Dense products in 16 bits, TFLOP/s, by the makers' data sheets (SXM boards, without sparsity).
PEAK_TFLOPS = {"v100": 125.0, "a100": 312.0, "h100": 989.0}
SIDES = (480, 640)  # of a stored picture with boxes: those of COCO
STEP = "ovd_d2.benchmarks.speed.pretraining_step"


@dataclass(frozen=True)
class Assumptions:
    """What cannot be measured here.

    Attributes:
        gpu: a key of ``PEAK_TFLOPS``.
        gpus: how many.
        utilisation: share of the peak that the counted operations reach, in (0, 1].
        bytes_per_pixel: of a stored JPEG; COCO's train2017 has 118,287 of 640 x 480 in 19.3 GB.

    Raises:
        OVDError: naming the one that cannot be.
    """

    gpu: str = "a100"
    gpus: int = 64
    utilisation: float = 0.35
    bytes_per_pixel: float = 0.53

    def __post_init__(self) -> None:
        if self.gpu not in PEAK_TFLOPS:
            raise OVDError(f"--gpu {self.gpu}: it must be {', '.join(PEAK_TFLOPS)}.")
        if self.gpus < 1:
            raise OVDError(f"--gpus {self.gpus}: it must be 1 or more.")
        if not 0 < self.utilisation <= 1:
            raise OVDError(f"--utilisation {self.utilisation:g}: it must be above 0, at most 1.")
        if not self.bytes_per_pixel > 0:
            raise OVDError(f"--bytes-per-pixel {self.bytes_per_pixel:g}: it must be above 0.")

    @property
    def flops_per_second(self) -> float:
        """Of one GPU, at this utilisation."""
        return PEAK_TFLOPS[self.gpu] * 1e12 * self.utilisation


@dataclass(frozen=True)
class Part:
    """One source of a schedule.

    Attributes:
        name: of the source; "" where there are none.
        place: in DATASETS.SOURCES, -1 where there are none.
        kind: BOXES or PAIRS.
        size: height and width of a training image; with several scales, the one whose area is the
            mean area, of pictures of 4:3.
        batch: images of an iteration.
        iterations: how many have a batch of this source.
    """

    name: str
    place: int
    kind: str
    size: tuple[int, int]
    batch: int
    iterations: float

    @property
    def samples(self) -> float:
        """Images of the whole schedule."""
        return self.batch * self.iterations


def schedule(cfg: CfgNode) -> list[Part]:
    """The sources of a yaml and how much of each its iterations see.

    Raises:
        OVDError: a model of another family.
    """
    family = cfg.MODEL.META_ARCHITECTURE
    if family not in KINDS:
        raise OVDError(
            f"MODEL.META_ARCHITECTURE is {family}; give a yaml of {', '.join(KINDS)} "
            "(`ovd speed step` measures detectors that learn from teacher regions)."
        )
    sources = read_sources(cfg)
    if not sources:
        return [_part(cfg, family, "", -1, cfg, cfg.SOLVER.MAX_ITER)]
    if cfg.DATASETS.MIXING != "alternate":
        raise OVDError('DATASETS.MIXING is "together": give a yaml with "alternate".')
    whole = sum(source.ratio for source in sources)
    return [
        _part(
            cfg,
            family,
            source.name,
            place,
            source.cfg,
            cfg.SOLVER.MAX_ITER * float(source.ratio / whole),
        )  # fmt: skip
        for place, source in enumerate(sources)
    ]


def _part(
    whole: CfgNode, family: str, name: str, place: int, cfg: CfgNode, iterations: float
) -> Part:
    mapper_of_pairs = cfg.INPUT.MAPPER == "ImageTextPairMapper"
    kind = PAIRS if mapper_of_pairs or KINDS[family] == (PAIRS,) else BOXES
    batch = cfg.SOLVER.IMS_PER_BATCH * whole.SOLVER.ACCUMULATE
    return Part(name, place, kind, _size(cfg, family, kind), batch, iterations)


def _size(cfg: CfgNode, family: str, kind: str) -> tuple[int, int]:
    if family in ("CLIP", "GroupViT"):
        side = cfg.MODEL.CLIP.IMAGE_SIZE if family == "CLIP" else cfg.MODEL.GROUPVIT.IMAGE_SIZE
    elif kind == PAIRS:
        side = cfg.INPUT.PAIRS.IMAGE_SIZE or cfg.MODEL.CLIP.IMAGE_SIZE
    elif cfg.INPUT.SCALE_JITTER.ENABLED:
        side = cfg.INPUT.SCALE_JITTER.SIZE
    else:
        sides = cfg.INPUT.MIN_SIZE_TRAIN
        short = math.sqrt(sum(side**2 for side in sides) / len(sides))
        return round(short), min(round(short * SIDES[1] / SIDES[0]), cfg.INPUT.MAX_SIZE_TRAIN)
    return side, side


@dataclass
class Costs:
    """A yaml's schedule, what was measured of it, and what follows.

    Attributes:
        config: the yaml.
        opts: KEY value pairs for it.
        parts: of the schedule.
        measured: kind -> what a sample of it takes.
        assumed: see :class:`Assumptions`.
    """

    config: str
    opts: list[str]
    parts: list[Part]
    measured: dict[str, Measured] = field(default_factory=dict)
    assumed: Assumptions = Assumptions()

    @property
    def samples(self) -> float:
        """Images of the whole schedule."""
        return sum(part.samples for part in self.parts)

    @property
    def flops(self) -> float:
        """Of forward and backward of all."""
        return sum(p.samples * self.measured[p.kind].flops_per_sample for p in self.parts)

    @property
    def gpu_hours(self) -> float:
        """An estimate: the counted operations at the assumed utilisation."""
        return self.flops / self.assumed.flops_per_second / 3600

    @property
    def days(self) -> float:
        """Of all GPUs together; an estimate."""
        return self.gpu_hours / self.assumed.gpus / 24

    @property
    def iterations(self) -> float:
        """Of all sources."""
        return sum(part.iterations for part in self.parts)

    @property
    def seconds_per_iteration(self) -> float:
        """An estimate, the mean over sources."""
        return self.days * 86400 / self.iterations

    @property
    def gradient_bytes(self) -> int:
        """What processes exchange after a step."""
        return next(iter(self.measured.values())).gradient_bytes

    @property
    def sent_bytes(self) -> float:
        """Sent by each GPU per step, in a ring: 2 (n - 1) / n times the gradient."""
        return 2 * (self.assumed.gpus - 1) / self.assumed.gpus * self.gradient_bytes

    @property
    def state_bytes(self) -> int:
        """On every GPU: parameters, gradients and optimizer."""
        one = next(iter(self.measured.values()))
        return one.parameter_bytes + one.gradient_bytes + one.optimizer_bytes

    @property
    def read_bytes(self) -> float:
        """Of pictures, over the whole schedule. Pairs are stored at the size they are read at."""
        return sum(
            part.samples
            * math.prod(SIDES if part.kind == BOXES else part.size)
            * self.assumed.bytes_per_pixel
            for part in self.parts
        )

    def facts(self) -> dict[str, Any]:
        """All of it, for json."""
        names = (
            "samples iterations flops gpu_hours days seconds_per_iteration gradient_bytes "
            "sent_bytes state_bytes read_bytes"
        )
        peak = {"peak_tflops": PEAK_TFLOPS[self.assumed.gpu]}
        return {
            "config": self.config,
            "opts": self.opts,
            "parts": [{**asdict(part), "samples": part.samples} for part in self.parts],
            "measured": {kind: asdict(one) for kind, one in self.measured.items()},
            "assumed": {**asdict(self.assumed), **peak},
            "follows": {name: getattr(self, name) for name in names.split()},
        }


def measure_costs(
    cfg: CfgNode,
    config: str,
    opts: Sequence[str],
    assumed: Assumptions,
    *,
    images: int = 1,
    steps: int = 1,
    size: tuple[int, int] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Costs:
    """Measures a sample of each kind that the yaml learns from, each in a process of its own.

    Args:
        cfg: of the yaml.
        config: the yaml.
        opts: KEY value pairs for it.
        assumed: for what follows.
        images: of a step.
        steps: timed ones; 0: none, operations and bytes alone.
        size: height and width of images with boxes; None: see :class:`Part`.
        progress: told what is being measured.

    Raises:
        OVDError: a model of another family, a number that cannot be, or a process that was killed
            or failed.
    """
    if images < 1 or steps < 0 or (size is not None and min(size) < 32):
        raise OVDError("--images must be 1 or more, --steps 0 or more, --size 32x32 or more.")
    costs = Costs(config, list(opts), schedule(cfg), assumed=assumed)
    for part in costs.parts:
        if part.kind in costs.measured:
            continue
        pixels = size if size is not None and part.kind == BOXES else part.size
        progress(f"{part.kind}, {pixels[0]} x {pixels[1]}")
        asked = Asked(config, list(opts), part.place, part.kind, pixels, images, steps)
        costs.measured[part.kind] = _in_a_process(asked)
    return costs


def _in_a_process(asked: Asked) -> Measured:
    done = subprocess.run(
        [sys.executable, "-m", STEP], input=json.dumps(asdict(asked)) + "\n",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode < 0:
        raise OVDError(
            f"The process that measures {asked.kind} of {asked.config} was killed (signal "
            f"{-done.returncode}); most often the memory was not enough: fewer --images, a smaller "
            "--size, or MODEL.SWIN.CHECKPOINT True."
        )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise OVDError(f"Measuring {asked.kind} of {asked.config} failed: {last}")
    facts = json.loads(lines[-1])
    if "error" in facts:
        raise OVDError(facts["error"])
    return measured_from(facts)


def measured_from(facts: dict[str, Any]) -> Measured:
    """From the json of :class:`Measured`."""
    return Measured(**{**facts, "size": tuple(facts["size"])})
