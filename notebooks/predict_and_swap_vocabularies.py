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
# # Predict, and swap the vocabulary
#
# The small model that ships finds drawings, whatever they are called. Nothing is downloaded but the artwork from which the mini benchmark
# is drawn. Run the cells in the folder of a clone; they take a minute on a CPU.

# %% language="bash"
# ovd mini build

# %%
from PIL import Image

from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.visualization.detections import draw_detections

SCENE = "datasets/mini-v1/images/test/030298.jpg"
predictor = OpenVocabPredictor.from_pretrained("mini", vocabulary="ball, sun flower, army helmet")


def picture():
    """The scene with what the predictor finds in it now."""
    (found,) = predictor.stream(SCENE)
    return Image.fromarray(
        draw_detections(found.image, found.instances, predictor.vocabulary.names)
    )


picture()

# %% [markdown]
# The classes are words. Other words need no training and no other file:

# %%
predictor.set_vocabulary("garden snail, penguin")
picture()

# %% [markdown]
# `predict` returns Detectron2's `Instances`, best first. The threshold that counts is the one chosen for the model on val; a lower one finds more, and more that is wrong.

# %%
careless = OpenVocabPredictor.from_pretrained(
    "mini", vocabulary="ball, sun flower, army helmet, tempura", score_threshold=0.02
)
instances = careless.predict(SCENE)
for k, score in zip(instances.pred_classes.tolist(), instances.scores.tolist()):
    print(f"{careless.vocabulary.names[k]:10} {score:.2f}")

# %% [markdown]
# All 160 names of the benchmark compete here. Forty of them had no box in training (the novel ones), only captions that name them.

# %%
predictor.set_vocabulary("dataset:mini_v1_test")
print(len(predictor.vocabulary.names), "names,", sum(predictor.vocabulary.is_novel), "novel")
picture()
