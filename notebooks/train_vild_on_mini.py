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
# # Train ViLD on the mini benchmark
#
# ViLD learns boxes of base names from annotations, and what things look like from a teacher that has seen images with captions. So it finds
# novel names, of which it has seen no box. Three steps, ten minutes on two CPU cores. Run the cells in the folder of a clone.

# %% language="bash"
# ovd mini build

# %% [markdown]
# ## The data
#
# Scenes with boxes of 120 base names to train on; the test scenes are of another art style and have 40 novel names too.

# %%
import json
from pathlib import Path

from PIL import Image

ROOT = Path("datasets/mini-v1")


def scenes(split, count=3):
    """The first images of a split, side by side."""
    images = json.loads((ROOT / f"annotations/{split}.json").read_text())["images"][:count]
    pictures = [Image.open(ROOT / "images" / image["file_name"]) for image in images]
    row = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    for i, picture in enumerate(pictures):
        row.paste(picture, (sum(p.width for p in pictures[:i]), 0))
    return row


scenes("train_base")

# %%
scenes("test")

# %% [markdown]
# ## 1. A detector that compares regions with words
#
# ViLD-text: the classifier's weights are embeddings of the names. It will find base names, and next to no novel ones. Its proposals are what the
# teacher looks at next.

# %% language="bash"
# python train_net.py --config-file configs/mini/vild_text.yaml

# %% [markdown]
# ## 2. What the teacher sees
#
# The best 60 proposals of every training image are cut out and embedded, once. Any image-text model can be the teacher; here it is the small
# CLIP that ships.

# %% language="bash"
# ovd regions build --dataset mini_v1_train_base --encoder mini-teacher --topk 60 \
#     --proposals rpn:output/mini/vild_text/model_final.pth --out datasets/mini-v1-regions/rpn

# %% [markdown]
# ## 3. A student of both
#
# ViLD-ensemble: one head learns from boxes, a second one from the teacher's embeddings of those regions.

# %% language="bash"
# python train_net.py --config-file configs/mini/vild_ensemble.yaml

# %% [markdown]
# ## What it brought

# %%
from ovd_d2.benchmarks.recipes.run_folder import read_metrics
from ovd_d2.visualization.training_plots import plot_loss_curves

RUNS = {"ViLD-text": "output/mini/vild_text", "ViLD-ensemble": "output/mini/vild_ensemble"}
plot_loss_curves({name: read_metrics(folder) for name, folder in RUNS.items()}, "losses.png")
Image.open("losses.png")

# %%
for name, folder in RUNS.items():
    results = json.loads(Path(folder, "results.json").read_text())["results"]
    metrics = results["mini_v1_test"]["bbox"]
    print(name, {key: metrics[key] for key in ("AP", "AP_base", "AP_novel")})

# %% [markdown]
# The ten best boxes in a test scene, all 160 names competing:

# %%
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.visualization.detections import draw_detections

predictor = OpenVocabPredictor(
    "output/mini/vild_ensemble/config.yaml",
    "output/mini/vild_ensemble/model_final.pth",
    vocabulary="dataset:mini_v1_test",
    topk=10,
)
(found,) = predictor.stream("datasets/mini-v1/images/test/030298.jpg")
Image.fromarray(draw_detections(found.image, found.instances, predictor.vocabulary.names))
