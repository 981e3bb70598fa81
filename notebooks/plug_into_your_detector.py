# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Plug into a detector of yours
#
# A Mask R-CNN of Detectron2's model zoo becomes open-vocabulary by a few lines of config. The detector, its trainer and its evaluator stay Detectron2's.

# %%
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import ovd_d2

cfg = get_cfg()
ovd_d2.add_ovd_config(cfg)  # before merge_from_file
cfg.merge_from_file(
    model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
)
cfg.MODEL.ROI_HEADS.NAME = "OpenVocabROIHeads"  # instead of StandardROIHeads
cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
cfg.MODEL.OPEN_VOCAB.VOCABULARY = "cat, red mug, traffic light"
cfg.MODEL.OPEN_VOCAB.TEXT_ENCODER = "minilm"  # or openai-clip:ViT-B/32, open_clip:..., hf:...
cfg.MODEL.OPEN_VOCAB.EMBED_DIM = 384  # 512 of ViT-B/32
cfg.MODEL.DEVICE = "cpu"
model = build_model(cfg)
model.roi_heads.box_predictor

# %% [markdown]
# It takes Detectron2's samples, and gives Detectron2's losses:

# %%
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

mask = torch.zeros(1, 224, 320, dtype=torch.bool)
mask[0, 40:160, 60:200] = True
targets = Instances(
    (224, 320),
    gt_boxes=Boxes([[60.0, 40.0, 200.0, 160.0]]),
    gt_classes=torch.tensor([1]),  # a red mug
    gt_masks=BitMasks(mask),
)
image = torch.randint(0, 256, (3, 224, 320), dtype=torch.uint8)
with EventStorage():
    losses = model([{"image": image, "height": 224, "width": 320, "instances": targets}])
{name: round(float(loss), 3) for name, loss in losses.items()}

# %% [markdown]
# Other classes are one call away, and nothing else of the model changes. (It is untrained here, so its boxes mean nothing.)

# %%
from ovd_d2.modeling import get_vocabulary, set_vocabulary

set_vocabulary(model, "cat, red mug, blue mug, street lamp")
model.eval()
with torch.no_grad():
    (result,) = model([{"image": image, "height": 224, "width": 320}])
print(get_vocabulary(model).names)
print(result["instances"].get_fields().keys())

# %% [markdown]
# To train, give the config to `train_net.py`, or mix `ovd_d2.OpenVocabTraining` into a `DefaultTrainer` of yours:

# %%
from detectron2.engine import DefaultTrainer


class Trainer(ovd_d2.OpenVocabTraining, DefaultTrainer):
    """Detectron2's, with all that open-vocabulary data and evaluation need."""
