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
