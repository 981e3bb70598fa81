"""A GroupViT of a few thousand weights, with those of the golden file, that reads token ids."""

import torch
from groupvit_names import below, golden

from ovd_d2.checkpoint.groupvit import convert_groupvit_names
from ovd_d2.encoders.image_text_model import ImagePreprocessing
from ovd_d2.encoders.text_towers import OpenAITextTower
from ovd_d2.modeling import GroupViT
from ovd_d2.modeling.backbone import GroupViTEncoder
from ovd_d2.modeling.group_segmentation import GroupSegmentation
from ovd_d2.modeling.meta_arch.groupvit import projector
from ovd_d2.modeling.projected_text import ProjectedText

ENCODER = {
    "image_size": 32, "patch": 8, "width": 24, "heads": 3, "depths": (2, 1, 1),
    "group_tokens": (6, 3, 0), "output_groups": (6, 3), "drop_path": 0.0,
}  # fmt: skip
END, CONTEXT = 59, 12


class NumberedWords(OpenAITextTower):
    """CLIP's transformer over texts that are numbers, such as "58 7 3 59 0 0"."""

    def __init__(self):
        super().__init__(dim=None, width=64, heads=1, layers=2, context=CONTEXT)
        self.token_embedding = torch.nn.Embedding(END + 1, 64)

    def forward(self, captions):
        ids = [[int(word) for word in caption.split()] for caption in captions]
        return self._encoder._encode_tokens(torch.tensor(ids))


def words(ids):
    """Token ids (..., L) as texts, in the order of the rows."""
    return [" ".join(map(str, row)) for row in ids.flatten(0, -2).tolist()]


def small_groupvit(weights=True, norm=torch.nn.SyncBatchNorm, tower=None, **keywords):
    """In eval mode."""
    torch.manual_seed(0)
    tower = NumberedWords() if tower is None else tower
    segmentation = keywords.pop("segmentation", GroupSegmentation(window=64, stride=32))
    model = GroupViT(
        image_encoder=GroupViTEncoder(**ENCODER),
        image_projector=projector(24, hidden=40, dim=16, norm=norm),
        text=ProjectedText(tower, projector(tower.dim, hidden=40, dim=16, norm=norm)),
        preprocessing=ImagePreprocessing(32, interpolation="bilinear"),
        segmentation=segmentation,
        **keywords,
    )
    if weights:
        theirs = below(golden("groupvit_tiny"), "w.")
        found = convert_groupvit_names(theirs, "ours")
        missing = model.load_state_dict(found.weights, strict=bool(model.multi_label_loss))
        assert not missing.missing_keys
    return model.eval()
