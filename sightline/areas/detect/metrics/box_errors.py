"""Kinds of a detector's errors, the AP gained by mending each kind alone, and the images with the most of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.areas.detect.metrics.crowds import nan_mean, protocol_header
from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.metric import State, WorstSamples
from sightline.parts.metrics.average_precision import Matches, precision_and_recall
from sightline.parts.metrics.box_groups import NO_LIMIT, BoxRows, DetectionColumn, LabelColumn, group_boxes, iou_or_ioa

KINDS = ("localisation", "class", "both", "duplicate", "background", "missed")
_LOCALISATION, _CLASS, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)
_SPECIAL = ("false_positive", "false_negative")
_MATCH_IOU, _BACKGROUND_IOU = 0.5, 0.1
_RECALLS = np.arange(101) / 100
"""Recalls of tidecv; those of COCO are multiples of 0.01, which a recall of 0.35 does not reach."""
_NUM_WORST = 3
"""Images listed for each kind."""


@registry.metrics.add("box_errors")
class BoxErrors(BoxRows):
    """AP50 lost by each kind of error (TIDE): `gain_<kind>`, the share by which mending it alone raises `error_ap50`.

    Detections match, highest-scoring first, the free label of their class that they overlap most, by an IoU of 0.5 or
    more. Any other is, the first that applies: `localisation` (its largest IoU with a label of its class is 0.1 to
    0.5), `class` (0.5 or more with one of another class), `duplicate` (more than 0.5 with one of its class, which is
    taken), `background` (at most 0.1 with any), else `both`. Labels that are not matched, and that no error of the
    first two kinds is about, are `missed`. Mending moves the highest-scoring detection about an unmatched label onto
    it and drops all others of its kind; missed labels are dropped. `gain_false_positive` is that of dropping all wrong
    detections, `gain_false_negative` that of dropping all unmatched labels. The `most` highest-scoring detections of
    an image take part. Equal to tidecv, in shares of 1 where it prints points of 100, by its rules, which part from
    those of `box_ap`: a class that is only detected has an AP of 0, which is part of the mean; detections inside
    ignored labels do not lower the AP, but have a kind. NaN without labels, and where tidecv divides by zero: without
    detections no class is left once missed labels are dropped.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.detect.metrics.box_errors import BoxErrors
    >>> batch = {  # an image of two people: one is found, of the other 8 of 20 pixels, an IoU of 0.4
    ...     "detections": torch.tensor([[0, 0, 10, 20, 0.9, 0], [50, 0, 60, 8, 0.8, 0]]),
    ...     "detection_offsets": torch.tensor([0, 2]),
    ...     "truth": torch.tensor([[0, 0, 10, 20, 0, 200, 0], [50, 0, 60, 20, 0, 200, 0]]),
    ...     "truth_offsets": torch.tensor([0, 2]),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(BoxErrors(class_names=("person",)))
    >>> meter.update(**batch)
    >>> {name: round(value, 3) for name, value in meter.compute().items() if value}
    {'error_ap50': 0.505, 'gain_localisation': 0.495, 'gain_false_negative': 0.495}

    Source: Bolya et al. 2020, TIDE, section 2, and its published program tidecv.
    """

    higher_is_better: Mapping[str, bool] = {"error_ap50": True}

    def __init__(self, *, class_names: tuple[str, ...], most: Count = 100) -> None:
        self.class_names = tuple(class_names)
        self.most = most

    def compute(self, state: State) -> dict[str, float]:
        """Compute the AP50, and what it gains by mending each kind."""
        errors = self._classify(state)
        num_classes = len(self.class_names)
        ap50 = mended_ap50(errors, num_classes)
        gains = {kind: mended_ap50(errors, num_classes, kind) - ap50 for kind in (*KINDS, *_SPECIAL)}
        gains |= {kind: float(np.maximum(gains[kind], 0)) for kind in KINDS}  # as tidecv; ties of scores may lower it
        return {"error_ap50": ap50, **{f"gain_{kind}": gain for kind, gain in gains.items()}}

    def tables(self, state: State) -> dict[str, Any]:
        """Return `box_errors`: for each kind the `count`, as tidecv has it, and how many of them are `ignored`.

        `at_best_score` are those from the score of `worst_samples` on, ignored ones aside.
        """
        errors = self._classify(state)
        chosen = self._classify(state, min_score=_best_score(errors))
        about = protocol_header(f"TIDE, IoU 0.5 and 0.1, at most {self.most} an image", state)
        if bool(errors.is_real.any()) and not bool((~errors.is_hidden).any()):
            reason = "no detection counts, so that nothing is left to evaluate"
            lost = {"missed": errors.is_missed, "false_negative": errors.is_real & ~errors.is_label_matched}
            about["undefined"] |= {
                f"gain_{kind}": reason for kind, mask in lost.items() if bool((mask == errors.is_real).all())
            }
        counts = {
            kind: {
                "count": int((errors.kind == number).sum()),
                "ignored": int(((errors.kind == number) & errors.is_hidden).sum()),
                "at_best_score": int(((chosen.kind == number) & ~chosen.is_hidden).sum()),
            }
            for number, kind in enumerate(KINDS[:_MISSED])
        }
        missed = int(errors.is_missed.sum())
        counts["missed"] = {"count": missed, "ignored": 0, "at_best_score": int(chosen.is_missed.sum())}
        return {"scored_boxes_errors": about, "box_errors": counts}

    def worst_samples(self, state: State) -> WorstSamples:
        """List the images with the most errors of each kind, ignored ones aside, among the detections of a good score.

        That score is the one from which on the detections have the largest F1 score.
        """
        score = _best_score(self._classify(state))
        errors = self._classify(state, min_score=score)
        of_kind = {}
        for number, kind in enumerate(KINDS):
            wrong = errors.detections[(errors.kind == number) & ~errors.is_hidden]
            rows = errors.labels[errors.is_missed] if number == _MISSED else wrong
            images, counts = np.unique(rows[:, DetectionColumn.IMAGE].astype(np.int64), return_counts=True)
            order = np.argsort(-counts, kind="stable")[:_NUM_WORST]
            of_kind[kind] = dict(zip(images[order].tolist(), counts[order].tolist(), strict=True))
        return WorstSamples(of_kind, score)

    def _classify(self, state: State, *, min_score: float = -np.inf) -> DetectionErrors:
        detections = state["detections"]
        chosen = detections[detections[:, DetectionColumn.SCORE] >= min_score]
        return classify_errors(chosen, state["labels"], len(self.class_names), most=self.most)


class DetectionErrors(NamedTuple):
    """Detections (D, 7) of each image by falling score, with their errors, and labels (G, 8).

    `kind` (D,) is an index into `KINDS`, -1 for a detection that matched. `label` (D,) is the index of the label that
    an error of localisation or class is about, else -1. A wrong detection `is_hidden` (D,) if it is inside an ignored
    label: it does not count. It `is_best` (D,) if it is the highest-scoring about a label that no other matched.
    Labels (G,): `is_real` are not ignored, `is_label_matched` matched, `is_missed` neither matched nor near an error.
    """

    detections: np.ndarray
    labels: np.ndarray
    kind: np.ndarray
    label: np.ndarray
    is_hidden: np.ndarray
    is_best: np.ndarray
    is_real: np.ndarray
    is_label_matched: np.ndarray
    is_missed: np.ndarray


def classify_errors(detections: Tensor, labels: Tensor, num_classes: int, *, most: int = NO_LIMIT) -> DetectionErrors:
    """Classify the errors among detections (D, 7), the `most` highest-scoring of each image, and labels (G, 8).

    Raises ValueError for a class outside 0 .. C-1, but for that of a label of no class, -1.
    """
    boxes, truth = (rows.cpu().numpy() for rows in (detections, labels))
    boxes = boxes[np.lexsort((-boxes[:, DetectionColumn.SCORE], boxes[:, DetectionColumn.IMAGE]))]
    truth = truth[np.argsort(truth[:, LabelColumn.IMAGE], kind="stable")]
    first = np.searchsorted(boxes[:, DetectionColumn.IMAGE], boxes[:, DetectionColumn.IMAGE])
    boxes = boxes[np.arange(len(boxes)) - first < most]
    is_matched, is_label_matched = _match(boxes, truth, num_classes)
    kind, label, is_hidden = np.full(len(boxes), -1), np.full(len(boxes), -1), np.zeros(len(boxes), dtype=bool)
    wrong = np.flatnonzero(~is_matched)
    images, starts = np.unique(boxes[wrong, DetectionColumn.IMAGE], return_index=True)
    begins, ends = (np.searchsorted(truth[:, LabelColumn.IMAGE], images, side=side) for side in ("left", "right"))
    for rows, begin, end in zip(np.split(wrong, starts[1:]), begins, ends, strict=False):
        kind[rows], label[rows], is_hidden[rows] = _kinds(boxes[rows], truth[begin:end], begin)
    is_real = truth[:, LabelColumn.IS_IGNORED] == 0
    is_missed = is_real & ~is_label_matched
    is_missed[label[label >= 0]] = False
    is_best = np.zeros(len(boxes), dtype=bool)
    about = np.flatnonzero(~np.append(is_label_matched, True)[label])
    is_best[about[np.unique(label[about], return_index=True)[1]]] = True
    return DetectionErrors(boxes, truth, kind, label, is_hidden, is_best, is_real, is_label_matched, is_missed)


def _match(boxes: np.ndarray, truth: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Match detections with labels of their class: masks of the matched detections (D,) and labels (G,).

    Of labels that a detection overlaps equally the first is matched, as in tidecv.
    """
    numbered, labels = (torch.from_numpy(np.column_stack([rows, np.arange(len(rows))])) for rows in (boxes, truth))
    groups = group_boxes(numbered, labels, num_classes, last_is_first=True)
    matched = groups.match(groups.is_ignored[None], levels=np.array([_MATCH_IOU]))
    is_matched, is_label_matched = np.zeros(len(boxes), dtype=bool), np.zeros(len(truth), dtype=bool)
    is_matched[groups.boxes[matched.is_matched[0, 0] & ~matched.is_ignored[0, 0], -1].astype(np.int64)] = True
    is_label_matched[groups.labels[matched.is_label_matched[0, 0] & ~groups.is_ignored, -1].astype(np.int64)] = True
    return is_matched, is_label_matched


def _kinds(boxes: np.ndarray, truth: np.ndarray, begin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classify the unmatched detections of an image, whose labels begin at an index: kind, label, is hidden (D,)."""
    is_ignored = truth[:, LabelColumn.IS_IGNORED] > 0
    overlap = iou_or_ioa(boxes[:, DetectionColumn.BOX], truth[:, LabelColumn.BOX], is_ignored)
    is_same = boxes[:, DetectionColumn.CLASS, None] == truth[:, LabelColumn.CLASS]
    hides = is_ignored & (is_same | (truth[:, LabelColumn.CLASS] < 0))
    is_hidden = ((overlap > _MATCH_IOU) & hides).any(axis=1)
    same, other = np.where(is_same & ~is_ignored, overlap, 0), np.where(~is_same & ~is_ignored, overlap, 0)
    largest_same, largest_other = same.max(axis=1, initial=0), other.max(axis=1, initial=0)
    rules = {
        _LOCALISATION: (largest_same >= _BACKGROUND_IOU) & (largest_same <= _MATCH_IOU),
        _CLASS: largest_other >= _MATCH_IOU,
        _DUPLICATE: largest_same > _MATCH_IOU,
        _BACKGROUND: np.maximum(largest_same, largest_other) <= _BACKGROUND_IOU,
    }
    kind = np.select(list(rules.values()), list(rules), _BOTH)
    label = np.full(len(boxes), -1)
    for number, overlaps in ((_LOCALISATION, same), (_CLASS, other)):
        label[kind == number] = begin + overlaps[kind == number].argmax(axis=1) if overlaps.size else -1
    return kind, label, is_hidden


def mended_ap50(errors: DetectionErrors, num_classes: int, mended: str = "") -> float:
    """Compute the AP at an IoU of 0.5 once the errors of a kind are mended; NaN without labels.

    It is the mean over classes that have a label or a detection. Among equal scores, wrong and moved detections come
    before right ones if a kind is mended, as in tidecv; else the order is that of the images.
    """
    is_right, is_real = errors.kind < 0, errors.is_real
    is_mended = errors.kind == (KINDS.index(mended) if mended in KINDS else _MISSED)
    moves = is_mended & errors.is_best
    takes_part = ~is_right & ~is_mended & ~errors.is_hidden | moves
    rows = np.concatenate([np.flatnonzero(takes_part), np.flatnonzero(is_right)])
    rows = rows if mended else np.sort(rows)
    classes = errors.detections[:, DetectionColumn.CLASS].copy()
    classes[moves] = errors.labels[errors.label[moves], LabelColumn.CLASS]
    classes, is_right = classes[rows], (is_right | moves)[rows]
    scores = is_right * 1.0 if mended == "false_positive" else errors.detections[rows, DetectionColumn.SCORE]
    lost: Mapping[str, np.ndarray] = {"missed": errors.is_missed, "false_negative": ~errors.is_label_matched}
    counted = is_real & ~lost[mended] if mended in lost else is_real
    num_labels = np.bincount(errors.labels[counted, LabelColumn.CLASS].astype(np.int64), minlength=num_classes)
    values = []
    for number, count in enumerate(num_labels.tolist()):
        chosen = classes == number
        matches = Matches(scores[chosen], is_right[None, chosen], np.zeros((1, chosen.sum()), dtype=bool), count)
        if count:
            values.append(float(precision_and_recall([matches], recalls_sampled=_RECALLS)[0].mean()))
        elif chosen.any():
            values.append(0.0)
    return nan_mean(values if is_real.any() else [])


def _best_score(errors: DetectionErrors) -> float:
    """Return the middle between the score from which on F1 is largest and the next lower one; 0 if none is right."""
    counted = ~errors.is_hidden
    scores, is_right = errors.detections[counted, DetectionColumn.SCORE], errors.kind[counted] < 0
    order = np.argsort(-scores)
    scores, num_right = scores[order], is_right[order].cumsum()
    is_last = np.diff(scores, append=-np.inf) < 0  # of equal scores
    f1 = num_right * is_last / (np.arange(1, len(order) + 1) + errors.is_real.sum())
    best = int(f1.argmax()) if is_right.any() else -1
    return float(scores[best : best + 2].mean()) if best >= 0 else 0.0
