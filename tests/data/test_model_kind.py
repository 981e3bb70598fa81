"""Which configs are of open-vocabulary models, and heads that nothing would use."""

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from torch import nn

from ovd_d2 import add_ovd_config
from ovd_d2.data.mappers.class_alignment import class_map, trained_names
from ovd_d2.data.mappers.detection import OpenVocabDatasetMapper
from ovd_d2.data.model_kind import check_heads_are_used, has_open_vocabulary
from ovd_d2.errors import OVDError

DATASET = "model_kind_test"


class OwnRCNN(GeneralizedRCNN):
    """Of a user."""


class OwnArchitecture(nn.Module):
    """Of a user, built from parts that nobody knows."""


class OwnRetinaNet(RetinaNet):
    """Of a user."""


@pytest.fixture(autouse=True)
def registered():
    MetadataCatalog.get(DATASET).thing_classes = ["cat", "dog"]
    for arch in (OwnRCNN, OwnArchitecture, OwnRetinaNet):
        META_ARCH_REGISTRY.register(arch)
    yield
    MetadataCatalog.remove(DATASET)
    for arch in (OwnRCNN, OwnArchitecture, OwnRetinaNet):
        del META_ARCH_REGISTRY._obj_map[arch.__name__]


def config(arch, head="OpenVocabROIHeads"):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = arch
    cfg.MODEL.ROI_HEADS.NAME = head
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = "dog,cat"
    cfg.DATASETS.TRAIN = (DATASET,)
    return cfg


@pytest.mark.parametrize("arch", ["GeneralizedRCNN", "PanopticFPN", "OwnRCNN", "OwnArchitecture"])
@pytest.mark.parametrize("head", ["OpenVocabROIHeads", "OpenVocabRes5ROIHeads"])
def test_models_with_open_heads_get_the_vocabulary(arch, head):
    cfg = config(arch, head)
    check_heads_are_used(cfg)
    assert has_open_vocabulary(cfg)
    assert class_map(cfg) == [1, 0]
    assert trained_names(cfg) == ("dog", "cat")


def test_a_model_may_have_a_vocabulary_of_its_own():
    assert has_open_vocabulary(config("CLIP", "StandardROIHeads"))


@pytest.mark.parametrize(
    "arch", ["RetinaNet", "ProposalNetwork", "SemanticSegmentor", "OwnRetinaNet"]
)
def test_open_heads_that_nothing_uses_are_refused(arch):
    from ovd_d2.engine.setup import check_config

    cfg = config(arch)
    assert class_map(cfg) is None and trained_names(cfg) is None  # its data set's own classes
    for read in (check_config, lambda cfg: OpenVocabDatasetMapper(cfg, True)):
        with pytest.raises(OVDError, match=f"MODEL.META_ARCHITECTURE {arch} has no ROI heads") as e:
            read(cfg)
        assert "OpenVocabROIHeads" in str(e.value) and "\n" not in str(e.value)
    OpenVocabDatasetMapper(cfg, False)  # proposals of a detector's RPN are had this way


@pytest.mark.parametrize(
    "arch, head",
    [("RetinaNet", "Res5ROIHeads"), ("GeneralizedRCNN", "StandardROIHeads"),
     ("GeneralizedRCNN", "Nonsense"), ("Nonsense", "StandardROIHeads")],
)  # fmt: skip
def test_closed_models_keep_their_data_sets_classes(arch, head):
    cfg = config(arch, head)
    check_heads_are_used(cfg)
    assert not has_open_vocabulary(cfg)
    assert class_map(cfg) is None
    mapper = OpenVocabDatasetMapper(cfg, True)
    assert mapper.class_map is None and mapper.numbering is None
