"""One sample of a pre-training, measured: run as a process, so that its memory is its own.

``python -m ovd_d2.benchmarks.speed.pretraining_step`` reads one json line with the fields of
:class:`Asked`, and prints one with those of :class:`Measured`.

Letters: N images of a step, H x W image, Gi boxes of image i.
"""

import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ovd_d2.benchmarks.speed.train_step import random_boxes
from ovd_d2.data.mixing import read_sources
from ovd_d2.engine.optimizer import build_optimizer
from ovd_d2.engine.setup import load_config, use_cpu_without_gpu
from ovd_d2.engine.train_loop import TrainLoop, amp_dtype
from ovd_d2.engine.trainer import OpenVocabTrainer
from ovd_d2.errors import OVDError
from ovd_d2.language import LATER
from ovd_d2.language.everything import objects365_names
from ovd_d2.modeling import set_vocabulary

BOXES, PAIRS = "boxes", "pairs"
OBJECTS = 7  # boxes of an image: COCO has 7.3
NOUNS = ("a brown dog", "a red mug", "an old wooden table")  # phrases of a made-up caption
CAPTION = "a brown dog beside a red mug on an old wooden table"
# Families that a sample can be made up for, and the kinds that they learn from. Boxes of phrases
# count as boxes of classes: the same work on the image, and a text that is no longer.
KINDS = {
    "GLIP": (BOXES,),
    "DetCLIP": (BOXES, PAIRS),
    "CLIP": (PAIRS,),
    "GroupViT": (PAIRS,),
}
_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.convolution, _aten.convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        config: a yaml.
        opts: KEY value pairs for it.
        source: place in DATASETS.SOURCES; -1 where there are none.
        kind: BOXES or PAIRS.
        size: H, W.
        images: N.
        steps: timed ones, after one that counts alone; 0: none.
    """

    config: str
    opts: list[str]
    source: int
    kind: str
    size: tuple[int, int]
    images: int
    steps: int


@dataclass
class Measured:
    """Of one process and kind of sample; every number of bytes is that of this machine.

    Attributes:
        kind: see :class:`Asked`.
        size: see there.
        images: see there.
        device: its name.
        threads: of torch.
        torch: its version.
        autocast: type of mixed precision; "" for none, as on a CPU always.
        seconds: of the timed steps: forward, backward and optimizer, N images each.
        flops: of forward and backward of N images, 2 per multiply-add, with what checkpointing
            computes twice: matrix products, convolutions and attention.
        saved_bytes: what forward keeps for backward, of N images, without parameters.
        peak_bytes: most memory of the process (of the device, on a GPU) in all its life.
        parameters: numbers in the model.
        trained: those with a gradient.
        parameter_bytes: of all.
        gradient_bytes: what processes exchange after each step.
        optimizer_bytes: its state.
    """

    kind: str
    size: tuple[int, int]
    images: int
    device: str
    threads: int
    torch: str
    autocast: str
    parameters: int = 0
    trained: int = 0
    parameter_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    flops: int = 0
    saved_bytes: int = 0
    peak_bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def seconds_per_sample(self) -> float | None:
        """By the median step; None: no step was timed."""
        return statistics.median(self.seconds) / self.images if self.seconds else None

    @property
    def flops_per_sample(self) -> float:
        """See ``flops``."""
        return self.flops / self.images

    @property
    def saved_bytes_per_sample(self) -> float:
        """See ``saved_bytes``."""
        return self.saved_bytes / self.images


def measure(asked: Asked) -> Measured:
    """Builds the model with random weights, and makes a step that counts and some that are timed.

    Raises:
        OVDError: a model of another family, or a batch that the model refuses.
    """
    whole = load_config(asked.config, asked.opts)
    use_cpu_without_gpu(whole)
    cfg = whole if asked.source < 0 else read_sources(whole)[asked.source].cfg
    family = whole.MODEL.META_ARCHITECTURE
    if asked.kind not in KINDS.get(family, ()):
        raise OVDError(f"{family} does not learn from {asked.kind}.")
    torch.manual_seed(0)
    model, classes = _model(whole)
    batch = made_up_samples(cfg, asked, classes)
    device = model.device.type
    amp = whole.SOLVER.AMP
    # On a CPU in fp32: the same operations, while its bfloat16 says nothing about a GPU's.
    dtype = amp_dtype(amp.DTYPE, device) if amp.ENABLED and device == "cuda" else None
    loop = TrainLoop(
        model, itertools.repeat(batch), build_optimizer(whole, model), device_type=device,
        autocast_dtype=dtype,
    )  # fmt: skip
    loop.iter = 0
    found = Measured(
        asked.kind, asked.size, asked.images,
        torch.cuda.get_device_name() if device == "cuda" else device,
        torch.get_num_threads(), torch.__version__, str(dtype or "").removeprefix("torch."),
    )  # fmt: skip
    with EventStorage():
        with WithoutProducts(), counted() as flops, saved_for_backward(model) as saved:
            loop.run_step()
        found.flops, found.saved_bytes = flops.get_total_flops(), sum(saved.values())
        for _ in range(asked.steps):
            found.seconds.append(_timed(loop))
    _sizes(found, model, loop.optimizer)
    return found


def _model(cfg: CfgNode) -> tuple[nn.Module, int]:
    """In training mode, with random weights, and its number of classes: those of Objects365 stand
    for all that boxes have, so that no data set has to be there."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.OPEN_VOCAB.VOCABULARY = "", LATER
    cfg.MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS = ""
    cfg.DATASETS.TRAIN, cfg.DATASETS.SOURCES = (), []
    model = OpenVocabTrainer.build_model(cfg).train()
    if BOXES not in KINDS[cfg.MODEL.META_ARCHITECTURE]:
        return model, 0
    names = objects365_names()
    set_vocabulary(model, names)
    return model, len(names)


def made_up_samples(cfg: CfgNode, asked: Asked, classes: int) -> list[dict[str, Any]]:
    """N samples of noise, of the kind and size that is asked for, which do as much work as others.

    Args:
        cfg: of the source.
        asked: see above.
        classes: of the vocabulary.
    """
    generator = torch.Generator().manual_seed(0)
    high, wide = asked.size
    nouns = cfg.INPUT.PAIRS.PROMPTED_NOUNS
    samples = []
    for number in range(asked.images):
        image = torch.randint(0, 256, (3, high, wide), generator=generator, dtype=torch.uint8)
        sample = {"image": image, "height": high, "width": wide}
        caption = f"{CAPTION} {number}"
        if asked.kind == PAIRS:
            sample |= {"caption": caption, "concepts": [caption, *NOUNS]}
            if nouns:
                sample["prompted_nouns"] = [f"a photo of {noun}." for noun in NOUNS[:nouns]]
        else:
            targets = Instances((high, wide))
            targets.gt_boxes = Boxes(random_boxes(OBJECTS, min(high, wide), generator))
            targets.gt_classes = torch.randint(0, classes, (OBJECTS,), generator=generator)
            sample["instances"] = targets
        samples.append(sample)
    return samples


class WithoutProducts(TorchDispatchMode):
    """Inside, what :func:`counted` counts gives zeros of the right shape in the right memory, at
    once: how much there is to do is the same, and a CPU gets through a large model sooner. All
    else, the choice of anchors among it, is computed."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func._overloadpacket not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        device = next(x.device for x in tree_leaves(args) if torch.is_tensor(x))
        args, kwargs = tree_map_only(torch.Tensor, lambda x: x.to("meta"), (args, kwargs or {}))
        return tree_map_only(
            torch.Tensor,
            lambda x: torch.empty_strided(
                x.shape, x.stride(), dtype=x.dtype, device=device
            ).zero_(),
            func(*args, **kwargs),
        )


def counted() -> FlopCounterMode:
    """Counts the operations inside, torch's attention on a CPU among them."""
    return FlopCounterMode(
        display=False,
        custom_mapping={
            _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            torch.ops.torchvision.deform_conv2d: _deformable,
            torch.ops.torchvision._deform_conv2d_backward: _deformable_backward,
        },
    )


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _deformable(_: Any, weight: Any, offset: Any, *__: Any, **___: Any) -> int:
    outputs, channels, *kernel = weight
    number, _, high, wide = offset
    return 2 * number * high * wide * outputs * channels * kernel[0] * kernel[1]


def _deformable_backward(_: Any, x: Any, weight: Any, offset: Any, *__: Any, **___: Any) -> int:
    return 2 * _deformable(x, weight, offset)


@contextmanager
def saved_for_backward(model: nn.Module) -> Iterator[dict[int, int]]:
    """Address -> bytes of what forward keeps inside, each storage once, without parameters."""
    own = {
        p.untyped_storage().data_ptr() for p in itertools.chain(model.parameters(), model.buffers())
    }
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and torch._C._current_graph_task_id() < 0:  # no backward
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def _timed(loop: TrainLoop) -> float:
    cuda = loop.device_type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    loop.run_step()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _sizes(found: Measured, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    found.parameters = sum(p.numel() for p in parameters)
    found.trained = sum(p.numel() for p in trained)
    found.parameter_bytes = sum(p.nbytes for p in parameters)
    found.gradient_bytes = sum(p.nbytes for p in trained)
    states = itertools.chain.from_iterable(s.values() for s in optimizer.state.values())
    found.optimizer_bytes = sum(value.nbytes for value in states if torch.is_tensor(value))
    if model.device.type == "cuda":
        found.peak_bytes = torch.cuda.max_memory_allocated()
    else:  # kB on Linux
        found.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """See the module."""
    import ovd_d2

    ovd_d2.register()
    asked = Asked(**json.loads(sys.stdin.readline()))
    try:
        facts = asdict(measure(asked))
    except OVDError as error:
        facts = {"error": str(error)}
    sys.stdout.write(f"{json.dumps(facts)}\n")


if __name__ == "__main__":
    main()
