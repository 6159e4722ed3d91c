"""Losses of pairs: rows that are all alike, rows at right angles, partners of other objects, lengths."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.terms import draw, sum_at
from sightline.doctor.subject import LossTerm

NUM, _WIDTH, LONG = 6, 16, 1e4


class Pairs(NamedTuple):
    """Losses of pairs whose rows are chosen: `apart` are rows at right angles, with the partner of each further object.

    `alike`, `twice` and `long` are equal rows, of as many pairs, twice as many, and 10,000 times the length. `halved`
    and `doubled` are rows at right angles of other lengths, `drawn` and `exchanged` drawn rows and their sides turned.
    """

    apart: list[float]
    alike: float
    twice: float
    long: float
    halved: float
    doubled: float
    drawn: float
    exchanged: float
    has_free_lengths: bool
    is_of_views: bool

    @property
    def softmax(self) -> float | None:
        """Temperature of a softmax of similarities; None for a loss of another kind.

        Equal rows, of which none is nearer, have the logarithm of their number. Orthogonal partners have
        ln(1 + K exp(-1 / t)) for K negatives and a temperature of t.
        """
        if not any(math.isclose(self.alike, math.log(number), rel_tol=1e-6) for number in (NUM, 2 * NUM - 1, 2 * NUM)):
            return None
        ratio = math.expm1(self.apart[0]) / math.expm1(self.alike)
        return math.inf if ratio >= 1 else 0.0 if ratio <= 0 else -1 / math.log(ratio)


@measure(passes=20)
def pairs(term: LossTerm, recorded: dict[str, Any]) -> Pairs:
    """Put chosen rows in place of the embeddings of both sides."""
    rows = [tensor for _, tensor in dense_leaves(recorded)]
    if not term.is_of_pairs or len(recorded) < 2 or any(row.ndim != 2 for row in rows):
        raise NotApplicableError("no loss of pairs")
    names, eye = list(recorded), torch.eye(NUM, _WIDTH, dtype=torch.float64)

    def value(same: Tensor, **others: Tensor) -> float:
        return sum_at(term, {**dict.fromkeys(names, same), **others}, {}) / len(same)

    apart = [value(eye, **{names[-1]: eye.roll(shift, 0)}) for shift in range(NUM)]
    ones = torch.ones(NUM, _WIDTH, dtype=torch.float64)
    alike, twice, long = value(ones), value(torch.cat((ones, ones))), value(LONG * ones)
    first, second = draw(torch.empty(2, NUM, _WIDTH, dtype=torch.float64))
    sides = value(first, **{names[-1]: second}), value(second, **{names[-1]: first})
    is_of_views = len(names) == 2 and all(row.shape == rows[0].shape for row in rows) and term.are_all_learnt
    is_free = not all(map(_have_one_length, rows))
    return Pairs(apart, alike, twice, long, value(eye / 2), value(2 * eye), *sides, is_free, is_of_views)


def _have_one_length(rows: Tensor) -> bool:
    lengths = rows.double().norm(dim=1)
    return bool(torch.isclose(lengths, lengths.mean(), rtol=1e-3).all())
