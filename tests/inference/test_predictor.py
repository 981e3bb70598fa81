"""One vocabulary, many pictures: kinds of input, batches, sizes, swaps, and bad input."""

import itertools
import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from PIL import Image
from random_models import assert_same, make_pixels, write_checkpoint, write_config

from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor, Prediction
from ovd_d2.language import Vocabulary

PIXELS = make_pixels(120, 160)
BATCH_NOISE = 1e-3  # pixels and probabilities: kernels may sum in another order in a batch


@pytest.fixture(scope="module")
def predictor(config, checkpoint):
    return OpenVocabPredictor(config, checkpoint, device="cpu")


def test_every_kind_of_input_gives_the_same_detections(predictor, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    bgr = np.ascontiguousarray(PIXELS[:, :, ::-1])
    wanted = predictor.predict(path)
    assert len(wanted) > 0 and wanted.image_size == (120, 160)
    assert wanted.pred_masks.shape == (len(wanted), 120, 160)
    assert (wanted.scores.diff() <= 0).all()
    for picture in (
        str(path), Image.fromarray(PIXELS), bgr, torch.from_numpy(bgr.transpose(2, 0, 1).copy())
    ):  # fmt: skip
        assert_same(predictor.predict(picture), wanted)
    assert_same(predictor.predict(PIXELS, input_format="RGB"), wanted)
    assert_same(predictor(bgr)["instances"], wanted)
    for several in ([path], tmp_path, iter([bgr]), (Image.fromarray(PIXELS),)):
        (only,) = predictor.predict(several)
        assert_same(only, wanted)
    assert predictor.predict([]) == []


def test_colour_order_matters_and_has_a_default(config, checkpoint, predictor):
    rgb = OpenVocabPredictor(config, checkpoint, device="cpu", input_format="RGB")
    wanted = rgb.predict(PIXELS)
    assert_same(rgb.predict(PIXELS[:, :, ::-1], input_format="BGR"), wanted)
    assert not torch.equal(predictor.predict(PIXELS).scores, wanted.scores)


def test_a_model_of_the_other_colour_order(config, checkpoint, predictor, tmp_path):
    """INPUT.FORMAT BGR on swapped colours sees the pixels that RGB sees on the others."""
    bgr = OpenVocabPredictor(
        write_config(tmp_path / "bgr.yaml", order="BGR"), checkpoint, device="cpu"
    )
    swapped = Image.fromarray(np.ascontiguousarray(PIXELS[:, :, ::-1]))
    assert_same(bgr.predict(swapped), predictor.predict(Image.fromarray(PIXELS)))


def test_exif_orientation_turns_the_frame(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    found = predictor.predict(tmp_path / "turned.png")
    assert found.image_size == (160, 120)
    assert_same(found, predictor.predict(Image.fromarray(np.rot90(PIXELS, -1).copy())))


def test_same_as_evaluation(predictor, config, checkpoint, tmp_path):
    """What Detectron2's own loading, our mapper and the bare model give for the file."""
    from ovd_d2.data.mappers.detection import build_mapper

    cfg = load_config(str(config), ["MODEL.TIMM.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(checkpoint))
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    sample = build_mapper(cfg, False)({"file_name": str(path), "height": 120, "width": 160})
    with torch.no_grad():
        (wanted,) = model([sample])
    assert_same(predictor.predict(path), wanted["instances"], tolerance=BATCH_NOISE)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_change_nothing(config, checkpoint, predictor, batch_size):
    sizes = [(120, 160), (160, 120), (120, 160), (60, 80), (120, 160), (50, 160)]
    pictures = [Image.fromarray(make_pixels(*size, seed=i)) for i, size in enumerate(sizes)]
    batched = OpenVocabPredictor(config, checkpoint, device="cpu", batch_size=batch_size)
    found = batched.predict(pictures)
    for picture, instances in zip(pictures, found, strict=True):
        assert_same(instances, predictor.predict(picture), tolerance=BATCH_NOISE)


def test_the_vocabulary_is_swapped_between_calls(config, checkpoint, tmp_path):
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu")
    assert predictor.vocabulary.names == ("cat", "red mug", "traffic light")
    before = predictor.predict(PIXELS)
    predictor.set_vocabulary("traffic light, cat")
    fewer = predictor.predict(PIXELS)
    assert set(fewer.pred_classes.tolist()) <= {0, 1}
    assert not torch.equal(before.scores, fewer.scores)
    (tmp_path / "names.txt").write_text("cat\nred mug\ntraffic light\n")
    for same in (
        "cat,red mug , traffic light",
        ["cat", "red mug", "traffic light"],
        Vocabulary.from_names("cat, red mug, traffic light"),
        tmp_path / "names.txt",
        str(tmp_path / "names.txt"),
    ):
        predictor.set_vocabulary("dog")
        predictor.set_vocabulary(same)
        assert_same(predictor.predict(PIXELS), before)


def test_typed_names_get_what_the_model_knows_and_others_are_novel(config, checkpoint, tmp_path):
    (tmp_path / "names.json").write_text(
        json.dumps({"names": ["cat", "red mug"], "synonyms": [["cat", "kitty"], ["red mug"]]})
    )
    trained = write_config(tmp_path / "config.yaml", names=str(tmp_path / "names.json"))
    predictor = OpenVocabPredictor(trained, checkpoint, vocabulary="CAT, dog", device="cpu")
    (tmp_path / "typed.txt").write_text("CAT\ndog\n")
    for typed in ("CAT, dog", ["CAT", "dog"], tmp_path / "typed.txt", str(tmp_path / "typed.txt")):
        assert predictor.vocabulary.synonyms == (("cat", "kitty"), ("dog",))
        assert predictor.vocabulary.is_novel == (False, True)
        predictor.set_vocabulary("red mug")
        predictor.set_vocabulary(typed)
    as_it_is = Vocabulary.from_names("cat, dog")
    predictor.set_vocabulary(as_it_is)
    assert predictor.vocabulary == as_it_is


def test_a_bad_vocabulary_changes_nothing(config, checkpoint):
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu")
    before = predictor.predict(PIXELS)
    for bad, message in (
        ("", "empty"), ("cat, cat", "twice"), ([], "at least one"), (["a", ""], "empty"),
        ("nowhere.txt", "nowhere"), (None, "vocabulary is None"), (3, "vocabulary is 3"),
        (b"cat", "vocabulary is b'cat'"), ([3], "not 3"), ("ca\x00t", "control character"),
        ("ca\nt", "control character"), ("a\x00.txt", "cannot read vocabulary file"),
    ):  # fmt: skip
        with pytest.raises(OVDError, match=message):
            predictor.set_vocabulary(bad)
        assert_same(predictor.predict(PIXELS), before)


def test_one_class_and_very_many(config, checkpoint):
    predictor = OpenVocabPredictor(config, checkpoint, vocabulary="cat", device="cpu")
    found = predictor.predict(PIXELS)
    assert len(found) and found.pred_classes.tolist() == [0] * len(found)
    predictor.set_vocabulary([f"thing {k}" for k in range(3000)])
    found = predictor.predict(PIXELS)
    assert len(found) <= 20 and found.pred_classes.max() < 3000


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 2), (900, 1100)])
def test_tiny_thin_and_large_pictures(predictor, size):
    found = predictor.predict(make_pixels(*size))
    assert found.image_size == size
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and boxes.isfinite().all()
    assert (boxes[:, 2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()


def test_threshold_and_topk(config, checkpoint, predictor):
    everything = predictor.predict(PIXELS)
    cut = float(everything.scores[len(everything) // 2])
    strict = OpenVocabPredictor(config, checkpoint, device="cpu", score_threshold=cut)
    assert_same(strict.predict(PIXELS), everything[everything.scores > cut])
    three = OpenVocabPredictor(config, checkpoint, device="cpu", topk=3)
    assert_same(three.predict(PIXELS), everything[:3])
    none = OpenVocabPredictor(config, checkpoint, device="cpu", score_threshold=1.0)
    assert len(none.predict(PIXELS)) == 0
    assert none.predict(PIXELS).pred_masks.shape == (0, 120, 160)


def test_detections_may_be_changed_by_their_owner(predictor):
    found = predictor.predict(PIXELS)
    found.pred_boxes.scale(2, 2)  # in place
    assert found.scores.device.type == "cpu" and not found.scores.requires_grad


def test_stream_reads_no_further_than_it_must(predictor):
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield PIXELS

    stream = predictor.stream(endless())
    first = next(stream)
    assert isinstance(first, Prediction) and first.source == "image 1"
    assert np.array_equal(first.image, PIXELS[:, :, ::-1])
    assert len(read) == predictor.batch_size
    assert [next(stream).source for _ in range(4)] == [f"image {i}" for i in (2, 3, 4, 5)]


def test_stream_names_and_skips_what_is_broken(predictor, tmp_path):
    for name in ("a.png", "c.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    errors = []
    found = list(predictor.stream(tmp_path, on_error=lambda *error: errors.append(error)))
    assert [p.source for p in found] == [str(tmp_path / name) for name in ("a.png", "c.png")]
    ((source, error),) = errors
    assert source.endswith("b.png") and "b.png" in str(error)
    with pytest.raises(OVDError, match=r"b\.png"):
        predictor.predict(tmp_path)
    with pytest.raises(OVDError, match=r"image 2: .*float64"):
        predictor.predict([PIXELS, PIXELS / 255.0])
    with pytest.raises(OVDError, match="no list of pictures"):
        predictor.predict(7)


def test_a_model_whose_own_names_are_elsewhere(config, checkpoint, tmp_path):
    """The constructor works, predicting waits for names."""
    lonely = write_config(tmp_path / "lonely.yaml", names="gone/names.txt")
    predictor = OpenVocabPredictor(lonely, checkpoint, device="cpu")
    assert predictor.vocabulary is None
    with pytest.raises(OVDError, match="set_vocabulary"):
        predictor.predict(PIXELS)
    predictor.set_vocabulary("cat")
    assert predictor.vocabulary.names == ("cat",)
    assert predictor.predict(PIXELS).image_size == (120, 160)


def test_a_config_node_is_taken_and_not_changed(config, checkpoint, predictor):
    cfg = load_config(str(config), ["MODEL.WEIGHTS", str(checkpoint)])
    cfg.freeze()
    before = cfg.dump()
    found = OpenVocabPredictor(cfg, device="cpu").predict(PIXELS)
    assert cfg.dump() == before
    assert_same(found, predictor.predict(PIXELS))


def test_safetensors_weights(config, checkpoint, predictor, tmp_path):
    from safetensors.torch import save_file

    state = torch.load(checkpoint, weights_only=True)["model"]
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "bare.pth")
    for file in ("model.safetensors", "bare.pth"):
        other = OpenVocabPredictor(config, tmp_path / file, device="cpu")
        assert_same(other.predict(PIXELS), predictor.predict(PIXELS))


def test_bad_arguments_are_one_sentence(config, checkpoint, tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "code.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"model": {3: torch.zeros(2)}}, tmp_path / "int.pth")
    state = torch.load(checkpoint, weights_only=True)["model"]
    for name, unfit in (("sparse", torch.eye(2).to_sparse()), ("meta", torch.eye(2, device="meta")),
                        ("complex", torch.eye(2) * 1j)):  # fmt: skip
        torch.save({**state, "pixel_mean": unfit}, tmp_path / f"{name}.pth")
    torch.save({k: v for k, v in state.items() if "mask" not in k}, tmp_path / "no_mask.pth")
    state["roi_heads.box_head.fc1.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "shape.pth")
    for weights, sentence in {
        "": "No weights",
        "nowhere.pth": r"Cannot read the weights .*nowhere\.pth",
        "model.pkl": "is a pickle",
        "model.onnx": r"must be a \.pth or \.safetensors file",
        tmp_path / "text.pth": r"text\.pth",
        tmp_path / "empty.pth": r"empty\.pth holds no weights",
        tmp_path / "list.pth": r"list\.pth holds no weights",
        tmp_path / "int.pth": r"int\.pth holds no weights of a model: its entry 3 is under no name",
        tmp_path / "sparse.pth": r"its entry 'pixel_mean' is a sparse tensor",
        tmp_path / "meta.pth": r"its entry 'pixel_mean' is a meta tensor",
        tmp_path / "complex.pth": r"its entry 'pixel_mean' is complex",
        tmp_path / "code.pth": r"code\.pth is not a file of tensors",
        tmp_path / "no_mask.pth": r"no_mask\.pth lacks \d+ of the model's",
        tmp_path / "shape.pth": r"fc1\.weight has shape \(2, 2\)",
    }.items():
        with pytest.raises(OVDError, match=sentence):
            OpenVocabPredictor(config, weights, device="cpu")
    for options, sentence in (
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "meta"}, "device 'meta' is unknown: use cpu, cuda"),
        ({"device": []}, r"device '\[\]' is unknown"),
        ({"score_threshold": 1.5}, "score threshold is 1.5"),
        ({"score_threshold": "x"}, "score threshold is 'x'; score_threshold"),
        ({"score_threshold": float("nan")}, "score threshold is nan"),
        ({"topk": 0}, "topk is 0"),
        ({"topk": 2.5}, "topk is 2.5; it must be a whole number"),
        ({"topk": True}, "topk is True"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "4"}, "batch_size is '4'"),
        ({"input_format": "GBR"}, "input_format is 'GBR'"),
        ({"vocabulary": "cat, cat"}, "cat"),
    ):
        with pytest.raises(OVDError, match=sentence):
            OpenVocabPredictor(config, checkpoint, **{"device": "cpu", **options})
    with pytest.raises(OVDError, match=r"nowhere\.yaml"):
        OpenVocabPredictor("nowhere.yaml", checkpoint)


def test_closed_set_models_are_refused(config, tmp_path):
    closed = tmp_path / "closed.yaml"
    closed.write_text(
        f"_BASE_: {config}\nMODEL: {{ROI_HEADS: {{NAME: StandardROIHeads, NUM_CLASSES: 3}}}}\n"
    )
    weights = write_checkpoint(closed, tmp_path / "closed.pth")
    with pytest.raises(OVDError, match="fixed set of classes"):
        OpenVocabPredictor(closed, weights, device="cpu")


def test_names_of_another_encoder_are_refused(config, checkpoint, monkeypatch, tmp_path):
    """The checkpoint knows whose embeddings it was trained with."""
    from hashing_encoder import HashingEncoder
    from random_models import DIM

    from ovd_d2.encoders import EncoderScheme, register_encoder

    other = HashingEncoder(DIM, "other@111111111111")
    register_encoder(
        "other", EncoderScheme(lambda _: other.encoder_id, lambda *_: other, rest=None)
    )
    yaml = write_config(tmp_path / "other.yaml", encoder="other")
    with pytest.raises(OVDError, match="hashing@000000000000"):
        OpenVocabPredictor(yaml, checkpoint, device="cpu")
