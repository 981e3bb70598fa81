"""Mask R-CNN R50-FPN of Detectron2's model zoo with an open vocabulary, as a LazyConfig.

Only the nodes of the ROI heads differ from the zoo's. Names and encoder stand in the nodes as plain
text: nothing is read or embedded before ``instantiate(cfg.model)``. Detectron2's
tools/lazyconfig_train_net.py trains it as it is.
"""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from ovd_d2.language import TextEmbeddingBank
from ovd_d2.modeling import OpenVocabBoxPredictor, OpenVocabROIHeads
from ovd_d2.modeling.classifiers import EmbeddingClassifier

_zoo = get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, dataloader, train = _zoo.model, _zoo.dataloader, _zoo.train
optimizer, lr_multiplier = _zoo.optimizer, _zoo.lr_multiplier

heads = model.roi_heads
heads._target_ = OpenVocabROIHeads
heads.vocabulary = "dataset:coco_2017_train"  # or a list of names, or "cat, red mug"
heads.class_embedder = L(TextEmbeddingBank)(  # or a .npy or .safetensors file
    encoder_spec="openai-clip:ViT-B/32", prompts="vild63"
)
heads.box_predictor._target_ = OpenVocabBoxPredictor
heads.box_predictor.classifier = L(EmbeddingClassifier)(
    in_features=1024,  # of the box head's last layer
    embed_dim=512,  # of the encoder
)
heads.mask_head.num_classes = 1  # masks that no class owns

train.output_dir = "output/lazy/mask_rcnn_R_50_FPN_open_vocab"
