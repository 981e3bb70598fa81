"""Models of label maps: scores out of the predictor, pictures, numbers and masks out of files."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as coco_mask
from random_models import make_pixels

from ovd_d2.config_file import load_config
from ovd_d2.data.datasets.semantic import read_label_map
from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference.export import export_model
from ovd_d2.inference.label_map_files import coco_segments, write_labels
from ovd_d2.inference.predict_files import predict_files, titles_of, write_side_by_side
from ovd_d2.inference.score_threshold import match_data_set


@pytest.fixture(scope="module")
def predictor(label_map_model):
    return OpenVocabPredictor.from_pretrained(label_map_model, device="cpu")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    files = []
    for seed, shape in enumerate(((50, 70), (90, 60))):
        files.append(folder / f"{seed}.png")
        Image.fromarray(make_pixels(*shape, seed)).save(files[-1])
    return files


def test_the_predictor_gives_score_maps(predictor, images):
    found = predictor.predict(images[0])
    assert found.shape == (3, 50, 70)
    assert found.dtype == torch.float32
    assert (predictor(images[0])["sem_seg"] == found).all()
    both = predictor.predict(images)
    assert [scores.shape for scores in both] == [(3, 50, 70), (3, 90, 60)]
    assert (both[0] == found).all()  # whatever it is batched with


def test_a_model_of_squares_sees_squares(label_map_config, label_map_checkpoint, images, tmp_path):
    export_model(label_map_checkpoint, label_map_config, tmp_path / "m", ["INPUT.SQUARE", "24"])
    squares = OpenVocabPredictor.from_pretrained(tmp_path / "m", device="cpu")
    seen = []
    squares.model.register_forward_pre_hook(lambda model, args: seen.extend(args[0]))
    found = squares.predict(images[0])
    pixels = T.Resize((24, 24)).get_transform(make_pixels(50, 70, 0))
    expected = pixels.apply_image(make_pixels(50, 70, 0)).transpose(2, 0, 1)
    assert (seen[0]["image"].numpy() == expected).all() and found.shape == (3, 50, 70)


def test_other_words_are_other_maps(label_map_model, images):
    predictor = OpenVocabPredictor.from_pretrained(label_map_model, device="cpu")
    before = predictor.predict(images[0])
    predictor.set_vocabulary(["sea", "red mug", "background", "tree"])
    after = predictor.predict(images[0])
    assert len(after) == 4
    torch.testing.assert_close(after[:3], before[[2, 1, 0]])
    with pytest.raises(OVDError, match="gives no embeddings of regions"):
        predictor.set_attributes("red")
    with pytest.raises(OVDError, match="these have no score threshold"):
        match_data_set(predictor, "mini_v1_val", 1)


def test_pictures_numbers_and_masks(predictor, images, tmp_path):
    out = tmp_path / "out"
    report = predict_files(predictor, images, pictures=out, json_file=out / "x.json")
    assert {path.name for path in out.iterdir()} == {
        "0.jpg", "0_labels.png", "1.jpg", "1_labels.png", "x.json"
    }  # fmt: skip
    content = json.loads((out / "x.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["background", "red mug", "sea"]
    ids = [a["id"] for a in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for number, file in enumerate(images):
        labels = predictor.predict(file).argmax(dim=0).numpy()
        written = out / f"{number}_labels.png"
        assert (read_label_map({"sem_seg_file_name": written}, 3) == labels).all()
        for k in np.unique(labels):
            (row,) = [
                a
                for a in content["annotations"]
                if (a["image_id"], a["category_id"]) == (number + 1, k + 1)
            ]
            assert (coco_mask.decode(row["segmentation"]) == (labels == k)).all()
            assert row["area"] == (labels == k).sum()
            assert "score" not in row
        shares = report.found[number].shares
        assert sum(shares.values()) == pytest.approx(1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        with Image.open(out / f"{number}.jpg") as picture:
            assert picture.width == 8 * labels.shape[1]
            assert picture.height > 8 * labels.shape[0]  # a legend


def test_colours_and_16_bits(tmp_path):
    labels = np.arange(300).reshape(15, 20)
    write_labels(tmp_path / "x.png", labels, [f"c{i}" for i in range(300)])
    assert (read_label_map({"sem_seg_file_name": tmp_path / "x.png"}, 300, -1) == labels).all()
    write_labels(tmp_path / "x.png", labels % 3, ["a", "b", "background"])
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "P"
        colours = np.asarray(picture.convert("RGB"))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 3
    assert (colours[labels % 3 == 2] == 150).all()  # background is grey


def test_a_box_of_a_mask():
    labels = np.zeros((6, 8), int)
    labels[2:4, 3:7] = 5
    row = coco_segments(labels, 9, first_id=4)[1]
    assert (row["id"], row["image_id"], row["category_id"]) == (5, 9, 6)
    assert row["bbox"] == [3, 2, 4, 2]


def test_numbers_never_go_over_an_input(predictor, tmp_path):
    for name in ("a.png", "a_labels.png"):
        Image.fromarray(make_pixels(20, 30)).save(tmp_path / name)
    files = [tmp_path / "a.png", tmp_path / "a_labels.png"]
    before = files[1].read_bytes()
    with pytest.raises(OVDError, match="a_labels.png .*it is an input"):
        predict_files(predictor, files, pictures=tmp_path, json_file=None)
    assert files[1].read_bytes() == before


def test_side_by_side_with_a_detector(predictor, exported, images, tmp_path):
    detector = OpenVocabPredictor.from_pretrained(exported, device="cpu", score_threshold=0)
    assert isinstance(detector.predict(images[0]), Instances)
    broken = tmp_path / "in/broken.png"
    broken.write_bytes(b"?")
    files, reports = [broken, *images], {}
    for title, one in (("boxes", detector), ("maps", predictor)):
        reports[title] = predict_files(
            one, files, pictures=tmp_path / title, json_file=tmp_path / title / "x.json"
        )
    assert write_side_by_side(files, tmp_path / "both", reports) == 2
    with Image.open(tmp_path / "both/0.jpg") as picture:
        assert picture.width > 1600
    assert not (tmp_path / "both/broken.jpg").exists()


def test_titles():
    assert titles_of(["a/mini", "mini", "b/mini/"]) == {
        "mini": "a/mini", "mini_2": "mini", "mini_3": "b/mini/"
    }  # fmt: skip


SMALL = {
    "LSeg": [
        "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0",
        "MODEL.TIMM.WEIGHTS", "", "MODEL.TIMM.OUT_STRIDES", "[4, 8, 16, 32]",
        "MODEL.LSEG.WIDTH", "16", "MODEL.OPEN_VOCAB.TEXT_ENCODER", "minilm",
        "MODEL.OPEN_VOCAB.EMBED_DIM", "384",
    ],
    "GroupViT": [
        "MODEL.GROUPVIT.IMAGE_SIZE", "32", "MODEL.GROUPVIT.PATCH", "8",
        "MODEL.GROUPVIT.WIDTH", "24", "MODEL.GROUPVIT.HEADS", "3",
        "MODEL.GROUPVIT.DEPTHS", "[1, 1, 1]",
        "MODEL.GROUPVIT.GROUP_TOKENS", "[6, 3, 0]", "MODEL.GROUPVIT.OUTPUT_GROUPS", "[6, 3]",
        "MODEL.GROUPVIT.TEXT.WIDTH", "16", "MODEL.GROUPVIT.TEXT.HEADS", "2",
        "MODEL.GROUPVIT.TEXT.LAYERS", "1", "MODEL.GROUPVIT.EMBED_DIM", "16",
        "MODEL.GROUPVIT.PROJECTOR_HIDDEN", "32", "MODEL.GROUPVIT.WINDOW_TEST", "32",
        "MODEL.GROUPVIT.STRIDE_TEST", "16", "MODEL.OPEN_VOCAB.PROMPTS", "name",
    ],
}  # fmt: skip


@pytest.mark.parametrize("architecture", SMALL)
def test_models_of_the_papers_are_exported_and_draw_any_words(architecture, images, tmp_path):
    cfg = load_config("", [
        "MODEL.META_ARCHITECTURE", architecture, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", "40", "INPUT.MAX_SIZE_TEST", "90",
        "DATASETS.TRAIN", "()", "DATASETS.TEST", "()", *SMALL[architecture],
        "MODEL.OPEN_VOCAB.VOCABULARY", "background, red mug, sea",
    ])  # fmt: skip
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    export_model(tmp_path / "model.pth", tmp_path / "config.yaml", tmp_path / "model")
    predictor = OpenVocabPredictor.from_pretrained(tmp_path / "model", device="cpu")
    found = predictor.predict(images[0])
    assert found.shape == (3, 50, 70) and found.dtype == torch.float32
    predictor.set_vocabulary("sea, red mug, background")
    torch.testing.assert_close(predictor.predict(images[0]), found[[2, 1, 0]])
    predictor.set_vocabulary("sea, red mug, tree, zebra crossing")
    assert predictor.predict(images[0]).shape == (4, 50, 70)
    predict_files(predictor, images, pictures=tmp_path / "out", json_file=tmp_path / "out/x.json")
    written = np.asarray(Image.open(tmp_path / "out/0_labels.png"))
    assert (written == predictor.predict(images[0]).argmax(dim=0).numpy()).all()
