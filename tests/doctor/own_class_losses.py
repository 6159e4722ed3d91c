"""Faulty and healthy losses over classes, as users write them (`own_losses.py` judges them)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.loss import Loss


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


def _confusion(logits: Tensor, label: Tensor) -> Tensor:
    return (logits.argmax(dim=1) != label).sum().to(logits)


CLASS_FAULTS: dict[str, tuple[type[Loss], str]] = {
    "minus cross entropy": (over_classes(lambda z, y: -ce_sum(z, y)), "loss.sign"),
    "log p without its minus": (over_classes(lambda z, y: _true_p(z, y).add(1e-9).log().sum()), "loss.sign"),
    "minus a squared error of probabilities": (
        over_classes(lambda z, y: -(z.softmax(1) - _one_hot(z, y)).square().sum()),
        "loss.sign",
    ),
    "1 - p for p inside the logarithm": (
        over_classes(lambda z, y: -(1 - _true_p(z, y) + 1e-9).log().sum()),
        "loss.sign",
    ),
    "binary terms exchanged": (over_classes(_exchanged_binary), "loss.sign"),
    "labels one class too low": (over_classes(lambda z, y: ce_sum(z, (y - 1).clamp(min=0))), "loss.form"),
    "two classes exchanged": (
        over_classes(lambda z, y: ce_sum(z, torch.where(y == 0, 1, torch.where(y == 1, 0, y)))),
        "loss.form",
    ),
    "NLL of probabilities": (over_classes(lambda z, y: F.nll_loss(z.softmax(1), y, reduction="sum")), "loss.form"),
    "NLL of logits": (over_classes(lambda z, y: F.nll_loss(z, y, reduction="sum")), "loss.form"),
    "KL of probabilities": (
        over_classes(lambda z, y: F.kl_div(z.softmax(1), _one_hot(z, y), reduction="sum")),
        "loss.form",
    ),
    "cross entropy with its arguments swapped": (
        over_classes(lambda z, y: F.cross_entropy(_one_hot(z, y), z.softmax(1), reduction="sum")),
        "loss.form",
    ),
    "focal factor p for 1 - p": (
        over_classes(lambda z, y: -(_true_p(z, y) ** 2 * _true_p(z, y).add(1e-9).log()).sum()),
        "loss.form",
    ),
    "regresses the number of the class": (
        over_classes(
            lambda z, y: (z.softmax(1) @ torch.arange(z.shape[1]).to(z) - y.to(z)).square().sum(),
        ),
        "loss.form",
    ),
    "softmax before cross entropy": (
        over_classes(lambda z, y: ce_sum(z.softmax(1), y)),
        "loss.double_softmax",
    ),
    "sigmoid before cross entropy": (
        over_classes(lambda z, y: ce_sum(z.sigmoid(), y)),
        "loss.double_softmax",
    ),
    "sigmoid before BCE with logits": (over_classes(lambda z, y: _binary(z.sigmoid(), y)), "loss.double_softmax"),
    "softmax before BCE with logits": (over_classes(lambda z, y: _binary(z.softmax(1), y)), "loss.double_softmax"),
    "softmax before smoothed cross entropy": (
        over_classes(lambda z, y: ce_sum(z.softmax(1), y, label_smoothing=0.2)),
        "loss.double_softmax",
    ),
    "a mean for the sum": (over_classes(lambda z, y: F.cross_entropy(z, y)), "loss.normaliser"),
    "a mean times the classes": (over_classes(lambda z, y: F.cross_entropy(z, y) * z.shape[1]), "loss.normaliser"),
    "a sum times the batch": (over_classes(lambda z, y: ce_sum(z, y) * len(y)), "loss.normaliser"),
    "a count of one": (over_classes(ce_sum, lambda label: 1), "loss.normaliser"),
    "a column against a row": (
        over_classes(lambda z, y: (F.cross_entropy(z, y, reduction="none")[:, None] * (1 + y).to(z)).sum()),
        "loss.normaliser",
    ),
    "a squared error that broadcasts": (
        over_classes(lambda z, y: (z.softmax(1)[:, :1] - y / z.shape[1]).square().sum()),
        "loss.form",
    ),
    "labels of the next sample": (over_classes(lambda z, y: ce_sum(z, y.roll(1))), "data.pairing"),
    "weights shifted by one": (_weighted(lambda label, classes: (label + 1) % classes), "loss.weights"),
    "weights in reverse": (_weighted(lambda label, classes: classes - 1 - label), "loss.weights"),
    "weights that are shares": (FrequentWeighMore, "loss.weights"),
    "class 0 left out": (
        over_classes(lambda z, y: ce_sum(z, y, ignore_index=0), lambda label: (label > 0).sum()),
        "data.ignore_handling",
    ),
    "class 0 left out, and counted": (
        over_classes(lambda z, y: ce_sum(z, y, ignore_index=0)),
        "data.ignore_handling",
    ),
    "logits divided by the batch's variance": (over_classes(_divided_by_spread), "loss.form"),
    "logits less the batch's mean": (over_classes(lambda z, y: ce_sum(z - z.mean(0), y)), "loss.form"),
    "a constant with a gradient": (over_classes(lambda z, y: (z - z.detach()).sum() + 2.0 * len(y)), "loss.detached"),
    "a table read one entry too far": (_longer(1), "loss.weights"),
    "logits detached": (over_classes(lambda z, y: ce_sum(z.detach(), y)), "loss.detached"),
    "a number for a tensor": (
        over_classes(lambda z, y: torch.tensor(ce_sum(z, y).item())),
        "loss.detached",
    ),
    "counts errors": (over_classes(_confusion), "loss.detached"),
    "probabilities detached": (
        over_classes(lambda z, y: -(_true_p(z, y).detach().log() + 0 * z.sum(1)).sum()),
        "loss.detached",
    ),
    "edited behind autograd": (over_classes(_edited_behind_autograd), "loss.inplace"),
    "writes into the labels": (Writes, "loss.inplace"),
    "log of a softmax": (over_classes(lambda z, y: -_true_p(z, y).log().sum()), "loss.form"),
    "a scale that no optimiser knows": (PlainTensor, "optim.param_coverage"),
    "a layer in a list": (ListedLayer, "model.unregistered"),
}


def _smoothed(logits: Tensor, label: Tensor) -> Tensor:
    return ce_sum(logits, label, label_smoothing=0.3, weight=1 + torch.arange(logits.shape[1]).to(logits))


CLASS_HEALTHY: dict[str, type[Loss]] = {
    "a table with an entry more, which nothing reads": _longer(0),
    "cross entropy": over_classes(ce_sum),
    "cross entropy of log probabilities": over_classes(lambda z, y: ce_sum(z.log_softmax(1), y)),
    "smoothed with class weights": over_classes(_smoothed),
    "focal": over_classes(
        lambda z, y: -((1 - _true_p(z, y)) ** 2 * z.log_softmax(1).gather(1, y[:, None])[:, 0]).sum()
    ),
    "squared error of probabilities": over_classes(lambda z, y: (z.softmax(1) - _one_hot(z, y)).square().sum()),
    "1 - p": over_classes(lambda z, y: (1 - _true_p(z, y)).sum()),
    "generalised cross entropy": over_classes(lambda z, y: ((1 - _true_p(z, y).clamp(min=1e-7).pow(0.7)) / 0.7).sum()),
    "BCE with logits": over_classes(_binary),
    "margin": over_classes(lambda z, y: F.multi_margin_loss(z, y, reduction="sum")),
    "squared error of logits": over_classes(lambda z, y: (z - _one_hot(z, y)).square().sum()),
    "the hardest half of a batch": over_classes(
        lambda z, y: F.cross_entropy(z, y, reduction="none").topk(-(-len(y) // 2)).values.sum(),
        lambda label: -(-len(label) // 2),
    ),
    "cross entropy times a constant": over_classes(lambda z, y: 100 * ce_sum(z, y)),
    "cross entropy at a temperature": over_classes(lambda z, y: ce_sum(z / 4, y)),
    "angles with a margin": over_classes(
        lambda z, y: ce_sum(16 * (z.clamp(-0.999, 0.999).acos() + 0.2 * _one_hot(z, y)).cos(), y)
    ),
    "cosines times 16": over_classes(lambda z, y: ce_sum(16 * F.normalize(z, dim=1), y)),
    "a class's own weight": _weighted(lambda label, classes: label),
}
