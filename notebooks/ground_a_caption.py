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
# # Ground a caption
#
# GLIP reads a caption along with the image and says which box belongs to which words. A small one is trained here on the mini benchmark, a quarter
# of an hour on two CPU cores; a released one is `ovd models download glip-t` away. Run the cells in the folder of a clone.

# %% language="bash"
# ovd mini build
# python train_net.py --config-file configs/mini/glip.yaml

# %%
from PIL import Image

from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.visualization.grounding import draw_grounding

SCENE = "datasets/mini-v1/images/test/030298.jpg"
predictor = OpenVocabPredictor(
    "output/mini/glip/config.yaml", "output/mini/glip/model_final.pth", score_threshold=0.0
)
found = predictor.ground(SCENE, "a football beside a flower").best(1)
Image.fromarray(draw_grounding(found.image, found.caption, found.instances))

# %% [markdown]
# The phrases are the nouns of the caption, in the colours of their boxes. Phrases of your own are places in the text:

# %%
caption = "a football beside a flower"
begin = caption.index("flower")
found = predictor.ground(SCENE, caption, [(begin, begin + len("flower"))]).best(1)
for k, score in zip(found.instances.pred_classes.tolist(), found.instances.scores.tolist()):
    print(found.caption.phrases()[k], round(score, 2))

# %% [markdown]
# A list of names is a caption too, so the same model finds any vocabulary:

# %%
from ovd_d2.visualization.detections import draw_detections

predictor.set_vocabulary("football, flower, helmet, seafood")
(result,) = predictor.stream(SCENE)
Image.fromarray(draw_detections(result.image, result.instances[:4], predictor.vocabulary.names))
