"""Files of class embeddings: what loads, and what is refused by name."""

import json
import os

import numpy as np
import pytest
import torch
from configured_classes import build
from embedding_damages import DAMAGES
from hashing_encoder import HashingEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ovd_d2.encoders import EncoderScheme, register_encoder
from ovd_d2.encoders import registry as text_encoders
from ovd_d2.errors import OVDError
from ovd_d2.language import (
    TextEmbeddingBank,
    TextEmbeddings,
    Vocabulary,
    load_text_embeddings,
)

ANIMALS = Vocabulary(("cat", "Bald_eagle", "owl"), synonyms=(("cat", "kitty"), (), ("owlet",)))


def detic_file(folder, rows=3, dim=8, dtype=np.float16, scale=10.0):
    path = folder / "lvis_clip.npy"
    array = (scale * np.random.default_rng(0).standard_normal((rows, dim))).astype(dtype)
    np.save(path, array)
    return path, torch.from_numpy(array.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1e-4])
def test_detic_layout_loads_as_it_is(tmp_path, dtype, scale):
    path, array = detic_file(tmp_path, dtype=dtype, scale=scale)
    loaded = load_text_embeddings(path, ANIMALS)
    expected = (array / array.norm(dim=1, keepdim=True)).float()
    torch.testing.assert_close(loaded.embeddings, expected, atol=1e-6, rtol=0)
    assert loaded.embeddings.dtype == torch.float32 and loaded.names == ANIMALS.names
    assert loaded.encoder_id.startswith("file:") and len(loaded.encoder_id) == 17
    assert load_text_embeddings(path).names == ("class_0", "class_1", "class_2")


def test_fortran_order_is_not_a_transpose(tmp_path):
    path, array = detic_file(tmp_path)
    np.save(path, np.asfortranarray(array.numpy()))
    expected = (array / array.norm(dim=1, keepdim=True)).float()
    torch.testing.assert_close(load_text_embeddings(path).embeddings, expected)


def test_sidecar_of_npy_names_the_encoder_and_the_rows(tmp_path):
    path, _ = detic_file(tmp_path)
    sidecar = tmp_path / "lvis_clip.npy.json"
    sidecar.write_text(json.dumps({"encoder_id": "openai-clip:ViT-B/32@40d365715913"}))
    loaded = load_text_embeddings(path, ANIMALS)
    assert loaded.encoder_id == "openai-clip:ViT-B/32@40d365715913"
    sidecar.write_text(json.dumps({"encoder_id": "x", "names": ["cat", "Bald_eagle", "owl"]}))
    assert load_text_embeddings(path).names == ANIMALS.names
    sidecar.write_text(json.dumps({"encoder_id": "x", "names": ["cat", "owl", "Bald_eagle"]}))
    with pytest.raises(OVDError, match=r"lvis_clip\.npy.*row 1 is 'owl', not 'Bald_eagle'"):
        load_text_embeddings(path, ANIMALS)
    sidecar.write_text(json.dumps({"encoder_id": "x", "sha256": "0" * 64}))
    with pytest.raises(OVDError, match="stale"):
        load_text_embeddings(path)


def rows_with(value, dtype=np.float32):
    array = np.ones((3, 8), dtype)
    array[1] = value
    return array


@pytest.mark.parametrize(
    "array, message",
    [
        (np.ones(3, np.float32), "shape"),
        (np.ones((3, 8, 1), np.float32), "shape"),
        (np.ones((0, 8), np.float32), "shape|cannot be read"),
        (np.ones((3, 0), np.float32), "shape|cannot be read"),
        (np.float32(1), "shape"),
        (np.ones((3, 8), np.int64), "not one array of floating point"),
        (np.ones((3, 8), np.complex64), "not one array of floating point"),
        (rows_with(np.nan), "nan or inf in row 1"),
        (rows_with(np.inf), "nan or inf in row 1"),
        (rows_with(1e300, np.float64), "nan or inf in row 1"),
        (rows_with(0), "all zero in row 1"),
        (np.ones((2, 8), np.float32), "2 rows but the vocabulary has 3 names"),
        (np.ones((8, 3), np.float32), "8 rows .* 3 names; transpose the file"),
        (np.array([[{}]], dtype=object), "cannot be read"),
    ],
)
def test_wrong_arrays_are_refused_by_name(tmp_path, array, message):
    path = tmp_path / "wrong.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(OVDError, match=message) as caught:
        load_text_embeddings(path, ANIMALS)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.npy", "missing.safetensors", "weights.pkl", "a.pt"])
def test_missing_and_foreign_files_are_refused_by_name(tmp_path, name):
    (tmp_path / "weights.pkl").write_bytes(b"")
    with pytest.raises(OVDError, match=name):
        load_text_embeddings(tmp_path / name)


def test_archive_with_npy_suffix_is_refused(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, a=np.ones((3, 8)))
    with pytest.raises(OVDError, match=r"a\.npy"):
        load_text_embeddings(tmp_path / "a.npy")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.booleans(), st.integers(0, 300))
def test_any_npy_bytes_are_read_or_refused_by_name(tmp_path_factory, content, mutate, place):
    folder = tmp_path_factory.mktemp("npy")
    path, _ = detic_file(folder)
    if mutate:  # a real file with some bytes overwritten
        original = path.read_bytes()
        place %= len(original)
        content = original[:place] + content + original[place + len(content) :]
    path.write_bytes(content)
    try:
        loaded = load_text_embeddings(path)
    except OVDError as error:
        message = str(error)
        assert str(path) in message
    else:
        norms = loaded.embeddings.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(len(norms)))


def test_saved_files_load_bit_by_bit_and_fit_only_their_vocabulary(tmp_path):
    made = TextEmbeddingBank(HashingEncoder(), cache_dir=tmp_path / "cache").embed(ANIMALS)
    path = tmp_path / "animals.safetensors"
    made.save(path)
    loaded = load_text_embeddings(path, ANIMALS)
    assert torch.equal(loaded.embeddings, made.embeddings)
    assert (loaded.names, loaded.encoder_id) == (made.names, made.encoder_id)
    with pytest.raises(OVDError, match="row 0 is 'cat', not 'owl'"):
        load_text_embeddings(path, Vocabulary(ANIMALS.names[::-1]))
    with pytest.raises(OVDError, match="3 rows but the vocabulary has 1 names"):
        load_text_embeddings(path, Vocabulary(("cat",)))


@pytest.mark.parametrize("damage", ["flipped bit", "no manifest", "other version", "no encoder"])
def test_damaged_saved_files_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "animals.safetensors"
    TextEmbeddings(torch.eye(3), ANIMALS.names, "x").save(path)
    DAMAGES[damage](path)
    with pytest.raises(OVDError, match=r"animals\.safetensors"):
        load_text_embeddings(path)


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(3, 8)}, path)
    with pytest.raises(OVDError, match=r"lack their manifest weights\.safetensors\.json"):
        load_text_embeddings(path)


def test_saving_to_an_impossible_place_is_one_sentence(tmp_path):
    made = TextEmbeddings(torch.eye(3), ANIMALS.names, "x")
    with pytest.raises(OVDError, match=r"saved as \.safetensors"):
        made.save(tmp_path / "a.npy")
    (tmp_path / "file").write_text("")
    with pytest.raises(OVDError, match="cannot write"):
        made.save(tmp_path / "file" / "a.safetensors")


def test_text_embeddings_check_and_normalise_what_they_get():
    rows = torch.tensor([[3.0, 4.0], [1e-30, 0.0], [0.0, 1e30]], requires_grad=True)
    made = TextEmbeddings(rows, ANIMALS.names, "x")
    expected = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(made.embeddings, expected)
    assert not made.embeddings.requires_grad
    unit = torch.eye(3)
    made = TextEmbeddings(unit, ANIMALS.names, "x")
    unit.zero_()
    assert torch.equal(made.embeddings, torch.eye(3))  # a copy
    for wrong in (torch.ones(2, 3), torch.ones(3), torch.ones(3, 2, 1)):
        with pytest.raises(OVDError, match="for 3 names"):
            TextEmbeddings(wrong, ANIMALS.names, "x")
    with pytest.raises(OVDError, match="the row of 'Bald_eagle' is zero, nan or inf"):
        TextEmbeddings(torch.tensor([[1.0], [0.0], [1.0]]), ANIMALS.names, "x")


@pytest.fixture
def hashing(monkeypatch, tmp_path):
    monkeypatch.setattr(text_encoders, "_SCHEMES", dict(text_encoders._SCHEMES))
    scheme = EncoderScheme(lambda rest: "hashing@000000000000", lambda *_: HashingEncoder())
    register_encoder("hashing", scheme)
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "cache"))


def test_file_wins_over_the_encoder(tmp_path):
    path, array = detic_file(tmp_path)
    vocabulary, embeddings = build(
        vocabulary="cat, dog, owl", text_embeddings=str(path), text_encoder="none"
    )
    assert embeddings.names == vocabulary.names == ("cat", "dog", "owl")
    expected = (array / array.norm(dim=1, keepdim=True)).float()
    torch.testing.assert_close(embeddings.embeddings, expected)


@pytest.mark.usefixtures("hashing")
def test_wrong_settings_name_their_keys():
    with pytest.raises(OVDError, match=r"MODEL\.OPEN_VOCAB\.VOCABULARY"):
        build(train_datasets=())
    with pytest.raises(OVDError, match="not registered"):
        build(train_datasets=("nowhere",))


def real_file(name):
    folder = os.environ.get("OVD_D2_REAL_EMBEDDINGS")
    if not folder or not os.path.isfile(os.path.join(folder, name)):
        pytest.skip("OVD_D2_REAL_EMBEDDINGS names no folder with this file")
    return os.path.join(folder, name)


def nearest(embeddings, name):
    similarity = embeddings.embeddings @ embeddings.embeddings[embeddings.names.index(name)]
    best = similarity.topk(2).indices[1]
    return embeddings.names[int(best)]


def test_real_lvis_embeddings():
    path = real_file("lvis_v1_clip_a+photo+cname.npy")
    vocabulary = Vocabulary.from_metadata("lvis_v1_train")
    embeddings = load_text_embeddings(path, vocabulary)
    assert embeddings.embeddings.shape == (1203, 512)
    torch.testing.assert_close(embeddings.embeddings.norm(dim=1), torch.ones(1203))
    assert nearest(embeddings, "violin") in {"cello", "guitar", "fiddle", "banjo"}
    assert nearest(embeddings, "kitten") in {"cat", "puppy"}
    with pytest.raises(OVDError, match="1203 rows but the vocabulary has 80"):
        load_text_embeddings(path, Vocabulary.from_metadata("coco_2017_val"))


def test_real_coco_embeddings():
    vocabulary, embeddings = build(
        train_datasets=("coco_2017_train",),
        text_embeddings=real_file("coco_clip_a+photo+cname.npy"),
    )
    assert len(vocabulary) == 80
    assert nearest(embeddings, "cat") == "dog" and nearest(embeddings, "fork") in {"knife", "spoon"}
