"""Zero-shot detectors of transformers as models of Detectron2; tiny ones with random weights."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from tiny_detectors import SAVE, save_detr

from ovd_d2 import add_ovd_config
from ovd_d2.errors import OVDError
from ovd_d2.modeling import HuggingFaceDetector, OpenVocabularyModel

pytest.importorskip("transformers")
NAMES = ["cat", "red dog", "zebra crossing", "traffic light", "mug"]
ALL = {"score_threshold": 0.0, "max_detections": -1, "candidates_per_prompt": 5000}
FUSED = ("grounding-dino", "mm-grounding-dino", "omdet-turbo")


@pytest.fixture(scope="module", params=list(SAVE))
def kind_and_folder(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    SAVE[request.param](folder)
    return request.param, str(folder)


def detector(folder, names=NAMES, **options):
    options = {**ALL, "nms_threshold": 1.0, **options}
    return HuggingFaceDetector(model=folder, vocabulary=list(names), **options).eval()


def picture(seed=0, height=48, width=80):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(3, height, width, generator=generator) * 255).byte()


def detect(model, *images):
    return [output["instances"] for output in model([{"image": image} for image in images])]


def rows(instances, classes=None):
    """(R, 6): boxes, scores, classes."""
    classes = instances.pred_classes if classes is None else classes
    return torch.cat(
        [instances.pred_boxes.tensor, instances.scores[:, None], classes[:, None].float()], dim=1
    )


def assert_same(found, wanted):
    """The same rows, in whatever order equal scores come."""
    assert found.shape == wanted.shape and len(found) > 4
    tolerance = torch.tensor([1e-2] * 4 + [1e-5, 1e-6])  # pixels, scores, classes
    near = ((found[:, None] - wanted[None]).abs() <= tolerance).all(dim=2)
    assert near.any(dim=0).all() and near.any(dim=1).all()


class Published:
    """What transformers itself makes of an image and names."""

    def __init__(self, kind, folder):
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.kind = kind
        self.model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, image, names, height, width):
        """(R, 6) with the boxes clipped as Detectron2 does, and empty ones left out."""
        if self.kind.startswith("owl"):
            texts = [[f"a photo of a {name}" for name in names]]
        else:
            texts = [list(names)]
        inputs = self.processor(images=image, text=texts, return_tensors="pt")
        outputs = self.model(**inputs)
        sizes = [(height, width)]
        if self.kind == "omdet-turbo":
            (found,) = self.processor.post_process_grounded_object_detection(
                outputs, threshold=0.0, nms_threshold=0.5, target_sizes=sizes,
                max_num_det=outputs.decoder_class_logits[0].numel(),
            )  # fmt: skip
            return self._rows(found, found["labels"], height, width)
        logits, parts = outputs.logits.clone(), []
        for k in range(len(names)):
            if self.kind.startswith("owl"):
                outputs.logits = logits[..., k : k + 1]
            else:
                outputs.logits = self._only(logits, inputs["input_ids"][0], k)
            (found,) = self.processor.post_process_grounded_object_detection(
                outputs, threshold=0.0, target_sizes=sizes
            )
            parts.append(self._rows(found, torch.full_like(found["scores"], k), height, width))
        return torch.cat(parts)

    def _only(self, logits, ids, k):
        """Logits of the tokens of name k; those of the others as of padding."""
        phrase = (ids == 1012).cumsum(0)
        others = (phrase != k) | torch.isin(ids, torch.tensor([101, 102, 1012]))
        return logits.masked_fill(
            torch.nn.functional.pad(others, (0, logits.shape[-1] - len(ids)), value=True),
            float("-inf"),
        )

    def _rows(self, found, classes, height, width):
        boxes = Boxes(found["boxes"])
        boxes.clip((height, width))
        kept = boxes.nonempty()
        columns = [boxes.tensor, found["scores"][:, None], classes[:, None].float()]
        return torch.cat(columns, dim=1)[kept]


def test_equals_the_post_processing_of_transformers(kind_and_folder):
    kind, folder = kind_and_folder
    image = picture()
    published = Published(kind, folder)
    for names in (NAMES, ["zebra crossing"]):
        model = detector(folder, names, nms_threshold=0.0)  # 0: the family's own
        (output,) = model([{"image": image, "height": 96, "width": 160}])
        wanted = published(image, names, 96, 160)
        found = output["instances"]
        assert found.image_size == (96, 160) and (found.scores.diff() <= 0).all()
        if len(names) > 1:
            assert found.pred_classes.unique().numel() > 1 and found.scores.std() > 1e-4
            assert_same(rows(found), wanted)
        else:
            torch.testing.assert_close(
                found.scores, wanted[:, 4].sort(descending=True).values, atol=1e-5, rtol=0
            )


def test_groups_of_prompts_and_images_change_nothing(kind_and_folder):
    _, folder = kind_and_folder
    images = picture(0), picture(1), picture(2, 64, 48)
    together = detect(detector(folder, names_per_prompt=2, pairs_at_once=64), *images)
    apart = detector(folder, names_per_prompt=2, pairs_at_once=1)
    for image, wanted in zip(images, together):
        assert_same(rows(detect(apart, image)[0]), rows(wanted))
    assert not torch.equal(together[0].scores[:4], together[1].scores[:4])


def test_prompts_are_read_by_themselves(kind_and_folder):
    """What is found with two names per prompt is what is found with each two names alone; where
    names do not see each other, with all of them at once too."""
    kind, folder = kind_and_folder
    image = picture()
    model = detector(folder, names_per_prompt=2)
    (found,) = detect(model, image)
    parts = []
    for first in range(0, len(NAMES), 2):
        model.set_vocabulary(NAMES[first : first + 2])
        (part,) = detect(model, image)
        parts.append(rows(part, part.pred_classes + first))
    assert_same(rows(found), torch.cat(parts))
    (at_once,) = detect(detector(folder), image)
    if kind in FUSED:
        assert not torch.allclose(at_once.scores[:5], found.scores[:5], atol=1e-6)
    else:
        assert_same(rows(at_once), rows(found))


def test_words_are_read_once_and_images_once_for_all_prompts(kind_and_folder):
    kind, folder = kind_and_folder
    model = detector(folder, names_per_prompt=1, pairs_at_once=2)
    inner = model.family.model
    if kind == "omdet-turbo":
        parts = inner.vision_backbone, inner.language_backbone
    elif kind.startswith("owl"):
        dual = getattr(inner, inner.base_model_prefix)
        parts = dual.vision_model, dual.text_model
    else:
        parts = inner.model.backbone, inner.model.text_backbone
    calls = dict.fromkeys(parts, 0)

    def count(part, *_):
        calls[part] += 1

    for part in parts:
        part.register_forward_hook(count)
    detect(model, picture(0))
    words = calls[parts[1]]
    assert calls[parts[0]] == 1 and words > 1
    detect(model, picture(1))
    detect(model, picture(2))
    assert calls == {parts[0]: 3, parts[1]: words}
    model.set_vocabulary("cat")
    detect(model, picture(0))
    assert calls[parts[1]] > words
    assert set(dict(model.named_parameters())) == set(
        dict(detector(folder).named_parameters())
    )  # every part is back in its place


def test_vocabularies_of_any_size_and_back(kind_and_folder):
    kind, folder = kind_and_folder
    image = picture()
    model = detector(folder)
    assert isinstance(model, OpenVocabularyModel)
    (before,) = detect(model, image)
    letters = [f"{a}{b} {c}" for a in "abcdef" for b in "ghijklmnop" for c in "qrstu"]
    model.set_vocabulary(letters)
    (many,) = detect(model, image)
    assert len(letters) == 300 and many.pred_classes.max() == 299
    assert many.pred_classes.unique().numel() == 300
    if kind in FUSED:
        assert len(model._prompts) > 3
    model.set_vocabulary(["mug", "Cat", "cat", "bow_(weapon)"])
    (twice,) = detect(model, image)
    same = [twice.scores[twice.pred_classes == k].sort().values for k in (1, 2)]
    assert len(same[0]) > 2
    torch.testing.assert_close(*same, atol=1e-5, rtol=0)
    for bad in ("x " * 300, "..."):
        with pytest.raises(OVDError, match="class name"):
            model.set_vocabulary(["cat", bad])
        assert model.vocabulary.names[0] == "mug"
    model.set_vocabulary(NAMES)
    assert_same(rows(detect(model, image)[0]), rows(before))
    model.set_vocabulary(None)
    with pytest.raises(OVDError, match="call set_vocabulary first"):
        detect(model, image)


def test_other_weights_are_noticed(kind_and_folder):
    _, folder = kind_and_folder
    model, image = detector(folder), picture()
    (before,) = detect(model, image)
    state = {k: v.clone() for k, v in copy.deepcopy(model).state_dict().items()}
    for name, value in state.items():
        if "text" in name and value.is_floating_point() and value.dim() == 2:
            value.normal_()
    model.load_state_dict(state)
    after = detect(model, image)[0].scores[:5]
    assert (after - before.scores[:5]).abs().max() > 1e-5


def test_thresholds_and_the_most_detections(kind_and_folder):
    _, folder = kind_and_folder
    image = picture()
    (every,) = detect(detector(folder), image)
    middle = float(every.scores[len(every) // 2])
    (some,) = detect(detector(folder, score_threshold=middle), image)
    assert 0 < len(some) < len(every) and some.scores.min() > middle
    (three,) = detect(detector(folder, max_detections=3), image)
    assert len(three) == 3
    torch.testing.assert_close(three.scores, every.scores[:3])


def config(folder, *options):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "HuggingFaceDetector", "cpu"
    cfg.MODEL.HUGGINGFACE.MODEL, cfg.MODEL.OPEN_VOCAB.VOCABULARY = folder, "cat, red dog"
    cfg.MODEL.HUGGINGFACE.SCORE_THRESH_TEST = 0.0
    cfg.INPUT.FORMAT = "RGB"
    cfg.merge_from_list(list(options))
    return cfg


def test_from_a_config(kind_and_folder):
    _, folder = kind_and_folder
    image = picture()
    model = build_model(config(folder)).eval()
    (found,) = detect(model, image)
    wanted = detector(folder, ["cat", "red dog"], nms_threshold=0.0, max_detections=100)
    assert_same(rows(found), rows(detect(wanted, image)[0]))
    of_bgr = build_model(config(folder, "INPUT.FORMAT", "BGR")).eval()
    assert_same(rows(detect(of_bgr, image.flip(0))[0]), rows(found))
    later = build_model(config(folder, "MODEL.OPEN_VOCAB.VOCABULARY", "later")).eval()
    with pytest.raises(OVDError, match="call set_vocabulary first"):
        detect(later, image)


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(OVDError, match="MODEL.HUGGINGFACE.MODEL is empty: name a zero-shot"):
        build_model(config(""))
    with pytest.raises(
        OVDError, match=r"MODEL.HUGGINGFACE.MODEL no/such cannot be opened.*neither"
    ):
        build_model(config("no/such"))
    save_detr(tmp_path)
    with pytest.raises(OVDError, match=r"its model_type is detr, zero-shot detectors are ground"):
        build_model(config(str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OVDError, match="its model_type is unknown"):
        build_model(config(str(tmp_path)))


def test_a_model_without_some_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    SAVE["owlvit"](tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["box_head.dense0.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(OVDError, match=r"lack box_head.dense0.weight \(1 missing\)"):
        detector(str(tmp_path))
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    (tmp_path / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(OVDError, match="cannot be used .* give a folder with model and processor"):
        detector(str(tmp_path))


def test_prompts_of_a_family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    SAVE["grounding-dino"](folder)
    with pytest.raises(
        OVDError, match=r"MODEL.HUGGINGFACE.PROMPT is 'a \{\}', but a grounding-dino"
    ):
        detector(str(folder), prompt="a {}")
    model = detector(str(folder), ["St. Bernard?", "bow_(weapon)"])
    assert model._prompts[0].spans.caption == "st bernard. bow."
    mean = detector(str(folder), ["red dog"], class_score="mean")
    best = detector(str(folder), ["red dog"])
    scores = [detect(m, picture())[0].scores for m in (mean, best)]
    assert (scores[0].max() <= scores[1].max()) and not torch.allclose(*scores)
