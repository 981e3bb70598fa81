"""Which mapper reads a data set."""

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ovd_d2.data.mappers import image_text_pairs as _image_text_mapper  # noqa: F401 (registers)
from ovd_d2.data.mappers.detection import build_mapper
from ovd_d2.data.mappers.grounding import GroundingMapper
from ovd_d2.data.mappers.segmentation import SemanticSegmentationMapper
from ovd_d2.data.named_datasets import asks_for_phrases
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.language.dataset_classes import class_names, is_semantic

_DEFAULT = "OpenVocabDatasetMapper"
_OF_CAPTIONS = ("ImageTextPairMapper", "GroundingMapper")


def mapper_for(cfg: CfgNode, dataset: str, *, is_train: bool) -> Callable:
    """The mapper of a registered data set: as INPUT.MAPPER says, but for semantic ones
    SemanticSegmentationMapper where that is the default, or in tests a mapper of captions; and
    GroundingMapper for tests on phrases of captions."""
    if not is_train and asks_for_phrases(dataset):
        return GroundingMapper(cfg, is_train=False)
    replaced = (_DEFAULT,) if is_train else (_DEFAULT, *_OF_CAPTIONS)
    if is_semantic(MetadataCatalog.get(dataset)) and cfg.INPUT.MAPPER in replaced:
        return SemanticSegmentationMapper(cfg, is_train=is_train)
    return build_mapper(cfg, is_train=is_train)


def check_numbers_of_label_maps(cfg: CfgNode, sources: Sequence[tuple[str, CfgNode]]) -> None:
    """Raises OVDError if a source of DATASETS.SOURCES has label maps that number their classes
    otherwise than the model takes them to: as DATASETS.TRAIN outside, or else its vocabulary.

    Args:
        cfg: the whole config.
        sources: name and config of each.
    """
    outside = cfg.DATASETS.TRAIN
    for name, one in sources:
        metadata = MetadataCatalog.get(one.DATASETS.TRAIN[0]) if one.DATASETS.TRAIN else {}
        if not is_semantic(metadata) or metadata.evaluator_type.startswith("few_shot"):
            continue
        spec = f"dataset:{outside[0]}" if outside else cfg.MODEL.OPEN_VOCAB.VOCABULARY
        if spec and class_names(metadata) != list(Vocabulary.load(spec).names):
            raise OVDError(
                f"Source {name!r} of DATASETS.SOURCES has label maps of {one.DATASETS.TRAIN[0]}, "
                f"whose classes are not those of {spec}: sources of label maps must have the "
                "classes of DATASETS.TRAIN outside of DATASETS.SOURCES, in their order."
            )
