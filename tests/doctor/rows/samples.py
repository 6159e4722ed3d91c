"""Programs whose loss mixes samples, or divides them in two ways."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.doctor.rows import Case
from tests.doctor.rows.losses import Coder, Tagger, make_net


def column_against_row(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    loss = lambda out, t: ((out if has_bug else out[:, 0]) - t).pow(2).mean()  # noqa: E731
    check(make_net(outputs=1), loss, (torch.randn(16, 6), torch.randn(16)))


def weights_against_errors(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)

    def loss(out: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        labels, weights = target
        errors = F.cross_entropy(out, labels, reduction="none")
        return (errors * (weights if has_bug else weights[:, 0])).mean()

    check(make_net(), loss, (torch.randn(16, 6), torch.randint(0, 4, (16,)), torch.rand(16, 1)))


def divergence_is_a_sum_over_the_batch(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    values = torch.randn(16, 6)

    def loss(out: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        decoded, mean, log_variance = out
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        return F.mse_loss(decoded, target) + (divergence.sum() if has_bug else divergence.mean())

    check(Coder(), loss, (values, values))


def boxes_are_summed_and_classes_averaged(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)

    def loss(out: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        labels, boxes = target
        errors = (out[:, 4:] - boxes).abs().sum(1)
        return F.cross_entropy(out[:, :4], labels) + (errors.sum() if has_bug else errors.mean())

    check(make_net(outputs=8), loss, (torch.randn(16, 6), torch.randint(0, 4, (16,)), torch.rand(16, 4)))


def make_padded() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    tokens = torch.randint(1, 11, (8, 12))
    for row, length in enumerate((12, 9, 7, 10, 6, 11, 8, 5)):
        tokens[row, length:] = 0
    return tokens, tokens % 5


def padding_counts(has_bug: bool, watch: Any, check: Any) -> None:
    tokens, tags = make_padded()
    tags = tags if has_bug else tags.masked_fill(tokens == 0, -100)
    check(Tagger(), lambda out, t: F.cross_entropy(out.transpose(1, 2), t), (tokens, tags))


def padded_frames_count(has_bug: bool, watch: Any, check: Any) -> None:
    tokens, _ = make_padded()
    is_real = (tokens > 0)[..., None]
    series = torch.randn(8, 12, 3) * is_real

    def loss(out: Tensor, target: Tensor) -> Tensor:
        errors = (out - target).pow(2)
        return errors.mean() if has_bug else (errors * is_real).sum() / is_real.sum()

    check(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), loss, (series, series.roll(1, -1)))


def end_is_padding(has_bug: bool, watch: Any, check: Any) -> None:
    tokens, _ = make_padded()
    tokens = torch.where(tokens == 2, 3, tokens)  # 2 ends a row
    lengths = (tokens > 0).sum(1)
    tokens[torch.arange(8), lengths - 1] = 2
    padding = 2 if has_bug else 0
    tokens = torch.where(torch.arange(12) < lengths[:, None], tokens, padding)
    target = tokens.masked_fill(tokens == padding, -100)
    loss = lambda out, t: F.cross_entropy(out[:, :-1].transpose(1, 2), t[:, 1:])  # noqa: E731
    check(Tagger(), loss, (tokens, target))


def rest_is_hidden_by_the_last_note(has_bug: bool, watch: Any, check: Any) -> None:
    notes, _ = make_padded()
    is_real = notes > 0
    notes = torch.where(notes == 9, 8, notes)
    ending = torch.where(is_real, notes, 9)
    is_counted = is_real if has_bug else is_real | is_real.roll(1, 1)

    def loss(out: Tensor, target: Tensor) -> Tensor:
        errors = F.cross_entropy(out.transpose(1, 2), target, reduction="none")
        return (errors * is_counted[:, 1:]).sum() / is_counted[:, 1:].sum()

    check(Tagger(), loss, (ending[:, :-1], ending[:, 1:]))


def make_learnable(num: int, has_bug: bool, classes: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    inputs = torch.randn(4 * num, 6)
    target = inputs[:, :classes].argmax(1) if classes else inputs[:, :2] * 2
    batches = [(inputs[n : n + num], target[n : n + num]) for n in range(0, 4 * num, num)]
    return [(x, y[torch.randperm(num)] if has_bug else y) for x, y in batches]


def labels_of_other_samples(has_bug: bool, watch: Any, check: Any) -> None:
    check(make_net(), nn.CrossEntropyLoss(), make_learnable(32, has_bug, 3))


def numbers_of_other_samples(has_bug: bool, watch: Any, check: Any) -> None:
    check(make_net(outputs=2), nn.MSELoss(), make_learnable(32, has_bug, 0))


CASES = [
    Case("column against row", column_against_row, "loss.form"),
    Case("weights against errors", weights_against_errors, "loss.form"),
    Case("divergence is a sum over the batch", divergence_is_a_sum_over_the_batch, "loss.normaliser"),
    Case("boxes are summed and classes averaged", boxes_are_summed_and_classes_averaged, "loss.normaliser"),
    Case("padding counts", padding_counts, "data.padding"),
    Case("padded frames count", padded_frames_count, "data.padding"),
    Case("end is padding", end_is_padding, "data.padding"),
    Case("rest is hidden by the last note", rest_is_hidden_by_the_last_note, "data.padding"),
    Case("labels of other samples", labels_of_other_samples, "data.pairing"),
    Case("numbers of other samples", numbers_of_other_samples, "data.pairing"),
]
