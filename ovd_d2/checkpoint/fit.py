"""Whether a file of weights is of a model: how much of it was found, and what may be missing.

What is asked depends on the purpose:

* to evaluate, predict, or go on with a run (:meth:`Fit.check_whole`) every weight must be there;
* to start training (:meth:`Fit.check_start`) the backbone must be: weights of ImageNet, or of a
  detector with other heads. Layers whose number of outputs differs (another number of classes,
  masks or anchors) start anew, which is logged; any other difference of shape is refused.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from fvcore.common.checkpoint import _filter_reused_missing_keys
from torch import Tensor, nn

from ovd_d2.errors import OVDError

Shape = tuple[int, ...]
# Share of the backbone's tensors that weights to start from must hold: an FPN's own convolutions
# do not count, a ViT's relative positions (2 of 14 tensors per block) may be missing, and half a
# network (ResNet-50 in a ResNet-101) is too few.
ENOUGH = 0.75
# Tensors that a file may lack or hold in another shape: they are not learned.
_NOT_LEARNED = ("num_batches_tracked", "encoder_id_bytes", "anchor_generator.cell_anchors")


@dataclass(frozen=True)
class Fit:
    """How a file's tensors met a model's.

    Attributes:
        path: the file.
        wanted: names of the model's learned tensors (batch norm statistics included).
        missing: those that got nothing from the file.
        unused: the file's names that the model does not have.
        wrong: (name, shape in the file, shape in the model), skipped; each is in ``missing`` too.
        trunk: prefix of the part that pretraining fills; "" if the model has no ``backbone``.
        resized: names of ``wrong`` that differ in their number of outputs alone, outside the
            backbone.
        sequences: length of every ``Sequential`` and ``ModuleList``, by name.
    """

    path: str
    wanted: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    wrong: tuple[tuple[str, Shape, Shape], ...]
    trunk: str
    resized: frozenset[str] = frozenset()
    sequences: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: how many of the model's tensors were found, over all and by part."""
        parts: dict[str, list[int]] = {}
        lost = set(self.missing)
        for name in self.wanted:
            first, *rest = name.split(".")
            part = f"{first}.{rest[0]}" if first == "roi_heads" and len(rest) > 1 else first
            counts = parts.setdefault(part, [0, 0])
            counts[0] += name not in lost
            counts[1] += 1
        by_part = ", ".join(f"{part} {found} of {n}" for part, (found, n) in parts.items())
        total = len(self.wanted)
        return (
            f"{total - len(lost)} of {total} weights of the model found in {self.path} ({by_part})"
            f"; {len(self.unused)} of the file's not used"
        )

    def check_whole(self, remedy: str = "give the config it was trained with") -> None:
        """Raises OVDError unless the file has every weight in the model's shape, and no layers
        beyond the model's last."""
        self._refuse_shapes(self.wrong, remedy)
        if self.missing:
            raise OVDError(
                f"{self.path} lacks {len(self.missing)} of the model's {len(self.wanted)} weights, "
                f"such as {self.missing[0]}: {remedy}."
            )
        self._refuse_deeper("", remedy)

    def check_start(self) -> None:
        """Raises OVDError unless training may start from the file."""
        remedy = "give MODEL.WEIGHTS of this network, or '' for random ones"
        self._refuse_shapes([w for w in self.wrong if w[0] not in self.resized], remedy)
        lost = set(self.missing)
        if len(lost) == len(self.wanted):
            raise OVDError(
                f"{self.path} holds none of the model's {len(self.wanted)} weights; it is of "
                "another network, or its names are not Detectron2's (files of torchvision are "
                f"converted by detectron2's tools/convert-torchvision-to-d2.py): {remedy}."
            )
        prefixes = [self.trunk] if self.trunk else {name.split(".")[0] for name in self.wanted}
        shares = {}
        for prefix in prefixes:
            names = [name for name in self.wanted if name.startswith(prefix)]
            shares[prefix] = (sum(name not in lost for name in names), len(names))
        prefix = max(shares, key=lambda one: shares[one][0] / shares[one][1])
        found, total = shares[prefix]
        if found < ENOUGH * total:
            first = next(name for name in self.missing if name.startswith(prefix))
            raise OVDError(
                f"{self.path} holds {found} of the {total} weights of the model's "
                f"{prefix.rstrip('.')} and lacks, for one, {first}; it is of another network: "
                f"{remedy}."
            )
        self._refuse_deeper(self.trunk, remedy)

    def _refuse_shapes(
        self, wrong: tuple[tuple[str, Shape, Shape], ...] | list, remedy: str
    ) -> None:
        if wrong:
            name, theirs, mine = wrong[0]
            others = f" (and {len(wrong) - 1} others differ)" if len(wrong) > 1 else ""
            raise OVDError(
                f"{self.path}: {name} has shape {theirs}, the model's is {mine}{others}: {remedy}."
            )

    def _refuse_deeper(self, prefix: str, remedy: str) -> None:
        """A deeper network holds all of a shallower one's weights, and more."""
        for key in self.unused:
            words = key.split(".")
            for i, word in enumerate(words):
                if not (i and word.isdigit()):
                    continue
                parent = ".".join(words[:i])
                for name, length in self.sequences.items():
                    same = name == parent or name.endswith("." + parent)
                    if same and name.startswith(prefix) and int(word) >= length:
                        raise OVDError(
                            f"{self.path} is of a deeper network: it holds {key}, but the model's "
                            f"{name} ends with {length - 1}: {remedy}."
                        )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: str) -> Fit:
    """Copies what fits by name and shape into ``model``, which may adapt the tensors to itself
    before (``adapt_state_dict``: from the names of other projects, say).

    Args:
        model: not wrapped by DDP.
        state: of :func:`~ovd_d2.checkpoint.state_dict_in`; not changed.
        path: for messages.

    Raises:
        OVDError: integers where the model has floats or the other way round, numbers that are not
            finite, or another text encoder than the model's.
    """
    adapt = getattr(model, "adapt_state_dict", None)
    given, wrong = _fitting(model, state if adapt is None else adapt(state), path)
    try:
        result = model.load_state_dict(given, strict=False)
    except RuntimeError as error:
        raise OVDError(f"{path} does not fit the model: {' '.join(str(error).split())}") from error
    names = list(model.state_dict())
    ignored = {name for name in names if name.endswith(_NOT_LEARNED)} | {"pixel_mean", "pixel_std"}
    missing = set(_filter_reused_missing_keys(model, result.missing_keys))
    missing |= {  # a frozen batch norm of which nothing is there fills in mean 0 and variance 1
        name
        for name in names
        if name.endswith(("running_mean", "running_var"))
        and name not in given
        and f"{name.rpartition('.')[0]}.weight" not in given
    }
    return Fit(
        path,
        wanted=tuple(name for name in names if name not in ignored),
        missing=tuple(name for name in names if name in missing - ignored),
        unused=tuple(name for name in result.unexpected_keys if not name.endswith(_NOT_LEARNED)),
        wrong=tuple(wrong),
        trunk=_trunk(model),
        resized=frozenset(name for name, *shapes in wrong if _is_resized(model, name, *shapes)),
        sequences={
            name: len(part)
            for name, part in model.named_modules()
            if isinstance(part, nn.Sequential | nn.ModuleList)
        },
    )


def _fitting(
    model: nn.Module, state: Mapping[str, Tensor], path: str
) -> tuple[OrderedDict[str, Tensor], list[tuple[str, Shape, Shape]]]:
    """``state`` without what has another shape in ``model``, and that; see :func:`load_weights`."""
    wanted = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    given = OrderedDict(state)
    if hasattr(state, "_metadata"):  # versions of the modules
        given._metadata = state._metadata
    wrong = []
    for name, value in state.items():
        mine = wanted.get(name)
        if mine is None or isinstance(mine, nn.parameter.UninitializedParameter):
            continue
        if name.endswith("encoder_id_bytes"):  # of any length; its owner compares it
            owner, _, leaf = name.rpartition(".")
            with contextlib.suppress(RuntimeError):  # another length: the model keeps its own
                model.get_submodule(owner).load_state_dict({leaf: value}, strict=False)
            del given[name]
        elif value.shape != mine.shape:
            wrong.append((name, tuple(value.shape), tuple(mine.shape)))
            del given[name]
        elif value.is_floating_point() != mine.is_floating_point():
            raise OVDError(
                f"{path}: {name} holds {value.dtype}, the model's is {mine.dtype}: save the "
                "weights as they were trained."
            )
        elif name in parameters and not value.to(mine.dtype).isfinite().all():
            raise OVDError(
                f"{path}: {name} holds numbers that are nan, infinite or beyond {mine.dtype}: take "
                "an earlier checkpoint."
            )
    return given, wrong


def _trunk(model: nn.Module) -> str:
    """Prefix of what a backbone's pretraining fills: without the FPN around it."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module) or not backbone.state_dict():
        return ""
    for part in ("bottom_up", "net"):  # of FPN; of ViTDet's SimpleFeaturePyramid
        if isinstance(getattr(backbone, part, None), nn.Module):
            return f"backbone.{part}."
    return "backbone."


def _is_resized(model: nn.Module, name: str, theirs: Shape, mine: Shape) -> bool:
    """Whether a layer of a head differs in its number of outputs alone."""
    if not _trunk(model) or name.startswith("backbone."):
        return False
    layer = model.get_submodule(name.rpartition(".")[0])
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d) and len(mine) > 1
    outputs = 1 if transposed else 0
    different = [i for i, (a, b) in enumerate(zip(theirs, mine)) if a != b]
    return len(theirs) == len(mine) and different == [outputs]


def describe_tensor(value: object) -> str | None:
    """What makes ``value`` unfit as a weight, in words; None for a tensor that fits."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_meta:
        return "a meta tensor, which has no numbers"
    if value.layout is not torch.strided:
        return "a sparse tensor"
    if value.is_quantized:
        return "a quantised tensor"
    return "complex" if value.is_complex() else None
