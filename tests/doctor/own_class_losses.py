"""Faulty and healthy losses over classes, as users write them (`own_losses.py` judges them)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.loss import Loss

Losses = dict[str, Any]
"""Losses by name: a class, or a function that a helper makes one of."""
Faults = dict[str, Losses]
"""Losses by the cause that must come first."""


def over_classes(term: Callable[[Tensor, Tensor], Tensor], count: Callable[[Tensor], Any] = Tensor.numel) -> type[Loss]:
    """A loss of logits (N, C) and labels (N,), whichever form they come in."""

    class OverClasses(Loss):
        def __init__(self) -> None:
            super().__init__()

        def count(self, *, label: Tensor) -> Tensor:
            return torch.as_tensor(count(label))

        def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
            return term(logits.flatten(0, -2), label.flatten())

    return OverClasses


def ce_sum(logits: Tensor, label: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(logits, label, reduction="sum", **options)


def _one_hot(logits: Tensor, label: Tensor) -> Tensor:
    return F.one_hot(label, logits.shape[1]).to(logits.dtype)


_TABLE = torch.linspace(0.5, 2.0, 13)
"""Weights of the twelve classes of clouds, and one more."""


def weigh_by_next(logits: Tensor, label: Tensor) -> Tensor:
    table = _TABLE if logits.shape[1] == 12 else torch.ones(logits.shape[1] + 1)
    return (F.cross_entropy(logits, label, reduction="none") * table[label + 1].to(logits)).sum()


def _longer(shift: int) -> type[Loss]:
    """Cross entropy times a weight of the label's class, from entry `shift` on of a table with one more."""

    class Longer(Loss):
        def __init__(self, *, num_classes: int) -> None:
            super().__init__()
            self.register_buffer("by_class", (1.0 + torch.arange(num_classes + 1)).sqrt(), persistent=False)

        def count(self, *, label: Tensor) -> Tensor:
            return torch.tensor(label.numel())

        def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
            each = F.cross_entropy(logits.flatten(0, -2), label.flatten(), reduction="none")
            return (each * self.by_class[label.flatten() + shift].to(each)).sum()

    return Longer


def _divided_by_spread(logits: Tensor, label: Tensor) -> Tensor:
    return ce_sum(logits / (0.1 + logits.var(0, correction=0, keepdim=True).detach()), label)


def _true_p(logits: Tensor, label: Tensor) -> Tensor:
    return logits.softmax(dim=1).gather(1, label[:, None]).squeeze(1)


def _binary(logits: Tensor, label: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, _one_hot(logits, label), reduction="sum")


def _exchanged_binary(logits: Tensor, label: Tensor) -> Tensor:
    p, t = logits.sigmoid(), _one_hot(logits, label)
    return -(t * (1 - p + 1e-7).log() + (1 - t) * (p + 1e-7).log()).sum()


def _edited_behind_autograd(logits: Tensor, label: Tensor) -> Tensor:
    p = logits.sigmoid()
    p.data.mul_(0.9)
    t = _one_hot(logits, label)
    return -(t * p.log() + (1 - t) * (1 - p).log()).sum()


def _weighted(index: Callable[[Tensor, int], Tensor]) -> Any:
    class Weighted(Loss):
        """Cross entropy times the weight of the label's class, as the table `class_weight` lists them."""

        def __init__(self, *, num_classes: int) -> None:
            super().__init__()
            self.num_classes = num_classes
            self.register_buffer("balance", 1 + torch.arange(float(num_classes)), persistent=False)

        def count(self, *, label: Tensor) -> Tensor:
            return self.balance[index(label, self.num_classes)].sum()

        def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
            rows, labels = logits.flatten(0, -2), label.flatten()
            each = F.cross_entropy(rows, labels, reduction="none")
            return (self.balance[index(labels, self.num_classes)].to(rows) * each).sum()

    return Weighted


class FrequentWeighMore(Loss):
    """Weights are shares of the classes, and not one over them."""

    def __init__(self, *, class_counts: tuple[int, ...]) -> None:
        super().__init__()
        counts = torch.tensor(class_counts, dtype=torch.float64)
        self.register_buffer("share", counts / counts.sum() * len(counts), persistent=False)

    def count(self, *, label: Tensor) -> Tensor:
        return self.share[label].sum()

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), label.flatten(), self.share.to(logits), reduction="sum")


class PlainTensor(Loss):
    """Learns a scale that no optimiser knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones((), requires_grad=True)

    def count(self, *, label: Tensor) -> Tensor:
        return torch.tensor(label.numel())

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return ce_sum((self.scale * logits).flatten(0, -2), label.flatten())


class ListedLayer(PlainTensor):
    """Learns a layer in a plain list."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.scale = torch.ones(())
        self.layers = [nn.Linear(num_classes, num_classes)]

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return ce_sum(self.layers[0].to(logits)(logits).flatten(0, -2), label.flatten())


class Writes(PlainTensor):
    """Writes into the labels that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(())

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        label[label == 1] = 0
        return ce_sum(logits.flatten(0, -2), label.flatten())


def _focal(logits: Tensor, label: Tensor) -> Tensor:
    return -((1 - _true_p(logits, label)) ** 2 * logits.log_softmax(1).gather(1, label[:, None])[:, 0]).sum()


def _exchange_two(label: Tensor) -> Tensor:
    return torch.where(label == 0, 1, torch.where(label == 1, 0, label))


def _regress_number(logits: Tensor, label: Tensor) -> Tensor:
    return (logits.softmax(1) @ torch.arange(logits.shape[1]).to(logits) - label.to(logits)).square().sum()


def _column_against_row(logits: Tensor, label: Tensor) -> Tensor:
    return (F.cross_entropy(logits, label, reduction="none")[:, None] * (1 + label).to(logits)).sum()


CLASS_FAULTS: Faults = {
    "loss.sign": {
        "minus cross entropy": lambda z, y: -ce_sum(z, y),
        "log p without its minus": lambda z, y: _true_p(z, y).add(1e-9).log().sum(),
        "minus a squared error of probabilities": lambda z, y: -(z.softmax(1) - _one_hot(z, y)).square().sum(),
        "1 - p for p inside the logarithm": lambda z, y: -(1 - _true_p(z, y) + 1e-9).log().sum(),
        "binary terms exchanged": _exchanged_binary,
    },
    "loss.form": {
        "labels one class too low": lambda z, y: ce_sum(z, (y - 1).clamp(min=0)),
        "two classes exchanged": lambda z, y: ce_sum(z, _exchange_two(y)),
        "NLL of probabilities": lambda z, y: F.nll_loss(z.softmax(1), y, reduction="sum"),
        "NLL of logits": lambda z, y: F.nll_loss(z, y, reduction="sum"),
        "KL of probabilities": lambda z, y: F.kl_div(z.softmax(1), _one_hot(z, y), reduction="sum"),
        "cross entropy with its arguments swapped": lambda z, y: ce_sum(_one_hot(z, y), z.softmax(1)),
        "focal factor p for 1 - p": lambda z, y: -(_true_p(z, y) ** 2 * _true_p(z, y).add(1e-9).log()).sum(),
        "regresses the number of the class": _regress_number,
        "a squared error that broadcasts": lambda z, y: (z.softmax(1)[:, :1] - y / z.shape[1]).square().sum(),
        "logits divided by the batch's variance": _divided_by_spread,
        "logits less the batch's mean": lambda z, y: ce_sum(z - z.mean(0), y),
        "log of a softmax": lambda z, y: -_true_p(z, y).log().sum(),
    },
    "loss.double_softmax": {
        "softmax before cross entropy": lambda z, y: ce_sum(z.softmax(1), y),
        "sigmoid before cross entropy": lambda z, y: ce_sum(z.sigmoid(), y),
        "sigmoid before BCE with logits": lambda z, y: _binary(z.sigmoid(), y),
        "softmax before BCE with logits": lambda z, y: _binary(z.softmax(1), y),
        "softmax before smoothed cross entropy": lambda z, y: ce_sum(z.softmax(1), y, label_smoothing=0.2),
    },
    "loss.normaliser": {
        "a mean for the sum": lambda z, y: F.cross_entropy(z, y),
        "a mean times the classes": lambda z, y: F.cross_entropy(z, y) * z.shape[1],
        "a sum times the batch": lambda z, y: ce_sum(z, y) * len(y),
        "a count of one": over_classes(ce_sum, lambda label: 1),
        "a column against a row": _column_against_row,
    },
    "data.pairing": {"labels of the next sample": lambda z, y: ce_sum(z, y.roll(1))},
    "loss.weights": {
        "weights shifted by one": _weighted(lambda label, classes: (label + 1) % classes),
        "weights in reverse": _weighted(lambda label, classes: classes - 1 - label),
        "weights that are shares": FrequentWeighMore,
        "a table read one entry too far": _longer(1),
    },
    "data.ignore_handling": {
        "class 0 left out": over_classes(lambda z, y: ce_sum(z, y, ignore_index=0), lambda label: (label > 0).sum()),
        "class 0 left out, and counted": lambda z, y: ce_sum(z, y, ignore_index=0),
    },
    "loss.detached": {
        "a constant with a gradient": lambda z, y: (z - z.detach()).sum() + 2.0 * len(y),
        "logits detached": lambda z, y: ce_sum(z.detach(), y),
        "a number for a tensor": lambda z, y: torch.tensor(ce_sum(z, y).item()),
        "counts errors": lambda z, y: (z.argmax(dim=1) != y).sum().to(z),
        "probabilities detached": lambda z, y: -(_true_p(z, y).detach().log() + 0 * z.sum(1)).sum(),
    },
    "loss.inplace": {"edited behind autograd": _edited_behind_autograd, "writes into the labels": Writes},
    "optim.param_coverage": {"a scale that no optimiser knows": PlainTensor},
    "model.unregistered": {"a layer in a list": ListedLayer},
}


def _smoothed(logits: Tensor, label: Tensor) -> Tensor:
    return ce_sum(logits, label, label_smoothing=0.3, weight=1 + torch.arange(logits.shape[1]).to(logits))


CLASS_HEALTHY: Losses = {
    "a table with an entry more, which nothing reads": _longer(0),
    "cross entropy": ce_sum,
    "cross entropy of log probabilities": lambda z, y: ce_sum(z.log_softmax(1), y),
    "smoothed with class weights": _smoothed,
    "focal": _focal,
    "squared error of probabilities": lambda z, y: (z.softmax(1) - _one_hot(z, y)).square().sum(),
    "1 - p": lambda z, y: (1 - _true_p(z, y)).sum(),
    "generalised cross entropy": lambda z, y: ((1 - _true_p(z, y).clamp(min=1e-7).pow(0.7)) / 0.7).sum(),
    "BCE with logits": _binary,
    "margin": lambda z, y: F.multi_margin_loss(z, y, reduction="sum"),
    "squared error of logits": lambda z, y: (z - _one_hot(z, y)).square().sum(),
    "the hardest half of a batch": over_classes(
        lambda z, y: F.cross_entropy(z, y, reduction="none").topk(-(-len(y) // 2)).values.sum(),
        lambda label: -(-len(label) // 2),
    ),
    "cross entropy times a constant": lambda z, y: 100 * ce_sum(z, y),
    "cross entropy at a temperature": lambda z, y: ce_sum(z / 4, y),
    "angles with a margin": lambda z, y: ce_sum(16 * (z.clamp(-0.999, 0.999).acos() + 0.2 * _one_hot(z, y)).cos(), y),
    "cosines times 16": lambda z, y: ce_sum(16 * F.normalize(z, dim=1), y),
    "a class's own weight": _weighted(lambda label, classes: label),
}
