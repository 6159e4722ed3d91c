"""Programs with an evaluation of their own, whose figure depends on what it should not: batches, order, mode, past."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.doctor.rows import Cases

NUM, SIZE, CLASSES = 150, 16, 3


class Rows(TensorDataset):
    """Rows of 8 numbers with a class; `targets` are all classes."""

    def __init__(self) -> None:
        rows = torch.randn(NUM, 8)
        self.targets = (rows @ torch.randn(8, CLASSES) + torch.randn(NUM, CLASSES)).argmax(1)
        super().__init__(rows, self.targets)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, CLASSES))


def predict(model: nn.Module, loader: Any, *, is_evaluated: bool = True) -> list[tuple[Tensor, Tensor]]:
    if is_evaluated:
        model.eval()
    with torch.no_grad():
        return [(model(rows), labels) for rows, labels in loader]


def join(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    answers, truth = F.one_hot(logits.argmax(1), CLASSES), F.one_hot(labels, CLASSES)
    hits = (answers * truth).sum(0)
    return (2 * hits / (answers.sum(0) + truth.sum(0)).clamp(min=1)).mean().item()


def correlation(logits: Tensor, labels: Tensor) -> float:
    return torch.corrcoef(torch.stack([logits[:, 0], labels.float()]))[0, 1].item()


def ranking(logits: Tensor, labels: Tensor) -> float:
    """Area under the curve of the first class against the others."""
    scores, is_first = logits[:, 0], labels == 0
    return (scores[is_first][:, None] > scores[~is_first][None]).float().mean().nan_to_num(0.5).item()


def of_batches(figure: Callable[[Tensor, Tensor], float]) -> Callable[[bool], Any]:
    """Compute a figure that is no mean over samples in each batch."""

    def make(bug: bool) -> Any:
        def score(model: nn.Module, loader: Any) -> float:
            pairs = predict(model, loader)
            return sum(figure(*pair) for pair in pairs) / len(pairs) if bug else figure(*join(pairs))

        return score

    return make


def short_batch(bug: bool) -> Any:
    def score(model: nn.Module, loader: Any) -> dict[str, float]:
        pairs = predict(model, loader)
        losses = [F.cross_entropy(*pair).item() * (1 if bug else len(pair[1])) for pair in pairs]
        return {"loss": sum(losses) / (len(pairs) if bug else sum(len(labels) for _, labels in pairs))}

    return score


def summed(bug: bool) -> Any:
    def score(model: nn.Module, loader: Any) -> float:
        reduction = "mean" if bug else "sum"
        return sum(F.cross_entropy(*pair, reduction=reduction).item() for pair in predict(model, loader)) / NUM

    return score


class Counter:
    """Accuracy that is updated by batches."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.hits, self.total = torch.zeros(()), 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.hits += (logits.argmax(1) == labels).sum()
        self.total += len(labels)


def kept_counts(bug: bool) -> Any:
    counter = Counter()

    def score(model: nn.Module, loader: Any) -> float:
        if not bug:
            counter.reset()
        for pair in predict(model, loader):
            counter.update(*pair)
        return float(counter.hits) / counter.total

    return score


def kept_default(bug: bool) -> Any:
    def score(model: nn.Module, loader: Any, pairs: list[Any] | None = [] if bug else None) -> float:
        pairs = [] if pairs is None else pairs
        pairs += predict(model, loader)
        return macro_f1(*join(pairs))

    return score


class Trainer:
    """Program with its evaluation as a method, and what it has seen as an attribute."""

    def __init__(self, *, bug: bool) -> None:
        self.bug, self.answers = bug, list[Tensor]()

    def evaluate(self, model: nn.Module, loader: Any) -> float:
        self.answers = self.answers if self.bug else []
        pairs = predict(model, loader)
        self.answers += [logits.argmax(1) == labels for logits, labels in pairs]
        return torch.cat(self.answers).float().mean().item()


def no_eval(bug: bool) -> Any:
    return lambda model, loader: accuracy(*join(predict(model, loader, is_evaluated=not bug)))


def trains(bug: bool) -> Any:
    def score(model: nn.Module, loader: Any) -> float:
        model.train(bug)
        return accuracy(*join(predict(model, loader, is_evaluated=False)))

    return score


def stored_targets(bug: bool) -> Any:
    def score(model: nn.Module, loader: Any) -> float:
        logits, labels = join(predict(model, loader))
        return accuracy(logits, loader.dataset.targets if bug else labels)

    return score


def all_but_the_last(bug: bool) -> Any:
    def score(loader: Any, net: nn.Module) -> float:
        net.eval()
        hits = total = 0
        batches = iter(loader)
        for _ in range(len(loader) - bug):
            rows, labels = next(batches)
            hits += int((net(rows).argmax(1) == labels).sum())
            total += len(labels)
        return hits / total

    return score


def with_gradients(bug: bool) -> Any:
    def score(model: nn.Module, loader: Any) -> float:
        model.eval()
        losses = []
        for rows, labels in loader:
            with torch.set_grad_enabled(bug):
                loss = F.cross_entropy(model(rows), labels, reduction="sum")
            if bug:
                loss.backward()
            losses.append(loss.item())
        return sum(losses) / len(loader.dataset)

    return score


def program(score: Any, *, evaluation: Any = None) -> tuple[Any, ...]:
    """Make model, loss, loader and options of a check with a score."""
    evaluation = DataLoader(Rows(), SIZE) if evaluation is None else evaluation
    return network(), nn.CrossEntropyLoss(), DataLoader(Rows(), SIZE, shuffle=True), evaluation, score


def closed_over(bug: bool) -> tuple[Any, ...]:
    """Score without arguments, of a model and a loader that it reads."""
    model, loss, training, evaluation, _ = program(None)

    def validate() -> float:
        pairs = predict(model, evaluation)
        return sum(macro_f1(*pair) for pair in pairs) / len(pairs) if bug else macro_f1(*join(pairs))

    return model, loss, training, evaluation, validate


def listed(bug: bool) -> tuple[Any, ...]:
    """Evaluation on a list of batches."""
    rows = Rows()
    batches = [(rows.tensors[0][i : i + SIZE], rows.targets[i : i + SIZE]) for i in range(0, NUM, SIZE)]
    return program(of_batches(macro_f1)(bug), evaluation=batches)


def _check(subject: tuple[Any, ...]) -> tuple[Any, ...]:
    model, loss, training, evaluation, score = subject
    return model, loss, training, {"evaluation": evaluation, "score": score, "budget_s": 20.0}.items()


def _bind(make: Callable[[bool], Any]) -> Callable[[bool], tuple[Any, ...]]:
    return lambda bug: _check(program(make(bug)))


_SCORES: dict[str, tuple[str, Callable[[bool], Any]]] = {
    "f1 of batches": ("eval.aggregation", of_batches(macro_f1)),
    "means of batches, the last short": ("eval.aggregation", short_batch),
    "area under the curve of batches": ("eval.aggregation", of_batches(ranking)),
    "counts that are not reset": ("eval.aggregation", kept_counts),
    "no eval": ("eval.mode", no_eval),
    "targets in the order of the set": ("eval.aggregation", stored_targets),
    "all but the last batch": ("eval.aggregation", all_but_the_last),
    "correlation of batches": ("eval.aggregation", of_batches(correlation)),
    "sum of means by number of samples": ("eval.aggregation", summed),
    "a list as a default": ("eval.aggregation", kept_default),
    "answers of earlier calls": ("eval.aggregation", lambda bug: Trainer(bug=bug).evaluate),
    "training mode by hand": ("eval.mode", trains),
    "gradients of an evaluation": ("eval.mode", with_gradients),
}
CASES: Cases = {
    **{name: (causes, _bind(make)) for name, (causes, make) in _SCORES.items()},
    "no arguments": ("eval.aggregation", lambda bug: _check(closed_over(bug))),
    "list of batches": ("eval.aggregation", lambda bug: _check(listed(bug))),
}


# --- correct ones that are unusual ------------------------------------------------------------------------------------


def timed(model: nn.Module, loader: Any) -> dict[str, Any]:
    """Figures with a time, a matrix and a text."""
    started = time.perf_counter()
    logits, labels = join(predict(model, loader))
    matrix = torch.zeros(CLASSES, CLASSES).index_put((labels, logits.argmax(1)), torch.ones(len(labels)), True)
    print(f"accuracy {accuracy(logits, labels):.3f}")  # noqa: T201
    return {"f1": macro_f1(logits, labels), "seconds": time.perf_counter() - started, "matrix": matrix, "name": "a"}


def resampled(model: nn.Module, loader: Any) -> tuple[float, float]:
    """Figure with an interval by a bootstrap."""
    logits, labels = join(predict(model, loader))
    draws = [torch.randint(len(labels), (len(labels),)) for _ in range(20)]
    figures = sorted(accuracy(logits[rows], labels[rows]) for rows in draws)
    return figures[1], figures[-2]


def first_batches(model: nn.Module, loader: Any) -> float:
    """Figure of the first three batches."""
    model.eval()
    kept = [pair for pair, _ in zip(loader, range(3), strict=False)]
    return accuracy(*join(predict(model, kept)))


def restores_mode(model: nn.Module, loader: Any) -> float:
    """Figure whose model goes on in the mode that it was in."""
    was_training = model.training
    figure = macro_f1(*join(predict(model, loader)))
    model.train(was_training)
    return figure


class Best:
    """Object that is called, and keeps the best figure that it has seen, which it does not return."""

    def __init__(self) -> None:
        self.best, self.history = 0.0, list[float]()

    def __call__(self, model: nn.Module, loader: Any) -> float:
        figure = accuracy(*join(predict(model, loader)))
        self.history.append(figure)
        self.best = max(self.best, figure)
        return figure


def two_views(model: nn.Module, loader: Any) -> float:
    """Figure of answers averaged over two views."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(rows) + model(-rows), labels) for rows, labels in loader]
    return accuracy(*join(pairs))


HEALTHY: dict[str, Callable[[], tuple[Any, ...]]] = {
    "time and matrix": lambda: _check(program(timed)),
    "bootstrap": lambda: _check(program(resampled)),
    "first batches": lambda: _check(program(first_batches)),
    "mode is restored": lambda: _check(program(restores_mode)),
    "best so far": lambda: _check(program(Best())),
    "two views": lambda: _check(program(two_views)),
    "means of equal batches": lambda: _check(
        program(short_batch(True), evaluation=DataLoader(torch.utils.data.Subset(Rows(), range(144)), SIZE))
    ),
    "one batch": lambda: _check(program(of_batches(macro_f1)(True), evaluation=DataLoader(Rows(), NUM))),
}
