"""Detectors decoded slowly and plainly, one row at a time in Python floats, as papers write it.

Each gives rows (score, class, [xmin, ymin, xmax, ymax] of the input 0 to 1), best first, before
suppression; `plain_found` suppresses them.
"""

import math


def iou(a, b):
    """Overlap of two boxes xmin, ymin, xmax, ymax."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height) if both > width * height else 0.0


def plain_nms(boxes, classes, limit, threshold, is_agnostic=False):
    """Indices kept; everything best score first."""
    kept = []
    for i in range(len(boxes)):
        if len(kept) == limit:
            break
        if all(
            (classes[i] != classes[j] and not is_agnostic) or iou(boxes[i], boxes[j]) <= threshold
            for j in kept
        ):
            kept.append(i)
    return kept


def plain_found(rows, threshold, limit=100, is_agnostic=False):
    """Rows that are left after suppression at an overlap of `threshold`."""
    rows = sorted(rows, key=lambda row: -row[0])
    boxes, classes = [row[2] for row in rows], [row[1] for row in rows]
    return [rows[i] for i in plain_nms(boxes, classes, limit, threshold, is_agnostic)]


def logistic(x):
    """The sigmoid of one number."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def best_of(scores, lowest):
    """(score, class) of the best class, or None below `lowest`."""
    score = max(scores)
    return (score, list(scores).index(score)) if score >= lowest else None


def centred(x, y, width, height):
    """Corners of a box given by its centre and size."""
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def plain_yolov8(columns, lowest, unit=(1, 1)):
    """columns: n of [x, y, w, h, *scores]."""
    rows = []
    for x, y, w, h, *scores in columns:
        best = best_of(scores, lowest)
        if best:
            rows.append((*best, centred(x / unit[0], y / unit[1], w / unit[0], h / unit[1])))
    return rows


def plain_yolov5(columns, lowest, unit=(1, 1)):
    """columns: n of [x, y, w, h, objectness, *scores]."""
    return plain_yolov8(
        [[*column[:4], *(column[4] * score for score in column[5:])] for column in columns],
        lowest,
        unit,
    )


def cells_of(size, strides, offset):
    """(x, y, stride) in pixels of each cell; size is (width, height)."""
    for stride in strides:
        for row in range(math.ceil(size[1] / stride)):
            for column in range(math.ceil(size[0] / stride)):
                yield (column + offset) * stride, (row + offset) * stride, stride


def plain_distribution(scores, bins, lowest, size, strides, offset):
    """scores n of [classes] probabilities, bins n of [4 * bins] logits."""
    rows = []
    for own, sides, (x, y, stride) in zip(
        scores, bins, cells_of(size, strides, offset), strict=True
    ):
        best = best_of(own, lowest)
        if not best:
            continue
        count = len(sides) // 4
        distances = []
        for side in range(4):
            powers = [math.exp(v) for v in sides[side * count : (side + 1) * count]]
            distances.append(sum(k * p for k, p in enumerate(powers)) / sum(powers) * stride)
        left, top, right, bottom = distances
        box = [
            (x - left) / size[0],
            (y - top) / size[1],
            (x + right) / size[0],
            (y + bottom) / size[1],
        ]
        rows.append((*best, box))
    return rows


def plain_ssd_raw(boxes, scores, anchors, lowest):
    """boxes n of [ty, tx, th, tw], scores n of [classes], anchors n of [cy, cx, h, w]."""
    rows = []
    for (ty, tx, th, tw), own, (ay, ax, ah, aw) in zip(boxes, scores, anchors, strict=True):
        best = best_of(own, lowest)
        if best:
            x, y = tx / 10 * aw + ax, ty / 10 * ah + ay
            rows.append((*best, centred(x, y, math.exp(tw / 5) * aw, math.exp(th / 5) * ah)))
    return rows


def plain_blazeface(boxes, scores, side, grids, lowest):
    """Rows with a fourth entry, the points; boxes n of [x, y, w, h, px, py, …] in pixels."""
    centres = [
        ((column + 0.5) / grid, (row + 0.5) / grid)
        for grid, priors in grids
        for row in range(grid)
        for column in range(grid)
        for _ in range(priors)
    ]
    rows = []
    for box, score, (cx, cy) in zip(boxes, scores, centres, strict=True):
        if score >= lowest:
            x, y, w, h, *points = (value / side for value in box)
            moved = [v + (cy if at % 2 else cx) for at, v in enumerate(points)]
            rows.append((score, 0, centred(x + cx, y + cy, w, h), moved))
    return rows


def plain_weighted(rows, threshold):
    """Groups of overlapping rows averaged by score, with the best score of each."""
    rows = sorted(rows, key=lambda row: -row[0])
    found = []
    while rows:
        group = [row for row in rows if row is rows[0] or iou(rows[0][2], row[2]) > threshold]
        total = sum(row[0] for row in group)
        box = [sum(r[0] * r[2][k] for r in group) / total for k in range(4)]
        points = [sum(r[0] * r[3][k] for r in group) / total for k in range(len(rows[0][3]))]
        found.append((rows[0][0], 0, box, points))
        rows = [row for row in rows if row not in group]
    return found


def plain_prior_maps(maps, priors, strides, size, lowest):
    """maps per stride: [cells, 3, 5 + classes] of logits; priors in pixels."""
    rows = []
    for numbers, own, stride in zip(maps, priors, strides, strict=True):
        cells = list(cells_of(size, [stride], 0))
        for cell, (x, y, _) in zip(numbers, cells, strict=True):
            for anchor, (width, height) in zip(cell, own, strict=True):
                s = [logistic(float(t)) for t in anchor]
                best = best_of([s[4] * score for score in s[5:]], lowest)
                if best:
                    cx, cy = (2 * s[0] - 0.5) * stride + x, (2 * s[1] - 0.5) * stride + y
                    w, h = (2 * s[2]) ** 2 * width, (2 * s[3]) ** 2 * height
                    box = centred(cx / size[0], cy / size[1], w / size[0], h / size[1])
                    rows.append((*best, box))
    return rows
