"""Record of what a training reads and reaches: largest inputs, losses, metrics, and outputs in either mode."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MIN_INPUTS, MIN_LOSSES = 8, 5
"""Numbers before the first that is compared with them."""
NUM_RECENT = 10
"""Losses of a level."""
_MAX_KEPT, _MAX_JUMPS = 256, 16
_MIN_JUMP = math.log(8.0)


class Jump(NamedTuple):
    """A number above all of its kind before it: with the highest and the usual one of these.

    `excess` is the logarithm of its ratio to what it is compared with, `spread` the mean of such logarithms among the
    `num_before` numbers before. `row` is that of the batch, `norm` that of the gradient, `name` that of the weight,
    where they are known.
    """

    step: int
    value: float
    highest: float
    usual: float
    excess: float
    spread: float
    num_before: int
    row: int | None = None
    norm: float | None = None
    name: str = ""


@dataclass
class Sizes:
    """Largest sizes of the numbers of an input, pass by pass, or of weights, in logarithms: they have no scale.

    From the number `least` on, they are compared with those before.
    """

    least: int = MIN_INPUTS
    num_seen: int = 0
    highest: float = -math.inf
    jumps: list[Jump] = field(default_factory=list)
    _stride: int = 1
    _kept: list[float] = field(default_factory=list)

    def compare(self, size: float) -> bool:
        """Return True for a size far above all before it; `add` keeps how far."""
        if not 0 < size < math.inf or self.num_seen < self.least or len(self.jumps) == _MAX_JUMPS:
            return False
        return math.log(size) > self.highest + _MIN_JUMP

    def add(self, step: int, size: float, *, row: int | None = None, name: str = "") -> None:
        """Add the size of a pass; zeros and numbers that are not finite have none."""
        if not 0 < size < math.inf:
            return
        log = math.log(size)
        if self.compare(size):
            usual = statistics.median(self._kept)
            spread = statistics.fmean(each - usual for each in self._kept if each >= usual)
            known = math.exp(self.highest), math.exp(usual), log - self.highest, spread
            self.jumps.append(Jump(step, size, *known, self.num_seen, row, name=name))
        self.highest = max(self.highest, log)
        if self.num_seen % self._stride == 0:
            if len(self._kept) == _MAX_KEPT:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
            self._kept.append(log)
        self.num_seen += 1


@dataclass
class LossLevels:
    """Losses of one line, step by step: each is compared with the highest before it, and with those just before.

    Losses above 0 are compared by their logarithms. Of others there is no jump. `jumps` are above all before them,
    `rise` is the largest step up from the lowest level, `lowest`.
    """

    num_seen: int = 0
    highest: float = -math.inf
    first: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_RECENT))
    lowest: float = math.inf
    jumps: list[Jump] = field(default_factory=list)
    rise: Jump | None = None
    _sum: float = 0.0
    _is_positive: bool = True

    @property
    def level(self) -> float:
        """Median of the last losses."""
        return _median(self.recent)

    @property
    def start(self) -> float:
        """Median of the first losses."""
        return _median(self.first)

    def add(self, step: int, loss: float) -> bool:
        """Add the loss of a step; return True if it is above all before it, and far above the last ones."""
        if not math.isfinite(loss):
            return False
        self._is_positive = self._is_positive and loss > 0
        level = self.level
        has_jumped = self._compare(step, loss, level) if self._is_positive and self.num_seen >= MIN_LOSSES else False
        self.highest = max(self.highest, loss)
        self.recent.append(loss)
        if len(self.first) < NUM_RECENT:
            self.first.append(loss)
        elif level < self.lowest:
            self.lowest = level
            self.rise = self.rise if loss > level else None
        self.num_seen += 1
        return has_jumped

    def _compare(self, step: int, loss: float, usual: float) -> bool:
        excess, spread = math.log(loss / usual), self._sum / max(self.num_seen - MIN_LOSSES, 1)
        self._sum += max(excess, 0.0)
        has_jumped = excess > _MIN_JUMP and loss > self.highest and len(self.jumps) < _MAX_JUMPS
        has_risen = excess > (0.0 if self.rise is None else self.rise.excess)
        if has_jumped or has_risen:
            jump = Jump(step, loss, self.highest, usual, excess, spread, self.num_seen)
            self.rise = jump if has_risen else self.rise
            self.jumps += [jump] * has_jumped
        return has_jumped

    def set_norm(self, norm: float) -> None:
        """Set the norm of the gradient of the last jump."""
        self.jumps[-1] = self.jumps[-1]._replace(norm=norm)


def _median(values: Collection[float]) -> float:
    """Compute the upper median of a few numbers; NaN without any."""
    return sorted(values)[len(values) // 2] if values else math.nan


class Scored(NamedTuple):
    """Figure of an evaluation after a step, and the level of the training losses then."""

    step: int
    value: float
    loss: float


class Chance(NamedTuple):
    """What a trained network knows of the targets of a part: its loss and figure, and those with inputs of others.

    `other_loss` is the mean, and `other_figure` the best, over some passes in which each of the `num_samples` samples
    has the inputs of another one: what is known without looking at a sample.
    """

    split: str
    num_samples: int
    loss: float
    other_loss: float
    figure: float
    other_figure: float


class ModeGap(NamedTuple):
    """How far a network's outputs in evaluation mode are from those in training mode, on the same samples.

    All are mean squares of differences by that of the outputs' spread over the samples: `gap` is between the two
    modes, `noise` between two passes in training mode whose statistics are of other samples. `layer` is the first whose
    running statistics are unlike those of the batch, `ratio` and `words` say how far; with `is_young`, they are mostly
    what they started from. `loss` and `start` are the levels of the training losses then and at first.
    """

    step: int
    path: str
    gap: float
    noise: float
    ratio: float
    layer: str | None
    words: str
    is_young: bool
    loss: float
    start: float


@dataclass
class Record:
    """Record of a training: sizes of `inputs` by name and of `weights`, `losses` by their line, and what was evaluated.

    `metric` is the name of the figure in `scores`, of which more is better if `is_higher_better`. `modes` are the
    comparisons of the modes, the last one at the end.
    """

    inputs: dict[str, Sizes] = field(default_factory=dict)
    weights: Sizes = field(default_factory=lambda: Sizes(least=2))
    losses: dict[Hashable, LossLevels] = field(default_factory=dict)
    metric: str = ""
    is_higher_better: bool = True
    scores: list[Scored] = field(default_factory=list)
    modes: list[ModeGap] = field(default_factory=list)
    is_over: bool = False

    @property
    def main_losses(self) -> LossLevels:
        """Losses of the line that has most of them."""
        return max(self.losses.values(), key=lambda each: each.num_seen, default=LossLevels())

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Add a line of a run's metrics.jsonl: the mean loss of an interval, or the figure of an evaluation."""
        value, loss = line.get(self.metric), line.get("loss/total")
        if line["split"] == "train" and loss is not None:
            self.losses.setdefault("", LossLevels()).add(line["step"], loss)
        elif line["split"] != "train" and value is not None:
            self.scores.append(Scored(line["step"], value, self.main_losses.level))
