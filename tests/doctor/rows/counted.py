"""Programs in which a class, a range of the target, samples or statistics are left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.doctor.rows import Case

NUM_WORDS, LENGTH = 6, 12


def padded_tags(has_bug: bool, watch: Any, check: Any) -> None:
    """Tags of words, of which -1 marks padding: the mask is of positive ones, so that the first tag is padding, too."""
    torch.manual_seed(0)
    words = torch.randint(0, NUM_WORDS, (16, LENGTH))
    tags = torch.where(torch.arange(LENGTH) < torch.randint(6, LENGTH, (16, 1)), words % 4, -1)
    model = nn.Sequential(nn.Embedding(NUM_WORDS, 8), nn.Linear(8, 4))

    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        is_word = labels > 0 if has_bug else labels >= 0
        return F.cross_entropy(scores[is_word], labels[is_word])

    check(model, loss, (words, tags))


def standardised_before_the_mask(has_bug: bool, watch: Any, check: Any) -> None:
    """Rain of grids without a gauge everywhere: what is positive is taken after the numbers are standardised."""
    torch.manual_seed(0)
    maps = torch.rand(8, 1, 12, 12)
    rain = torch.where(torch.rand(8, 1, 12, 12) < 0.2, 0.0, 2 + maps * 5 + 0.1 * torch.randn(8, 1, 12, 12))
    target = torch.where(rain > 0, (rain - 4.5) / 1.5, 0.0)

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        has_gauge = wanted > 0 if has_bug else wanted != 0
        return F.l1_loss(outputs[has_gauge], wanted[has_gauge])

    check(nn.Conv2d(1, 1, 3, padding=1), loss, (maps, target))


def events_of_one_recording(has_bug: bool, watch: Any, check: Any) -> None:
    """Rows (recording, time, length) of a batch's events; those of all recordings get the number of the first."""
    torch.manual_seed(0)
    sounds = torch.randn(4, 2, 32)
    rows = torch.rand(10, 3)
    rows[:, 0] = 0 if has_bug else torch.arange(10) % 4
    model = nn.Conv1d(2, 2, 5, padding=2)

    def loss(outputs: Tensor, events: Tensor) -> Tensor:
        picked = outputs[events[:, 0].long(), :, (events[:, 1] * 32).long()]
        return F.smooth_l1_loss(picked, events[:, 1:]) + 0.1 * outputs.square().mean()

    check(model, loss, (sounds, rows))


class RunningScale(nn.Module):
    """Divides signals by their largest number in training, and by the running one in evaluation."""

    def __init__(self, has_bug: bool) -> None:
        super().__init__()
        self.register_buffer("largest", torch.ones(1, 3, 1))
        self.has_bug = has_bug

    def forward(self, signals: Tensor) -> Tensor:
        if not self.training:
            return signals / self.largest
        largest = signals.detach().abs().amax(dim=(0, 2), keepdim=True)
        if self.has_bug:
            _ = 0.9 * self.largest + 0.1 * largest
        else:
            self.largest.lerp_(largest, 0.1)
        return signals / largest


def scale_of_signals(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(RunningScale(has_bug), nn.Flatten(), nn.Linear(48, 2))
    check(model, nn.CrossEntropyLoss(), (5 * torch.randn(16, 3, 16), torch.arange(16) % 2))


class Gaps(nn.Module):
    """Fills a gap of each signal, which it hides; a bug tells the loss of the gap of another order of the batch."""

    def __init__(self, has_bug: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24))
        self.has_bug = has_bug

    def forward(self, signals: Tensor) -> tuple[Tensor, Tensor]:
        is_hidden = torch.arange(24) // 6 == torch.randint(0, 4, (len(signals), 1))
        return self.net(signals.masked_fill(is_hidden, 0)), is_hidden.flip(0) if self.has_bug else is_hidden


def gaps_of_others(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    signals = torch.randn(16, 24)

    def loss(outputs: Any, wanted: Tensor) -> Tensor:
        filled, is_hidden = outputs
        return ((filled - wanted).square() * is_hidden).sum() / is_hidden.sum()

    check(Gaps(has_bug), loss, (signals, signals))


CASES = [
    Case("gaps of other signals that count", gaps_of_others, "data.pairing"),
    Case("a tag that counts as padding", padded_tags, "data.ignore_handling"),
    Case("a mask of what has been standardised", standardised_before_the_mask, "data.ignore_handling"),
    Case("events that all belong to one recording", events_of_one_recording, "data.pairing"),
    Case("a running scale that is never written", scale_of_signals, "model.norm_mode"),
]
