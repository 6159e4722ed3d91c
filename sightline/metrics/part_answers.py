"""Which part is answered for each point: the most probable of its object's own parts, and of all parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sightline.compiled import compiled, in_threads, suits

__all__ = ["part_answers", "part_answers_plainly"]


def part_answers(
    probabilities: Tensor, category: Tensor, parts_of_category: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """The most probable part of each point among those of its category, and among all: (P,) int64 each.

    `probabilities` (P, C), `category` (P,) int64 from 0 to the number of categories - 1. The lowest index among equals.
    Where a row has a NaN, the second answer is the first of them; the first one then means nothing.
    """
    if not suits(probabilities) or probabilities.numel() == 0:
        return part_answers_plainly(probabilities, category, parts_of_category)
    longest = max(map(len, parts_of_category))
    parts = np.array([[*sorted(own), *[-1] * (longest - len(own))] for own in parts_of_category])
    rows = probabilities.detach().contiguous().numpy()
    answers = np.empty((2, len(rows)), dtype=np.int64)
    in_threads(_answer, len(rows), rows, category.contiguous().numpy(), parts, answers)
    own, overall = torch.from_numpy(answers)
    return own, overall


def part_answers_plainly(
    probabilities: Tensor, category: Tensor, parts_of_category: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """The reference. On any device."""
    answer = torch.empty(len(probabilities), dtype=torch.int64, device=probabilities.device)
    for number, parts in enumerate(parts_of_category):
        rows = (category == number).nonzero().flatten()
        if len(rows):
            own = torch.tensor(sorted(parts), device=probabilities.device)
            answer[rows] = own[probabilities[rows][:, own].argmax(dim=1)]
    return answer, probabilities.argmax(dim=1)  # torch promises the first of equal maxima, and of NaN before them


@compiled
def _answer(
    first: int, last: int, probabilities: np.ndarray, category: np.ndarray, parts: np.ndarray, answers: np.ndarray
) -> None:
    """`parts` (categories, most parts): those of each category, rising, -1 in the places left over."""
    num_parts = probabilities.shape[1]
    for point in range(first, last):
        row, own_parts = probabilities[point], parts[category[point]]
        own = own_parts[0]
        for place in range(1, len(own_parts)):
            if own_parts[place] >= 0 and row[own_parts[place]] > row[own]:
                own = own_parts[place]
        # Most answers are among the object's own parts: that this one is can be seen without a search.
        num_above = num_unknown = 0
        for part in range(num_parts):
            num_above += row[part] > row[own]
            num_unknown += row[part] != row[part]
        overall = own
        if num_unknown:
            overall = 0
            while row[overall] == row[overall]:
                overall += 1
        elif num_above:
            overall = 0
            for part in range(1, num_parts):
                if row[part] > row[overall]:
                    overall = part
        else:
            for part in range(own - 1, -1, -1):
                if row[part] == row[own]:
                    overall = part
        answers[0, point], answers[1, point] = own, overall
