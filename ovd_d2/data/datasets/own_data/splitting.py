"""Validation images and few-shot sets, drawn by a seed."""

import random

from ovd_d2.data.datasets.odinw import few_shot_images

from .checking import Checked


def split_off(data: Checked, *, share: float = 0.2, seed: int = 0) -> tuple[Checked, Checked]:
    """Training and validation images, by image, so that every class with two images has one in
    each.

    The rarest class draws its validation image first; then images are drawn until the share is
    reached. An image that is the last one of a class in training stays there.

    Args:
        data: to split.
        share: of the images that validate, about; at least one image.
        seed: of the draw.

    Returns:
        (training, validation); of a single image, the same twice.
    """
    if len(data.images) == 1:
        return data, data
    draw = _Draw(data, seed)
    for category in sorted(draw.classes, key=lambda c: (len(draw.classes[c]), c)):
        if not draw.classes[category] & draw.chosen:
            draw.take(draw.classes[category], len(draw.chosen) + 1)
    draw.take(set(draw.order), max(round(share * len(draw.order)), 1))
    if not draw.chosen:  # every image is the only one of some class
        return data, data
    return data.of_images(set(draw.order) - draw.chosen), data.of_images(draw.chosen)


class _Draw:
    """Images drawn for validation.

    Attributes:
        classes: category -> images that show it.
        order: all images, shuffled.
        chosen: those that validate.
    """

    def __init__(self, data: Checked, seed: int) -> None:
        self.order = [image["id"] for image in data.images]
        random.Random(seed).shuffle(self.order)
        self.classes: dict[int, set[int]] = {}
        self._shown: dict[int, set[int]] = {image: set() for image in self.order}
        for annotation in data.annotations:
            category, image = annotation["category_id"], annotation["image_id"]
            self.classes.setdefault(category, set()).add(image)
            self._shown[image].add(category)
        self._left = {category: len(images) for category, images in self.classes.items()}
        self.chosen: set[int] = set()

    def take(self, images: set[int], enough: int) -> None:
        """Chooses of ``images``, in order, until ``enough`` are chosen in all."""
        for image in self.order:
            if len(self.chosen) >= enough:
                return
            categories = self._shown[image]
            if image in images - self.chosen and all(self._left[c] > 1 for c in categories):
                self.chosen.add(image)
                for category in categories:
                    self._left[category] -= 1


def few_shot(data: Checked, shots: int, *, seed: int = 0) -> Checked:
    """The images that GLIP's protocol draws: until every class has ``shots`` of them, as far as
    there are any; all boxes of an image stay.

    Args:
        data: to draw from.
        shots: images of each class, at least 1.
        seed: of the draw.
    """
    return data.of_images(few_shot_images(data.content(data.names), shots, shuffle_seed=seed + 1))
