"""What goes in comes out; what is wrong is refused by name."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from region_samples import ENCODER, facts, regions_of, same, write_store

from ovd_d2.errors import OVDError
from ovd_d2.region_store import (
    MissingImageError,
    RegionStore,
    RegionStoreWriter,
    StoreFacts,
    fingerprint_of,
    merge_manifests,
    verify,
)
from ovd_d2.structures import RegionEmbeddings

IMAGE_IDS = st.one_of(st.integers(), st.text())


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    images=st.lists(st.tuples(IMAGE_IDS, st.integers(0, 5)), max_size=8, unique_by=lambda i: i[0]),
    dim=st.sampled_from([1, 2, 7]),
    scores=st.booleans(),
    per_shard=st.integers(1, 4),
    sessions=st.integers(1, 3),
)
def test_round_trip(tmp_path_factory, images, dim, scores, per_shard, sessions):
    path = tmp_path_factory.mktemp("store")
    ids = [image_id for image_id, _ in images]
    expected = {
        image_id: regions_of(seed, count, dim, scores)
        for seed, (image_id, count) in enumerate(images)
    }
    made_from = facts(ids, dim=dim, has_scores=scores)
    for session in range(sessions):  # each appends to what the ones before have finished
        with RegionStoreWriter(path, made_from) as writer:
            for number, image_id in enumerate(ids[session::sessions]):
                writer.append(image_id, expected[image_id])
                if number % per_shard == per_shard - 1:
                    writer.flush()
    store = RegionStore(path, expected_encoder_id=ENCODER, expected_image_ids=reversed(ids))
    assert set(store) == set(ids) and len(store) == len(ids)
    for image_id in ids:
        assert same(store[image_id], expected[image_id])
    assert verify(path) == []


def test_fp32_is_kept_as_the_nearest_fp16_and_the_tensors_may_be_reused(tmp_path):
    embeddings = torch.nn.functional.normalize(torch.randn(5, 16, dtype=torch.float64), dim=1)
    boxes = torch.tensor([[0, 0, 10, 20]] * 5)
    wanted = embeddings.half()
    with RegionStoreWriter(tmp_path, facts(dim=16)) as writer:
        writer.append(0, RegionEmbeddings(boxes, embeddings))
        embeddings.zero_()
        boxes.zero_()
    found = RegionStore(tmp_path)[0]
    assert torch.equal(found.embeddings, wanted) and found.embeddings.dtype == torch.float16
    assert found.boxes.tolist() == [[0, 0, 10, 20]] * 5 and found.boxes.dtype == torch.float32


def test_int_and_str_ids_are_different_and_numpy_ids_are_ints(tmp_path):
    with RegionStoreWriter(tmp_path, facts([1, "1"])) as writer:
        writer.append(np.int64(1), regions_of(0))
        writer.append("1", regions_of(1))
    store = RegionStore(tmp_path)
    assert same(store[1], regions_of(0)) and same(store["1"], regions_of(1))
    assert same(store[np.int32(1)], regions_of(0))
    assert 2 not in store and store.missing([2, 1, "2"]) == [2, "2"]


@pytest.mark.parametrize("image_id", [True, 1.0, None, (1,), b"1"])
def test_other_ids_are_refused(tmp_path, image_id):
    with RegionStoreWriter(tmp_path, facts()) as writer, pytest.raises(OVDError, match="image id"):
        writer.append(image_id, regions_of(0))


def test_a_missing_image_is_named_and_is_a_key_error_too(tmp_path):
    store = RegionStore(write_store(tmp_path))
    with pytest.raises(OVDError, match=r"^region store .* has no image 77; build") as caught:
        store[77]
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, MissingImageError)
    assert store.get(77) is None


def test_reads_are_views_and_do_not_change_the_file(tmp_path):
    write_store(tmp_path)
    store = RegionStore(tmp_path)
    assert store[7].embeddings.data_ptr() == store[7].embeddings.data_ptr()
    store[7].embeddings.zero_()
    assert verify(tmp_path) == []
    assert same(RegionStore(tmp_path)[7], regions_of(7, 3))


def test_a_store_can_be_handed_to_another_process(tmp_path):
    store = RegionStore(write_store(tmp_path))
    store[3]
    content = pickle.dumps(store)
    assert len(content) < 5000  # no embeddings inside
    copy = pickle.loads(content)
    assert all(same(copy[i], store[i]) for i in range(10))
    assert copy.regions_per_image.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_an_image_comes_once(tmp_path):
    with RegionStoreWriter(tmp_path, facts()) as writer:
        writer.append(0, regions_of(0))
        with pytest.raises(OVDError, match="image 0 is in region store .* already"):
            writer.append(0, regions_of(1))
        writer.flush()
        with pytest.raises(OVDError, match="already"):
            writer.append(0, regions_of(1))
    with RegionStoreWriter(tmp_path, facts()) as writer:
        assert writer.done_ids == {0}
        with pytest.raises(OVDError, match="already"):
            writer.append(0, regions_of(1))
    store = RegionStore(tmp_path)
    assert len(store) == 1 and same(store[0], regions_of(0))


def _with(regions, **changes):
    values = {"boxes": regions.boxes, "embeddings": regions.embeddings, "scores": regions.scores}
    return RegionEmbeddings(**{**values, **changes})


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": torch.ones(3, 5)}, "width 5 instead of 4"),
        ({"embeddings": torch.ones(3, 4)}, "not of L2 norm 1"),
        ({"embeddings": torch.zeros(3, 4)}, "not of L2 norm 1"),
        ({"embeddings": torch.full((3, 4), NAN)}, "not of L2 norm 1"),
        ({"boxes": torch.full((3, 4), NAN)}, "not finite"),
        ({"boxes": torch.tensor([[0.0, 0, 1, float("inf")]] * 3)}, "not finite"),
        ({"boxes": torch.tensor([[5.0, 0, 1, 1]] * 3)}, "order xyxy"),
        ({"scores": None}, "no finite scores"),
        ({"scores": torch.tensor([1, NAN, 0])}, "no finite scores"),
    ],
)
def test_wrong_regions_are_refused_and_nothing_is_added(tmp_path, changes, message):
    good = regions_of(0, scores=True)
    with RegionStoreWriter(tmp_path, facts(has_scores=True)) as writer:
        with pytest.raises(OVDError, match=f"image 5 has .*{message}"):
            writer.append(5, _with(good, **changes))
        assert 5 not in writer.done_ids
        writer.append(5, good)
    assert same(RegionStore(tmp_path)[5], good)


def test_scores_that_would_be_lost_are_refused(tmp_path):
    with RegionStoreWriter(tmp_path, facts()) as writer:
        with pytest.raises(OVDError, match="has_scores is False"):
            writer.append(0, regions_of(0, scores=True))
        writer.append(0, regions_of(0, count=0, scores=True))


def test_another_encoder_is_refused_by_name(tmp_path):
    write_store(tmp_path)
    with pytest.raises(OVDError, match=f'made by encoder "{ENCODER}", but "hf:siglip@ab" is'):
        RegionStore(tmp_path, expected_encoder_id="hf:siglip@ab")
    with pytest.raises(OVDError, match="encoder_id 'openai.*', but this run has 'other'"):
        RegionStoreWriter(tmp_path, facts(encoder_id="other"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dim": 5}, "dim"),
        ({"crop_rule": "1.5x"}, "crop_rule"),
        ({"proposals": "rpn"}, "proposals"),
        ({"has_scores": True}, "has_scores"),
        ({"image_ids": range(1, 11)}, "dataset_fingerprint"),
    ],
)
def test_a_store_is_not_continued_with_something_else(tmp_path, changes, key):
    write_store(tmp_path)
    with pytest.raises(OVDError, match=f"has {key} .*: use the same settings, or write to another"):
        RegionStoreWriter(tmp_path, facts(**changes))
    with RegionStoreWriter(tmp_path, facts()) as writer:  # the refused one holds no lock
        assert writer.done_ids == set(range(10))


def test_another_data_set_is_refused(tmp_path):
    write_store(tmp_path)
    RegionStore(tmp_path, expected_image_ids=range(10))
    for other in (range(11), map(str, range(10))):
        with pytest.raises(OVDError, match="was made for data set tiny"):
            RegionStore(tmp_path, expected_image_ids=other)


def test_the_fingerprint_knows_ids_and_not_their_order():
    assert fingerprint_of([1, 2, "a"]) == fingerprint_of(["a", 2, 1])
    assert len({fingerprint_of(ids) for ids in ([], [1], ["1"], [1, 2], [12], ["1\n2"])}) == 6
    with pytest.raises(OVDError, match="id 3 comes twice"):
        StoreFacts.for_dataset("twice", [3, 3])


def test_an_unfinished_store_is_not_read(tmp_path):
    def stopped():
        with RegionStoreWriter(tmp_path, facts()) as writer:
            writer.append(0, regions_of(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with pytest.raises(OVDError, match="is unfinished: run the command"):
        RegionStore(tmp_path)
    with RegionStoreWriter(tmp_path, facts()) as writer:
        assert writer.done_ids == {0}  # what was appended before the exception is kept
        assert writer.remaining(range(3)) == [1, 2]
    assert len(RegionStore(tmp_path)) == 1


@pytest.mark.parametrize("what", ["nothing", "empty", "file"])
def test_what_is_no_store_is_refused(tmp_path, what):
    path = tmp_path / "store"
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.touch()
        with pytest.raises(OVDError, match="cannot be created"):
            RegionStoreWriter(path, facts())
    for read in (RegionStore, verify, merge_manifests):
        with pytest.raises(OVDError, match=r"store .*does not exist|is no region store"):
            read(path)


def _change(content, **changes):
    return {**content, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: "[]", "is no manifest"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "version 2"),
        (lambda text: text.replace('"dim": 4', '"dim": "4"'), "dim '4'"),
        (lambda text: text.replace('"dim": 4', '"dim": -4'), "dim -4"),
        (lambda text: text.replace('"encoder_id"', '"encoder"'), "encoder_id None"),
        (lambda text: text.replace("rank00000-000001", "../../etc/passwd"), "wrong name"),
        (lambda text: text.replace("000001.safe", "000000.safe"), "twice"),
        (lambda text: text.replace('"images": 10', '"images": 9'), "counts"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, change, message):
    manifest = write_store(tmp_path) / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(change(text))
    assert manifest.read_text() != text
    for read in (RegionStore, verify, lambda path: RegionStoreWriter(path, facts())):
        with pytest.raises(OVDError, match=message) as caught:
            read(tmp_path)
        assert "manifest.json" in str(caught.value)


def test_the_manifest_says_what_it_must(tmp_path):
    write_store(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    shards = content.pop("shards")
    assert content == {
        "format": "ovd_d2 region store",
        "version": 1,
        "dtype": "float16",
        "box_frame": "xyxy, absolute pixels of the original image",
        "encoder_id": ENCODER,
        "dim": 4,
        "crop_rule": "1x",
        "dataset_name": "tiny",
        "dataset_images": 10,
        "dataset_fingerprint": fingerprint_of(range(10)),
        "proposals": "gt",
        "has_scores": False,
        "images": 10,
        "regions": 13,
    }
    assert [shard["images"] for shard in shards] == [4, 4, 2]
    assert all(len(shard["sha256"]) == 64 for shard in shards)


def test_a_shard_is_plain_safetensors(tmp_path):
    from safetensors.torch import load_file

    write_store(tmp_path)
    tensors = load_file(tmp_path / "rank00000-000000.safetensors")
    assert sorted(tensors) == ["boxes", "embeddings", "row_offsets"]
    assert tensors["row_offsets"].tolist() == [0, 0, 1, 3, 6]
    assert torch.equal(tensors["embeddings"][3:6], regions_of(3, 3).embeddings)


def test_shards_end_by_size_and_by_time(tmp_path):
    with RegionStoreWriter(tmp_path / "size", facts(), shard_bytes=60) as writer:
        for number in range(4):  # 24 bytes per region
            writer.append(number, regions_of(number, count=2))
    assert len(list((tmp_path / "size").glob("*.safetensors"))) == 2
    with RegionStoreWriter(tmp_path / "time", facts(), shard_seconds=0) as writer:
        for number in range(4):
            writer.append(number, regions_of(number))
            assert len(list((tmp_path / "time").glob("*.safetensors"))) == number + 1


def test_a_closed_writer_and_a_wrong_rank_are_refused(tmp_path):
    writer = RegionStoreWriter(tmp_path, facts())
    writer.close()
    writer.close()
    with pytest.raises(OVDError, match="is closed"):
        writer.append(0, regions_of(0))
    for rank, world_size in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(OVDError, match="rank"):
            RegionStoreWriter(tmp_path, facts(), rank=rank, world_size=world_size)
