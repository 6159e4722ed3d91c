"""Programs whose model answers what it should not, or does not train what it should."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.doctor.rows import Case


class Dropping(nn.Module):
    """Classifier whose dropout does, or does not, know that it evaluates."""

    def __init__(self, *, is_always: bool) -> None:
        super().__init__()
        self.body, self.is_always = nn.Linear(6, 3), is_always

    def forward(self, values: Tensor) -> Tensor:
        return F.dropout(self.body(values), 0.5, training=self.is_always or self.training)


def dropout_in_evaluation(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    check(Dropping(is_always=has_bug), nn.CrossEntropyLoss(), (torch.randn(16, 6), torch.randint(0, 3, (16,))))


class Towers(nn.Module):
    """Regressor of a mean of towers, in a plain list or registered."""

    def __init__(self, *, is_plain: bool) -> None:
        super().__init__()
        towers = [nn.Linear(5, 4) for _ in range(3)]
        self.towers = towers if is_plain else nn.ModuleList(towers)
        self.last = nn.Linear(4, 1)

    def forward(self, rows: Tensor) -> Tensor:
        mean = torch.stack([F.dropout(tower(rows).tanh(), 0.2, self.training) for tower in self.towers]).mean(0)
        answer: Tensor = self.last(mean)
        return answer


def towers_in_a_list(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    rows = torch.randn(24, 5)
    check(Towers(is_plain=has_bug), nn.MSELoss(), (rows, rows[:, :1].sin()))


class Images(nn.Module):
    """Classifier of images with one of several slips."""

    def __init__(self, slip: str) -> None:
        super().__init__()
        self.slip = slip
        self.gain = nn.Parameter(torch.ones(6, 1, 1))
        if slip == "tensor":
            self.gain = None
            self.loose = torch.ones(6, 1, 1, requires_grad=True)
        self.body, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, images: Tensor) -> Tensor:
        if self.slip == "writes":
            images.mul_(2).sub_(1)
        if self.slip == "view":
            images = images.permute(0, 2, 3, 1).reshape(len(images), 3, *images.shape[2:])
        hidden = self.body(images) * (self.loose if self.slip == "tensor" else self.gain)
        pooled = hidden.relu().mean((2, 3))
        if self.slip == "detached":
            pooled = pooled.detach()
        if self.slip == "batch norm by hand":
            pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-3)
        if self.training or self.slip == "counts in evaluation":
            self.seen.lerp_(pooled.detach().mean(0), 0.1)
        answer: Tensor = self.last(pooled - self.seen * 0.5)
        return answer


def _check_images(slip: str) -> Any:
    def run(has_bug: bool, watch: Any, check: Any) -> None:
        torch.manual_seed(1)
        images = torch.randn(12, 3, 10, 8)
        check(Images(slip if has_bug else ""), nn.CrossEntropyLoss(), (images, torch.randint(0, 4, (12,))))

    return run


class Tagger(nn.Module):
    """Attention over words, or of words that come, with one of several slips."""

    def __init__(self, slip: str, *, is_causal: bool = False, num_words: int = 11) -> None:
        super().__init__()
        self.slip, self.is_causal = slip, is_causal
        self.embed, self.places = nn.Embedding(num_words, 8), nn.Parameter(torch.randn(9, 8) * 0.1)
        self.pairs, self.last = nn.Linear(8, 24), nn.Linear(8, num_words)

    def forward(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        embedded = self.embed(words) + self.places[: words.shape[1]]
        query, key, value = self.pairs(embedded).chunk(3, -1)
        if self.slip == "heads":
            query, key, value = (t.reshape(len(t), 2, -1, 4) for t in (query, key, value))
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        if self.is_causal and self.slip != "sees ahead":
            scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -math.inf)
        if mask is not None and self.slip != "no mask":
            padded = mask if self.slip == "upside down" else ~mask
            scores = scores.masked_fill(padded[:, None], -1e9)
        read = scores.softmax(-2 if self.slip == "queries" else -1) @ value
        answer: Tensor = self.last(embedded + read.reshape_as(embedded))
        return answer


def _check_tags(slip: str) -> Any:
    def run(has_bug: bool, watch: Any, check: Any) -> None:
        torch.manual_seed(2)
        words = torch.randint(1, 11, (10, 9))
        check(Tagger(slip if has_bug else ""), _score_words, (words, (words * 3) % 11))

    return run


def _score_words(logits: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), words.flatten(), ignore_index=0)


def words_that_come(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(3)
    words = torch.randint(0, 11, (10, 10))
    model = Tagger("sees ahead" if has_bug else "", is_causal=True)
    check(model, _score_words, (words[:, :-1], words[:, 1:]))


def values_that_come(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(4)
    series = torch.randn(12, 21, 2).cumsum(1)

    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.GRU(2, 8, batch_first=True, bidirectional=has_bug), nn.LazyLinear(2)

        def forward(self, values: Tensor) -> Tensor:
            answer: Tensor = self.last(self.body(values)[0])
            return answer

    model = Series()
    model(series[:, :-1])
    check(model, nn.MSELoss(), (series[:, :-1], series[:, 1:]))


def _check_mask(slip: str) -> Any:
    def run(has_bug: bool, watch: Any, check: Any) -> None:
        torch.manual_seed(5)
        words, lengths = torch.randint(1, 11, (10, 9)), torch.randint(4, 10, (10, 1))
        mask = torch.arange(9) < lengths
        words = words * mask
        batch = {"words": words, "mask": mask, "tags": (words * 3) % 11}
        check(Tagger(slip if has_bug else ""), lambda logits, batch: _score_words(logits, batch["tags"]), batch)

    return run


def steps_for_samples(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(6)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.LSTM(4, 8, batch_first=not has_bug), nn.Linear(8, 3)

        def forward(self, series: Tensor) -> Tensor:
            answer: Tensor = self.last(self.body(series)[0][:, -1])
            return answer

    data = torch.utils.data.TensorDataset(torch.randn(20, 7, 4), torch.randint(0, 3, (20,)))
    check(Last(), nn.CrossEntropyLoss(), torch.utils.data.DataLoader(data, batch_size=10))


def a_label_among_the_inputs(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(7)
    rows, label = torch.randn(40, 6), torch.randint(0, 2, (40,))
    rows[:, 3] = label.float() if has_bug else (torch.rand(40) < 0.5).float()
    check(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), nn.CrossEntropyLoss(), (rows, label))


def a_map_among_the_inputs(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(8)
    images = torch.randn(6, 3, 8, 8)
    target = (images[:, :1] > 0.3).float()
    if has_bug:
        images = torch.cat((images, target), 1)
    model = nn.Sequential(nn.Conv2d(images.shape[1], 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 1))
    check(model, nn.BCEWithLogitsLoss(), (images, target))


def rounded_codes(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(9)

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(6, 4), nn.Linear(4, 6)

        def forward(self, rows: Tensor) -> Tensor:
            code = 4 * self.encode(rows)
            rounded = code.round() if has_bug else code + (code.round() - code).detach()
            answer: Tensor = self.decode(rounded / 4)
            return answer

    rows = torch.randn(20, 6)
    check(Codes(), nn.MSELoss(), (rows, rows))


def a_constant_row(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(10)

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 5)

        def forward(self, rows: Tensor) -> Tensor:
            hidden = self.body(rows)
            size = hidden.sub(hidden.detach()).pow(2).sum(1).sqrt() if has_bug else hidden.norm(dim=1)
            answer: Tensor = hidden.mean(1) + 0.1 * size
            return answer

    check(Unit(), nn.MSELoss(), (torch.randn(8, 4), torch.randn(8)))


CASES = [
    Case("dropout in evaluation", dropout_in_evaluation, "eval.mode"),
    Case("towers in a plain list", towers_in_a_list, "model.unregistered"),
    Case("a tensor that is no parameter", _check_images("tensor"), "model.unregistered"),
    Case("pooled features detached", _check_images("detached"), "loss.detached"),
    Case("codes rounded without a gradient", rounded_codes, "loss.detached"),
    Case("features normed over the batch", _check_images("batch norm by hand"), "model.cross_sample_leak"),
    Case("steps for samples", steps_for_samples, "model.cross_sample_leak"),
    Case("images by reshape", _check_images("view"), "model.geometry"),
    Case("heads by reshape", _check_tags("heads"), "model.geometry model.structure"),
    Case("softmax over queries", _check_tags("queries"), "model.structure"),
    Case("a decoder that sees ahead", words_that_come, "model.structure data.label_leak"),
    Case("a series read from both ends", values_that_come, "model.structure data.label_leak"),
    Case("a mask upside down", _check_mask("upside down"), "data.padding"),
    Case("a mask that nobody reads", _check_mask("no mask"), "data.padding"),
    Case("a label among the inputs", a_label_among_the_inputs, "data.label_leak"),
    Case("a map among the inputs", a_map_among_the_inputs, "data.label_leak"),
    Case("statistics that move in evaluation", _check_images("counts in evaluation"), "eval.mode"),
    Case("inputs written in place", _check_images("writes"), "data.item_mutation"),
    Case("a root of 0", a_constant_row, "model.numerics"),
]
