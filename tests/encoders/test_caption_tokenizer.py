"""Captions to tokens: the public code's tokens, and refusals in one sentence."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from ovd_d2.encoders import CaptionTokenizer
from ovd_d2.encoders.huggingface import load_tokenizer, packaged_minilm_folder
from ovd_d2.errors import OVDError
from ovd_d2.structures import TokenSpans

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden/glip/positive_map.json").read_text(encoding="utf-8")
)
CASES = {**GOLDEN["cases"], **{k: v for k, v in GOLDEN["lvis_chunking"].items() if "_chunk" in k}}
CASES = {name: case for name, case in CASES.items() if isinstance(case, dict)}


@pytest.fixture(scope="module")
def long_reader():
    return CaptionTokenizer.load("minilm", max_tokens=512)


@pytest.fixture(scope="module")
def reader():
    return CaptionTokenizer.load("minilm")


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_positions_of_the_public_code(name, reader, long_reader):
    case = CASES[name]
    spans = TokenSpans(case["caption"], [[span] for span in case["char_spans"]])
    tokens = long_reader([case["caption"]])
    if "input_ids" in case:
        assert tokens.ids[0].tolist() == case["input_ids"]
    assert tokens.ids.shape == (1, case["n_tokens_untruncated"])
    places = [row.nonzero()[:, 0].tolist() for row in spans.token_map(tokens.offsets[0])]
    wanted = case["label_to_token_positions"]
    assert places == [wanted.get(str(label), []) for label in case["labels"]]
    cut = reader([case["caption"]], truncate=True)
    assert cut.ids.shape == (1, case["n_tokens_fed_to_model"])
    places = [row.nonzero()[:, 0].tolist() for row in spans.token_map(cut.offsets[0])]
    assert places == case["training_positive_map_nonzero"]


def test_the_packaged_vocabulary_is_that_of_bert_uncased():
    words = (packaged_minilm_folder() / "vocab.txt").read_bytes()
    digest = hashlib.sha256(words).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def test_a_batch_is_padded_to_its_longest(reader):
    tokens = reader(["a cat", "a red traffic light", ""])
    assert tokens.ids.shape == tokens.mask.shape == (3, 6)
    assert tokens.offsets.shape == (3, 6, 2)
    assert tokens.mask.sum(dim=1).tolist() == [4, 6, 2]
    assert tokens.mask.dtype == torch.bool and tokens.ids.dtype == torch.int64
    assert not tokens.offsets[~tokens.mask].any()
    assert tokens.offsets[0].tolist() == [[0, 0], [0, 1], [2, 5], [0, 0], [0, 0], [0, 0]]
    assert len(tokens) == 3 and len(reader([])) == 0


def test_counts_leave_special_tokens_out(reader):
    assert reader.count(["a cat", "potted plant. ", "", "x " * 1000]).tolist() == [2, 4, 0, 1000]
    assert reader.count([]).shape == (0,)
    assert reader.special_tokens == 2


def test_long_captions_are_refused_or_cut(reader):
    fits = "x " * 254
    assert reader([fits]).ids.shape == (1, 256)
    with pytest.raises(OVDError, match="caption 'a x x .* has 258 tokens; at most 256"):
        reader(["a cat", "a x " + fits])
    cut = reader(["a x " + fits], truncate=True)
    assert cut.ids.shape == (1, 256)
    assert cut.ids[0, -1] == reader(["a"]).ids[0, -1]  # the end token stays


def test_sources(tmp_path, reader):
    folder = packaged_minilm_folder()
    for source in (str(folder), f"hf:{folder}"):
        assert CaptionTokenizer.load(source)(["a cat"]).ids.equal(reader(["a cat"]).ids)
    with pytest.raises(OVDError, match="has no tokenizer files .*copy the model's complete folder"):
        CaptionTokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(OVDError, match=f"transformers cannot load .*{tmp_path}"):
        CaptionTokenizer.load(str(tmp_path))
    with pytest.raises(OVDError, match="'no/such-model' is neither a folder nor"):
        CaptionTokenizer.load("no/such-model")


def test_wrong_tokenizers_are_refused():
    tokenizer = load_tokenizer(packaged_minilm_folder())
    for max_tokens in (2, 513):
        with pytest.raises(OVDError, match=rf"max_tokens is {max_tokens}; .*from 3 to 512"):
            CaptionTokenizer(tokenizer, max_tokens)
    with pytest.raises(OVDError, match="tokenizer object does not know the characters"):
        CaptionTokenizer(object())
