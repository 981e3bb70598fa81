"""DetCLIP's formulas written out, pair by pair (Yao et al. 2022 and 2023), for parity; nothing of
ovd_d2 is used here.

Letters: N images, A anchors, M concepts, D width, T texts, G images, Q regions, W words.
"""

import torch
from plain_boxes import plain_assign, plain_centerness, plain_decode, plain_giou
from torchvision.ops import nms


def plain_focal(regions, concepts, bias, positives, counted=None, alpha=0.25, gamma=2.0):
    """Section 3.2: the sum over images, anchors and concepts.

    Args:
        regions: (N, A, D).
        concepts: (M, D).
        bias: scalar.
        positives: set of (image, anchor, concept).
        counted: (N, M), False where a pair takes no part.
    """
    total = bias * 0 + regions.sum() * 0 + concepts.sum() * 0
    for n, image in enumerate(regions):
        for a, region in enumerate(image):
            for m, concept in enumerate(concepts):
                if counted is not None and not counted[n, m]:
                    continue
                p = 1 / (1 + (-(region * concept).sum() - bias).exp())
                if (n, a, m) in positives:
                    total = total - alpha * (1 - p) ** gamma * p.log()
                else:
                    total = total - (1 - alpha) * p**gamma * (1 - p).log()
    return total


def plain_set_similarity(texts, images, match="best", temperature=1.0, areas=None):
    """Section 3.3: (T, G), the mean over a text's words of each word's match.

    Args:
        texts: T of (W, D).
        images: G of (Q, D).
        match: "best", "softmax" or "largest".
        temperature: of "softmax".
        areas: per image Q numbers.
    """
    rows = []
    for words in texts:
        for g, regions in enumerate(images):
            matches = []
            for word in words:
                products = [(word * region).sum() for region in regions]
                if match == "best":
                    matches.append(max(products))
                elif match == "softmax":
                    parts = [(product / temperature).exp() for product in products]
                    weighted = [part * product for part, product in zip(parts, products)]
                    matches.append(sum(weighted) / sum(parts))
                else:
                    largest = max(range(len(products)), key=lambda q, g=g: areas[g][q])
                    matches.append(products[largest])
            rows.append(sum(matches) / len(matches))
    return torch.stack(rows).reshape(len(texts), len(images))


def plain_contrastive(similarity, own, tau=0.5, smoothing=0.1, left_out=None):
    """L_cts: cross entropy of every row with its own column.

    Args:
        similarity: (T, G).
        own: T column numbers.
        tau: temperature.
        smoothing: of the target, spread over the columns that count.
        left_out: (T, G), columns that are no negatives.
    """
    total = 0.0
    for t, row in enumerate(similarity):
        columns = [
            g for g in range(len(row)) if g == own[t] or left_out is None or not left_out[t][g]
        ]
        denominator = sum((row[g] / tau).exp() for g in columns)
        for g in columns:
            target = smoothing / len(columns) + (1 - smoothing) * (g == own[t])
            total = total - target * ((row[g] / tau).exp() / denominator).log()
    return total / len(similarity)


def plain_choice(objectness, boxes, most, threshold, before_nms):
    """Anchors that NMS keeps, best first.

    Args:
        objectness: (A,).
        boxes: (A, 4), decoded.
        most: Q.
        threshold: of IoU.
        before_nms: best ones that it sees.
    """
    order = sorted(range(len(boxes)), key=lambda a: -objectness[a].item())[:before_nms]
    kept = nms(boxes[order], objectness[order], threshold).tolist()
    return [order[place] for place in kept[:most]]


def plain_box_losses(levels, outputs, concepts, bias, gt_boxes, gt_concepts, counted=None):
    """Sections 3.2 and 3.4 with ATSS's assignment: alignment, boxes (weight 2), centerness.

    Args:
        levels: per level (a, 4) anchors.
        outputs: with ``regions``, ``box_deltas``, ``centerness``.
        concepts: (M, D).
        bias: scalar.
        gt_boxes: per image (Gi, 4).
        gt_concepts: per image Gi columns.
        counted: see :func:`plain_focal`.
    """
    every = torch.cat(levels).tolist()
    positives, giou, centerness, total = set(), 0.0, 0.0, 0.0
    for n, boxes in enumerate(gt_boxes):
        for a, owner in enumerate(plain_assign(levels, boxes).tolist()):
            if owner < 0:
                continue
            positives.add((n, a, gt_concepts[n][owner]))
            box = boxes[owner].tolist()
            weight = plain_centerness(every[a], box)
            predicted = plain_decode(outputs.box_deltas[n, a], every[a])
            giou = giou + weight * (1 - plain_giou(predicted, box))
            p = 1 / (1 + (-outputs.centerness[n, a]).exp())
            centerness = centerness - weight * p.log() - (1 - weight) * (1 - p).log()
            total += weight
    focal = plain_focal(outputs.regions, concepts, bias, positives, counted)
    number = max(len(positives), 1)
    return {
        "loss_alignment": focal / number,
        "loss_box_reg": 2 * giou / max(total, 1e-6),
        "loss_centerness": centerness / number,
    }


def plain_unit(model, text):
    """The text alone through the model's tower, as a unit vector."""
    row = model.text.tower([text])[0]
    return row / row.square().sum().sqrt()


def plain_outputs(model, samples):
    """Anchors per level and the head's outputs for images padded at their right and bottom."""
    height = max(sample["image"].shape[1] for sample in samples)
    width = max(sample["image"].shape[2] for sample in samples)
    multiple = model.backbone.size_divisibility or 1
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    images = torch.zeros(len(samples), 3, height, width, dtype=model.pixel_mean.dtype)
    for image, sample in zip(images, samples):
        pixels = (sample["image"].double() - model.pixel_mean) / model.pixel_std
        image[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    maps = model.backbone(images)
    features = [maps[name] for name in model.in_features]
    return [level.tensor for level in model.anchor_generator(features)], model.head(features)


def plain_losses_of_boxes(model, samples, names, texts, hidden=None):
    """Losses of a batch of boxes.

    Args:
        model: in training mode.
        samples: with ``instances``.
        names: per image the concept of each box.
        texts: of every concept of the batch: name -> what the encoder reads.
        hidden: per image concepts of which it is not known whether it shows them.
    """
    concepts = torch.stack([plain_unit(model, text) for text in texts.values()])
    columns = list(texts)
    counted = None
    if hidden is not None:
        counted = [[name not in of_image for name in columns] for of_image in hidden]
        counted = torch.tensor(counted)
    levels, outputs = plain_outputs(model, samples)
    return plain_box_losses(
        levels, outputs, concepts, model.head.bias,
        [sample["instances"].gt_boxes.tensor for sample in samples],
        [[columns.index(name) for name in of_image] for of_image in names], counted,
    )  # fmt: skip


def plain_loss_of_pairs(
    model, texts, samples, *, score="batch_text", regions=100, match="best", temperature=1.0,
    direction="text_to_image", tau=0.5, smoothing=0.1, weight=0.1,
):  # fmt: skip
    """The loss of a batch of pairs.

    Args:
        model: in training mode.
        texts: per pair its caption and noun phrases as the encoder reads them, each once.
        samples: with ``image``.
        score: objectness, of "batch_text", "own_text", "centerness".
        regions: Q.
        match: see :func:`plain_set_similarity`, as ``temperature``.
        temperature: of "softmax".
        direction: "text_to_image", "image_to_text" or "both".
        tau: see :func:`plain_contrastive`, as ``smoothing``.
        smoothing: of the target.
        weight: lambda.
    """
    levels, outputs = plain_outputs(model, samples)
    every = torch.cat(levels).tolist()
    words = [torch.stack([plain_unit(model, text) for text in own]) for own in texts]
    kept, areas = [], []
    for image, own in enumerate(words):
        if score == "centerness":
            objectness = outputs.centerness[image]
        else:
            rows = own if score == "own_text" else torch.cat(words)
            objectness = (outputs.regions[image] @ rows.T).max(dim=1).values
        boxes = [plain_decode(outputs.box_deltas[image, a], every[a]) for a in range(len(every))]
        boxes, objectness = torch.stack(boxes).detach(), objectness.detach()
        places = plain_choice(objectness, boxes, regions, 0.6, 1000)
        kept.append(outputs.regions[image][places])
        areas.append([((b[2] - b[0]) * (b[3] - b[1])).item() for b in boxes[places]])
    equal = [[one[0] == other[0] for other in texts] for one in texts]
    own = list(range(len(texts)))
    losses = []
    if direction != "image_to_text":
        similarity = plain_set_similarity(words, kept, match, temperature, areas)
        losses.append(plain_contrastive(similarity, own, tau, smoothing, equal))
    if direction != "text_to_image":
        similarity = plain_set_similarity(kept, words)
        losses.append(plain_contrastive(similarity, own, tau, smoothing, equal))
    return weight * sum(losses) / len(losses)
