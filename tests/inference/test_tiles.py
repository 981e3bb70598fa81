"""Pictures in tiles: what is found, how much is held, and that one tile is no tile."""

import builtins
import json
import tracemalloc

import numpy as np
import pytest
import torch
from bright_rectangles import paint, rectangles
from PIL import Image
from random_models import assert_same, make_pixels
from torchvision.ops import box_iou
from video_pictures import mosaic

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference import tiles as tiling
from ovd_d2.inference.predict_files import predict_files
from ovd_d2.inference.tiles import Tiles, detect_in_tiles, wanted_tiles

pytest.importorskip("supervision")


class Stub:
    """:func:`rectangles`, and the sizes of all that it was given."""

    def __init__(self, **options):
        self.calls, self.options = [], options

    def __call__(self, images):
        self.calls.append([image.shape[:2] for image in images])
        return [{"instances": rectangles(image, **self.options)} for image in images]


def near_sighted(images):
    """Sees a picture made 64 x 64, as a network with a fixed input does."""
    found = []
    for image in images:
        small = np.array(Image.fromarray(image).resize((64, 64), Image.Resampling.NEAREST))
        instances = rectangles(small)
        instances.pred_boxes.scale(image.shape[1] / 64, image.shape[0] / 64)
        instances._image_size = image.shape[:2]
        found.append({"instances": instances})
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_boxes_masks_and_classes_come_back_into_the_frame_of_the_picture(batch_size):
    image = np.zeros((260, 340, 3), np.uint8)
    boxes = [(5, 5, 25, 20), (90, 90, 130, 120), (300, 240, 340, 260), (20, 150, 330, 200)]
    for k, box in enumerate(boxes):
        paint(image, box, score=0.9 - 0.1 * k, of_class=k % 2)
    stub = Stub(masks=True)
    found = detect_in_tiles(stub, image, Tiles(100, 0.3), batch_size)["instances"]
    wanted = rectangles(image, masks=True)
    assert_same(found, wanted)
    assert len(found) == 4 and found.image_size == (260, 340)
    assert max(len(call) for call in stub.calls) == batch_size
    sizes = {size for call in stub.calls for size in call}
    assert sizes == {(100, 100), (260, 340)}  # no rests, and the whole picture


def test_an_object_that_nobody_sees_whole_is_put_together():
    image = paint(np.zeros((100, 400, 3), np.uint8), (30, 40, 370, 60))

    def detect(images):
        if images[0].shape[1] == 400:
            return [{"instances": rectangles(np.zeros_like(images[0]), masks=True)}]
        return [{"instances": rectangles(piece, masks=True)} for piece in images]

    found = detect_in_tiles(detect, image, Tiles(100, 0.2), 2)["instances"]
    assert found.pred_boxes.tensor.tolist() == [[30, 40, 370, 60]]
    assert torch.equal(found.pred_masks[0], torch.from_numpy(image[:, :, 0] > 127))


def test_small_objects_are_found_in_tiles_and_large_ones_in_the_whole():
    image = np.zeros((640, 640, 3), np.uint8)
    small = [(x, y, x + 6, y + 6) for x in range(17, 640, 80) for y in range(17, 640, 80)]
    for box in small:
        paint(image, box)
    paint(image, (205, 205, 560, 560), of_class=1)
    whole = near_sighted([image])[0]["instances"]
    found = detect_in_tiles(near_sighted, image, Tiles(128, 0.25), 4)["instances"]
    visible = torch.tensor([box for box in small if image[box[1], box[0], 1] == 0]).float()

    def recall(instances):
        boxes = instances.pred_boxes.tensor[instances.pred_classes == 0]
        return int((box_iou(visible, boxes).amax(dim=1) > 0.5).sum()) if len(boxes) else 0

    assert recall(whole) == 0 and recall(found) == len(visible) == 48
    (large,) = found.pred_boxes.tensor[found.pred_classes == 1].tolist()
    assert large == pytest.approx([205, 205, 560, 560], abs=10)


def test_a_huge_picture_holds_a_few_tiles_at_a_time(monkeypatch):
    """20,000 x 20,000 pixels that take no memory, in 20 x 20 tiles of 1280 pixels."""
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20_000, 20_000, 3))
    monkeypatch.setattr(tiling, "MAX_MASK_BYTES", 0)  # masks of the picture would be 160 GB
    tile = rectangles(paint(np.zeros((1280, 1280, 3), np.uint8), (300, 300, 340, 340)), masks=True)
    seen = []

    def detect(pieces):
        seen.extend(piece.shape[:2] for piece in pieces)
        return [{"instances": tile[:]} for _ in pieces]

    tracemalloc.start()
    found = detect_in_tiles(detect, image, Tiles(1280, 0.2), 4)["instances"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == [(1280, 1280)] * 400 + [(20_000, 20_000)] and len(found) == 400
    assert peak < 30e6, f"{peak / 1e6:.0f} MB"


def test_masks_that_are_too_large_are_left_out_with_a_word(monkeypatch, caplog):
    monkeypatch.setattr(tiling, "MAX_MASK_BYTES", 100)
    image = paint(np.zeros((100, 200, 3), np.uint8), (30, 40, 60, 60))
    found = detect_in_tiles(Stub(masks=True), image, Tiles(100), 2)["instances"]
    assert len(found) == 1 and not found.has("pred_masks")
    assert "Raise the score threshold" in caplog.text


@pytest.fixture(scope="module")
def predictor(config, checkpoint):
    return OpenVocabPredictor(config, checkpoint, device="cpu")


def test_one_tile_is_no_tile(predictor):
    for shape in ((120, 160), (160, 160), (31, 20)):
        pixels = make_pixels(*shape)
        assert_same(predictor.predict(pixels, tile=160, overlap=0.5), predictor.predict(pixels))
    cut = predictor.predict(make_pixels(120, 161), tile=160)
    assert cut.pred_masks.shape == (len(cut), 120, 161) and len(cut) > 0


def test_attributes_streams_and_files(predictor, tmp_path):
    names = [tmp_path / f"{k}.png" for k in range(3)]
    for k, name in enumerate(names):
        Image.fromarray(make_pixels(150, 200, k)).save(name)
    streamed = [p.instances for p in predictor.stream(tmp_path, tile=96, overlap=0.1)]
    for name, found in zip(names, streamed):
        assert_same(predictor.predict(name, tile=96, overlap=0.1), found)
    report = predict_files(
        predictor, names, pictures=None, json_file=tmp_path / "a.json", tile=96, overlap=0.1
    )
    content = json.loads((tmp_path / "a.json").read_text())
    assert len(content["annotations"]) == sum(len(found) for found in streamed)
    assert len(report.found) == 3


def test_pictures_beyond_max_pixels_are_read_for_tiles(config, checkpoint, tmp_path):
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu", topk=1)
    path = tmp_path / "large.png"
    Image.new("RGB", (1300, 800)).save(path)  # the config allows 1,000,000 pixels
    with pytest.raises(OVDError, match="MAX_PIXELS"):
        predictor.predict(path)
    assert predictor.predict(path, tile=700).image_size == (800, 1300)


def test_label_maps_are_refused(label_map_model):
    predictor = OpenVocabPredictor.from_pretrained(label_map_model, device="cpu")
    for shape in ((50, 50), (50, 150)):
        with pytest.raises(OVDError, match="label maps.*leave out tile"):
            predictor.predict(make_pixels(*shape), tile=100)


@pytest.mark.parametrize(
    ("tile", "overlap", "said"),
    [
        (0, None, "tile is 0"), (31, None, "at least 32"), (640.0, None, "whole number"),
        (True, None, "whole number"), (None, 0.2, "there is no tile"), (640, 1, "0..0.9"),
        (640, -0.1, "0..0.9"), (640, float("nan"), "0..0.9"), (640, "half", "0..0.9"),
    ],
)  # fmt: skip
def test_bad_arguments(tile, overlap, said):
    with pytest.raises(OVDError, match=said):
        wanted_tiles(tile, overlap)
    assert wanted_tiles(None) is None and wanted_tiles(640) == Tiles(640, 0.2)


def test_without_supervision(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "supervision":
            raise ImportError("No module named 'supervision'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OVDError, match=r"pip install 'ovd_d2\[tiles\]'"):
        wanted_tiles(640)


@pytest.mark.slow
def test_tiles_find_what_the_whole_of_a_mosaic_hides(mini_root):
    """5 x 5 test scenes of mini in one picture, for the packaged model, which reads 192 pixels."""
    annotations = json.loads((mini_root / "annotations/test.json").read_text())
    place = {record["id"]: divmod(k, 5) for k, record in enumerate(annotations["images"][:25])}
    truth = []
    for row in annotations["annotations"]:
        if row["image_id"] in place:
            down, right = place[row["image_id"]]
            x, y, wide, high = row["bbox"]
            x, y = x + 192 * right, y + 192 * down
            truth.append((row["category_id"] - 1, (x, y, x + wide, y + high)))
    scenes = mosaic(mini_root, 5)
    predictor = OpenVocabPredictor.from_pretrained(
        "mini", vocabulary="dataset:mini_v1_test", device="cpu"
    )
    classes = torch.tensor([k for k, _ in truth])
    boxes = torch.tensor([box for _, box in truth])

    def recall(**options):
        found = predictor.predict(scenes, input_format="RGB", **options)
        same = classes[:, None] == found.pred_classes[None]
        overlap = box_iou(boxes, found.pred_boxes.tensor) * same
        return int((overlap.amax(dim=1) >= 0.5).sum()) if len(found) else 0

    assert len(truth) > 100
    assert recall() <= 2
    assert recall(tile=192) >= 50
