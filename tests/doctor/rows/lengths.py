"""Programs of series of stated lengths, filled up to the longest: what is read of them, and at which place."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from tests.doctor.rows import Cases

_WIDTH = 5


def draw(num: int = 96) -> list[tuple[Tensor, int]]:
    """Draw pulses of a gas sensor of 4 to 14 readings, whose last one tells the class."""
    classes, lengths = torch.randint(0, 3, (num,)).tolist(), torch.randint(4, 15, (num,)).tolist()
    series = [torch.randn(length, _WIDTH) for length in lengths]
    for one, number in zip(series, classes, strict=True):
        one[-1, number] += 3
    return list(zip(series, classes, strict=True))


def collate(rows: Any, *, form: str, pads: str) -> Any:
    series, labels = [one for one, _ in rows], torch.tensor([number for _, number in rows])
    lengths = torch.tensor([len(one) for one in series])
    if pads == "before":
        series = [one.flip(0) for one in series]
    filled = pad_sequence(series, batch_first=True)
    filled = filled.flip(1) if pads == "before" else filled
    lengths = torch.full_like(lengths, filled.shape[1]) if pads == "counted" else lengths
    if form == "mapping":
        return {"readings": filled, "durations": lengths, "label": labels}
    return (filled, lengths, labels) if form == "three" else ((filled, lengths), labels)


class Reader(nn.Module):
    """GRU over the readings; what is read at the end of each series, or behind the longest one."""

    def __init__(self, how: str, bug: bool) -> None:
        super().__init__()
        self.how, self.bug = how, bug
        self.gru, self.norm = nn.GRU(_WIDTH, 16, batch_first=True), nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 3)

    def forward(self, readings: Tensor, durations: Tensor) -> Tensor:
        if self.how == "packed":
            packed = pack_padded_sequence(readings, durations.cpu(), batch_first=True, enforce_sorted=False)
            states = pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]
        elif self.how == "sorted":
            order = durations.argsort(descending=True)
            packed = pack_padded_sequence(readings[order], durations[order].cpu(), batch_first=True)
            states = pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]
            states = states if self.bug else states[order.argsort()]
        else:
            states = self.gru(readings)[0]
        if self.how == "largest":
            is_true = torch.arange(states.shape[1]) < durations[:, None]
            filled = states if self.bug else states.masked_fill(~is_true[..., None], -torch.inf)
            return self.last(self.norm(filled.amax(1)))
        ends = durations - 1
        if self.bug and self.how != "sorted":
            ends = torch.full_like(ends, states.shape[1] - 1)
        return self.last(self.norm(states[torch.arange(len(states)), ends]))


def read(bug: bool, *, how: str, form: str = "three") -> tuple[Any, ...]:
    loader = DataLoader(draw(), 16, shuffle=True, collate_fn=partial(collate, form=form, pads="behind"))
    return Reader(how, bug), nn.CrossEntropyLoss(), loader


def fill(bug: bool, *, pads: str) -> tuple[Any, ...]:
    """A network that reads its series by their lengths, of a collate that counts otherwise."""
    loader = DataLoader(
        draw(), 16, shuffle=True, collate_fn=partial(collate, form="three", pads=pads if bug else "behind")
    )
    return Reader("packed", False), F.cross_entropy, loader


_PADDING = "data.padding"
CASES: Cases = {
    "the last state of packed series": (_PADDING, partial(read, how="packed")),
    "the last state of packed series by names": (_PADDING, partial(read, how="packed", form="mapping")),
    "the last state of packed series in a pair": (_PADDING, partial(read, how="packed", form="pair")),
    "the last state behind padding": (_PADDING, partial(read, how="plain")),
    "the largest state of padding": (_PADDING, partial(read, how="largest")),
    "series that are sorted and not turned back": (
        "model.cross_sample_leak model.structure data.pairing",
        partial(read, how="sorted"),
    ),
    "series filled up before, read from the front": (_PADDING, partial(fill, pads="before")),
    "lengths that count the padding": (_PADDING, partial(fill, pads="counted")),
}
