"""Files of traced detectors, ONNX and TorchScript: how they are written, and how they are run.

Letters: H, W height and width of the picture, K classes, D embedding width.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovd_d2.errors import OVDError

from .detector_graphs import DetectorGraph

OPSET = 19  # the first with DeformConv
ABOUT = "ovd_d2"  # key of the facts inside a graph's file
OUTPUTS = ("boxes", "scores", "classes", "masks")
# (H, W, 3) uint8, (K, D) float32 and (K,) bool, where it is taken, -> the outputs by name.
GraphRunner = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class GraphFormat:
    """A kind of file.

    Attributes:
        file: its name in the folder.
        packages: what has to be installed to write and check it.
        write: (graph, path, facts) -> None.
        open: path -> what runs it.
    """

    file: str
    packages: tuple[str, ...]
    write: Callable[[DetectorGraph, Path, Mapping[str, Any]], None]
    open: Callable[[Path], GraphRunner]


def find_format(name: str) -> GraphFormat:
    """The format of that name.

    Raises:
        OVDError: none, or a package that it needs is not installed.
    """
    if name not in FORMATS:
        raise OVDError(f"--format {name}: give folder, {' or '.join(FORMATS)}.")
    missing = [p for p in FORMATS[name].packages if importlib.util.find_spec(p) is None]
    if missing:
        raise OVDError(
            f"--format {name} needs {' and '.join(missing)}: run pip install 'ovd_d2[export]'."
        )
    return FORMATS[name]


def input_names(graph: DetectorGraph) -> list[str]:
    """In the order of :meth:`DetectorGraph.forward`."""
    return ["image", "class_embeddings"] + ["is_novel"] * graph.ensemble


def output_names(graph: DetectorGraph) -> list[str]:
    """The same."""
    return list(OUTPUTS[: 3 + graph.masks])


def _trace(graph: DetectorGraph, dim: int) -> tuple[torch.jit.ScriptModule, tuple[Tensor, ...]]:
    """The graph, and the inputs it was traced with: sizes that no other picture is likely to have,
    and two classes."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (150, 172, 3), dtype=torch.uint8, generator=generator)
    rows = torch.randn(2, dim, generator=generator)
    inputs = (image, rows) + (torch.tensor([True, False]),) * graph.ensemble
    with _quiet():
        return torch.jit.trace(graph, inputs, check_trace=False), inputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every size that it fixes; whether one matters is checked afterwards. And
    torch warns of TorchScript."""
    logger = logging.getLogger("torch.fx._symbolic_trace")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _write_torchscript(graph: DetectorGraph, path: Path, about: Mapping[str, Any]) -> None:
    traced, _ = _trace(graph, about["embed_dim"])
    with _quiet():
        torch.jit.save(traced, str(path), _extra_files={ABOUT: json.dumps(about)})


def _write_onnx(graph: DetectorGraph, path: Path, about: Mapping[str, Any]) -> None:
    import onnx

    torch.onnx.register_custom_op_symbolic("aten::xlogy", _xlogy, OPSET)
    torch.onnx.register_custom_op_symbolic("torchvision::deform_conv2d", _deform_conv2d, OPSET)
    traced, inputs = _trace(graph, about["embed_dim"])
    outputs = output_names(graph)
    axes = {name: {0: "detections"} for name in outputs}
    axes |= {"image": {0: "height", 1: "width"}, "class_embeddings": {0: "classes"}}
    axes |= {"is_novel": {0: "classes"}}
    names = input_names(graph)
    with _quiet():
        torch.onnx.export(
            traced, inputs, str(path), dynamo=False, opset_version=OPSET, input_names=names,
            output_names=outputs, dynamic_axes={n: axes[n] for n in (*names, *outputs)},
        )  # fmt: skip
    model = onnx.load(path)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in
             about.items()}  # fmt: skip
    onnx.helper.set_model_props(model, {**texts, ABOUT: json.dumps(about)})
    onnx.save(model, path)


def _xlogy(g: Any, x: Any, y: Any) -> Any:
    """Product of x and log y, 0 where x is 0."""
    zero = g.op("Constant", value_t=torch.tensor(0.0))
    return g.op("Where", g.op("Equal", x, zero), zero, g.op("Mul", x, g.op("Log", y)))


def _deform_conv2d(g: Any, x: Any, weight: Any, offset: Any, mask: Any, bias: Any,
                   *numbers: Any) -> Any:  # fmt: skip
    """That of torchvision; ``numbers`` are strides, paddings and dilations of both axes, groups
    of weights and of offsets, and whether the mask counts."""
    from torch.onnx.symbolic_helper import _get_const

    *pairs, groups, offset_groups, masked = (_get_const(n, "i", "number") for n in numbers)
    strides, pads, dilations = pairs[:2], pairs[2:4], pairs[4:]
    maps = [x, weight, offset, bias] + [mask] * bool(masked)
    return g.op(
        "DeformConv", *maps, strides_i=strides, pads_i=pads * 2, dilations_i=dilations,
        group_i=groups, offset_group_i=offset_groups,
    )  # fmt: skip


def _open_torchscript(path: Path) -> GraphRunner:
    with _quiet():
        module = torch.jit.load(str(path))
    count = len(list(module.forward.schema.arguments)) - 1

    def run(image: np.ndarray, rows: np.ndarray, novel: np.ndarray) -> dict[str, np.ndarray]:
        given = [torch.from_numpy(array) for array in (image, rows, novel)][:count]
        with torch.no_grad():
            return {name: out.numpy() for name, out in zip(OUTPUTS, module(*given))}

    return run


def _open_onnx(path: Path) -> GraphRunner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(image: np.ndarray, rows: np.ndarray, novel: np.ndarray) -> dict[str, np.ndarray]:
        given = {"image": image, "class_embeddings": rows, "is_novel": novel}
        return dict(zip(outputs, session.run(outputs, {name: given[name] for name in wanted})))

    return run


FORMATS = {
    "onnx": GraphFormat("model.onnx", ("onnx", "onnxruntime"), _write_onnx, _open_onnx),
    "torchscript": GraphFormat("model.torchscript", (), _write_torchscript, _open_torchscript),
}
