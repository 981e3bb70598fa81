"""Any text, bytes or structure: a usable vocabulary or embedding file, or one OVDError."""

import hashlib
import io
import json
from functools import partial

import numpy as np
import pytest
import torch
from hashing_encoder import HashingEncoder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddingBank, Vocabulary, load_text_embeddings

FEW = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6),
    st.sampled_from(["cat", "owl", "r", "\ud800", "a\0b", "\u200b", 10**400]),
)  # fmt: skip
FIELDS = st.sampled_from(
    ["names", "synonyms", "definitions", "is_novel", "image_counts", "categories", "name", "id",
     "def", "image_count", "frequency", "encoder_id", "version", "shape", "sha256"]
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(FIELDS, inner, max_size=4)
    ),
    max_leaves=10,
)
CATEGORIES = st.lists(
    st.fixed_dictionaries(
        {"id": st.one_of(st.integers(0, 9), SCALARS), "name": st.one_of(st.text("ab"), TREES)},
        optional=dict.fromkeys(("synonyms", "def", "image_count", "frequency"), TREES),
    ),
    max_size=3,
).map(lambda categories: {"categories": categories})
NAMED = st.fixed_dictionaries(
    {"names": st.lists(st.text("abc", max_size=3), max_size=3)},
    optional={
        "synonyms": st.one_of(TREES, st.lists(TREES, max_size=3)),
        "is_novel": st.one_of(TREES, st.lists(st.booleans(), max_size=3)),
        "image_counts": st.one_of(TREES, st.lists(SCALARS, max_size=3)),
        "definitions": st.one_of(TREES, st.lists(SCALARS, max_size=3)),
    },
)


def is_a_sentence(error: OVDError) -> None:
    assert len(str(error)) > 20 and "\n" not in str(error)


def usable_or_refused(make) -> Vocabulary | None:
    """What ``make`` returns, after checks that the rest of the package can work with it."""
    try:
        vocabulary = make()
    except OVDError as error:
        is_a_sentence(error)
        return None
    assert len(vocabulary) == len(set(vocabulary.names)) > 0
    texts = [*vocabulary.names, *sum(vocabulary.synonyms, ()), *vocabulary.definitions]
    assert all(isinstance(text, str) and text.encode() is not None for text in texts)
    assert all(type(flag) is bool for flag in vocabulary.is_novel)
    assert all(type(count) is int for count in vocabulary.image_counts)
    assert len(vocabulary.fingerprint) == 64
    return vocabulary


@FEW
@given(TREES)
@example(None)
@example(3)
@example(b"cat, owl")
@example([["cat"]])
@example({"cat": 1})
@example("cat,,owl")
@example("\ud800")
def test_any_names(names):
    usable_or_refused(lambda: Vocabulary.from_names(names))


@FEW
@given(st.text(max_size=20))
@example("\0.txt")
@example("\ud800.json")
@example("x" * 5000 + ".txt")
@example("x" * 5000)
@example(".txt")
@example("dataset:")
@example("dataset:\0")
@example("cat+imagenet21k:")
@example("cat+imagenet21k:-3")
@example("cat+imagenet21k:1e9")
@example("cat+imagenet21k:" + "9" * 5000)
@example("+imagenet21k:2")
def test_any_description_of_a_vocabulary(text):
    usable_or_refused(lambda: Vocabulary.load(text))


@pytest.mark.parametrize("spec", [None, 3, ["cat"], b"cat"])
def test_a_description_is_a_text(spec):
    with pytest.raises(OVDError, match="vocabulary"):
        Vocabulary.load(spec)


@FEW
@given(st.one_of(st.binary(max_size=30), st.text(max_size=30).map(partial(str.encode))))
@example(b"[" * 5000)
@example(b"[1" + b"0" * 5000 + b"]")
@example(b"\xef\xbb\xbf[]")
@example(b'["a\\ud800"]')
@example(b"a\rb")
def test_any_bytes_in_a_vocabulary_file(tmp_path, content):
    for suffix in (".txt", ".json"):
        path = tmp_path / f"names{suffix}"
        path.write_bytes(content)
        usable_or_refused(lambda path=path: Vocabulary.load(str(path)))


@FEW
@given(st.one_of(TREES, CATEGORIES, NAMED))
def test_any_structure_in_a_vocabulary_file(tmp_path, tree):
    path, again = tmp_path / "names.json", tmp_path / "again.json"
    path.write_text(json.dumps(tree))
    vocabulary = usable_or_refused(lambda: Vocabulary.load(str(path)))
    if vocabulary is not None:
        again.write_text(json.dumps(vocabulary.to_dict()))
        assert Vocabulary.from_file(again) == vocabulary


@FEW
@given(TREES.map(lambda tree: tree if isinstance(tree, list) else [tree]))
def test_names_that_pass_can_be_embedded_or_are_refused(tmp_path, names):
    vocabulary = usable_or_refused(lambda: Vocabulary.from_names(names))
    if vocabulary is not None:
        try:
            bank = TextEmbeddingBank(HashingEncoder(), cache_dir=tmp_path)
            assert bank.embed(vocabulary).embeddings.isfinite().all()
        except OVDError:
            pass


def rows_or_refused(path):
    try:
        loaded = load_text_embeddings(path)
    except OVDError as error:
        is_a_sentence(error)
        return
    torch.testing.assert_close(loaded.embeddings.norm(dim=1), torch.ones(len(loaded)))
    assert all(isinstance(name, str) for name in loaded.names)
    assert loaded.encoder_id.encode()


def safetensors_file(folder, content: bytes):
    """``content`` with the manifest that one who wants it to be read would write."""
    path = folder / "rows.safetensors"
    path.write_bytes(content)
    manifest = {"encoder_id": "x@1", "sha256": hashlib.sha256(content).hexdigest()}
    path.with_name("rows.safetensors.json").write_text(json.dumps(manifest))
    return path


def npy_bytes(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


ROWS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
NPY = npy_bytes(ROWS)
TENSORS = save_safetensors({"embeddings": torch.from_numpy(ROWS).float()})


@st.composite
def damaged(draw, content: bytes):
    """``content`` with a few bytes overwritten, removed or inserted, most of them in its head."""
    raw = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, min(len(raw), 90)))
        raw[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw[: draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])


@FEW
@given(st.one_of(st.binary(max_size=40), damaged(NPY)))
@example(NPY.replace(b"(3, 4)", b"(3, 99999999999)"))
@example(NPY.replace(b"'<f2'", b"'|O'"))
@example(NPY.replace(b"(3, 4)", b"(-3, 4)"))
@example(npy_bytes(np.array([{"a": 1}], dtype=object)))
@example(npy_bytes(np.zeros((2, 0), np.float32)))
@example(npy_bytes(np.full((2, 2), 1e300)))
@example(npy_bytes(np.array(1.0)))
def test_any_bytes_in_an_npy_file(tmp_path, content):
    path = tmp_path / "rows.npy"
    path.write_bytes(content)
    rows_or_refused(path)


@FEW
@given(st.one_of(st.binary(max_size=40), damaged(TENSORS)))
@example((2**62).to_bytes(8, "little") + b"{}")
@example(save_safetensors({"embeddings": torch.ones(2, 2, dtype=torch.int64)}))
@example(save_safetensors({"embeddings": torch.ones(2, 2, dtype=torch.bool)}))
@example(save_safetensors({"embeddings": torch.full((2, 2), 1e300, dtype=torch.float64)}))
def test_any_bytes_in_a_safetensors_file(tmp_path, content):
    rows_or_refused(safetensors_file(tmp_path, content))


@FEW
@given(
    st.one_of(
        TREES,
        st.fixed_dictionaries(
            {"encoder_id": st.one_of(st.text(max_size=6), SCALARS)},
            optional={"names": st.lists(TREES, min_size=3, max_size=3), "version": TREES,
                      "shape": TREES, "sha256": TREES},
        ),
    )
)  # fmt: skip
@example({"encoder_id": "\ud800"})
@example({"encoder_id": "x@1", "names": ["a", "b", 3]})
@example({"encoder_id": "x@1", "names": ["a", "b", "b"]})
@example({"encoder_id": "x@1", "names": ["a", "b", "\ud800"]})
def test_any_manifest(tmp_path, tree):
    path = tmp_path / "rows.npy"
    path.write_bytes(NPY)
    path.with_name("rows.npy.json").write_text(json.dumps(tree))
    rows_or_refused(path)


@pytest.mark.parametrize("name", ["", "x" * 300 + ".npy", "x" * 250 + ".npy", "a\0b.npy", ".npy"])
def test_any_name_of_an_embedding_file(tmp_path, name):
    if len(name) == 254:
        (tmp_path / name).write_bytes(NPY)  # its manifest's name is too long for a file
        rows_or_refused(tmp_path / name)
    else:
        with pytest.raises(OVDError, match="text embeddings"):
            load_text_embeddings(f"{tmp_path}/{name}")


def test_integers_are_no_embeddings(tmp_path):
    content = save_safetensors({"embeddings": torch.ones(2, 2, dtype=torch.int64)})
    with pytest.raises(OVDError, match="floating point"):
        load_text_embeddings(safetensors_file(tmp_path, content))


def test_rows_of_one_name_are_refused(tmp_path):
    path = tmp_path / "rows.npy"
    path.write_bytes(NPY)
    manifest = {"encoder_id": "x@1", "names": ["cat", "owl", "cat"]}
    path.with_name("rows.npy.json").write_text(json.dumps(manifest))
    with pytest.raises(OVDError, match="does not name each of the 3 rows"):
        load_text_embeddings(path)
