"""Healthy program of one seed: its parts, how it is trained, and how a user asks `check` and `watch` of it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, WeightedRandomSampler

import sightline
from tests.doctor.healthy.data import KINDS, MixUp, Samples, Stored, make_single_graph, pad, weigh
from tests.doctor.healthy.networks import NETWORKS
from tests.doctor.healthy.rare import RARE, Parts
from tests.doctor.observing import observe
from tests.doctor.row import Row

_WATCHED_UPDATES, _SETTLED_UPDATES, _TRAINED_UPDATES = 60, 120, 200
_LEFT = 0.9
"""Share of a first loss below which a program has learnt."""
Loss = Callable[[Any, Any], Tensor]


@dataclass
class Program:
    """Parts of a program, as a user has them, and the words that say what was drawn."""

    model: nn.Module
    loss: Loss
    loader: Iterable[Any]
    evaluation: Iterable[Any]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    is_by_epoch: bool
    clip: float | None
    is_watched: bool
    is_checked_by_watch: bool
    window: int = 1
    count: Callable[[Any], int] = lambda target: 1
    num_watched: int = _WATCHED_UPDATES
    words: Mapping[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Check the program and train it, watched, as the guides show; or check it alone."""
        watched = {"optimizer": self.optimizer, "scheduler": self.schedule}
        parts = {"loss": self.loss, "loader": self.loader, "evaluation": self.evaluation}
        if not self.is_checked_by_watch:
            sightline.check(self.model, self.loss, self.loader, optimizer=self.optimizer, evaluation=self.evaluation)
        if self.is_watched:
            with sightline.watch(self.model, **watched, **parts if self.is_checked_by_watch else {}):
                self.train(self.num_watched)

    def train(self, most: int) -> list[float]:
        """Train for so many updates, over whole epochs that are not too long; evaluate after each; return losses."""
        values: list[float] = []
        while len(values) < most:
            self.model.train()
            for batches in self._divide():
                self.optimizer.zero_grad()
                values.append(self._lose_all(batches))
                if self.clip:
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
                self.optimizer.step()
                if self.schedule is not None and not self.is_by_epoch:
                    self.schedule.step()
                if len(values) >= most:
                    break
            if self.schedule is not None and self.is_by_epoch:
                self.schedule.step()
            self.model.eval()
            with torch.no_grad():
                for batch in self.evaluation:
                    self.lose(batch)
        self.model.train()
        return values

    def _divide(self) -> Iterator[list[Any]]:
        """Divide an epoch into the micro-batches of each update; what is left at its end makes none."""
        batches = iter(self.loader)
        while len(window := list(itertools.islice(batches, self.window))) == self.window:
            yield window

    def _lose_all(self, batches: Sequence[Any]) -> float:
        """Add the gradients of the mean over all that micro-batches count; return that mean."""
        counts = [self.count(target) for _, target in batches] if self.window > 1 else [1]
        total = 0.0
        for batch, number in zip(batches, counts, strict=True):
            value = self.lose(batch)
            value = value * number / sum(counts) if self.window > 1 else value
            value.backward()
            total += float(value.detach())
        return total

    def lose(self, batch: Any) -> Tensor:
        """Compute the loss of a batch."""
        inputs, target = (batch["x"], batch) if isinstance(batch, Mapping) else batch
        outputs = self.model(*inputs) if isinstance(inputs, tuple | list) else self.model(inputs)
        return self.loss(outputs, target)


class ByName(nn.Module):
    """Network that is called with the value `x` of a mapping."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


# --- losses -----------------------------------------------------------------------------------------------------------


def contrast(outputs: tuple[Tensor, Tensor], _: Any, *, is_symmetric: bool, temperature: float) -> Tensor:
    logits = outputs[0] @ outputs[1].T / temperature
    own = torch.arange(len(logits), device=logits.device)
    one = F.cross_entropy(logits, own)
    return (one + F.cross_entropy(logits.T, own)) / 2 if is_symmetric else one


def make_contrast(choose: random.Random) -> Loss:
    is_symmetric, temperature = choose.random() < 0.5, choose.choice([0.07, 0.1, 0.2, 0.5])
    return lambda outputs, target: contrast(outputs, target, is_symmetric=is_symmetric, temperature=temperature)


def of_columns(loss: Loss) -> Loss:
    """Compare one number a sample (N,) with an output (N, 1)."""
    return lambda outputs, target: loss(outputs.squeeze(1), target)


def hinge_of_two(outputs: Tensor, target: Tensor) -> Tensor:
    return F.relu(1 - (2 * target - 1) * outputs).mean()


def of_steps(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), target.flatten())


def of_training_nodes(is_trained: Tensor) -> Loss:
    return lambda outputs, target: F.cross_entropy(outputs[is_trained], target[is_trained])


def draw_loss(choose: random.Random, samples: Samples) -> tuple[str, Loss]:
    """Draw a loss of what is compared."""
    if samples.compared == "graph":
        return "cross entropy of a part", of_training_nodes(torch.rand(len(samples.target)) < 0.6)
    losses: dict[str, Mapping[str, Callable[[], Loss]]] = {
        "classes": {
            "cross entropy": nn.CrossEntropyLoss,
            "plain cross entropy": lambda: F.cross_entropy,
            "label smoothing": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
            "class weights": lambda: nn.CrossEntropyLoss(weight=weigh(samples.target, samples.num_outputs)),
            "hinge": nn.MultiMarginLoss,
        },
        "two": {
            "binary cross entropy": lambda: of_columns(nn.BCEWithLogitsLoss()),
            "binary hinge": lambda: of_columns(hinge_of_two),
        },
        "next": {"cross entropy of steps": lambda: of_steps},
        "numbers": {"squares": nn.MSELoss, "absolute": nn.L1Loss, "Huber": nn.HuberLoss},
        "counts": {"Huber": lambda: nn.HuberLoss(delta=choose.choice([1.0, 5.0])), "absolute": nn.L1Loss},
        "map": {
            "cross entropy of maps": lambda: nn.CrossEntropyLoss(ignore_index=255),
            "weights of maps": lambda: nn.CrossEntropyLoss(
                weight=torch.linspace(0.5, 2, samples.num_outputs), ignore_index=255
            ),
        },
        "bits": {"binary cross entropies": nn.BCEWithLogitsLoss},
        "views": {"contrast": lambda: make_contrast(choose)},
        "itself": {"squares": nn.MSELoss, "smooth": nn.SmoothL1Loss},
    }
    name = choose.choice(list(losses[samples.compared]))
    return name, losses[samples.compared][name]()


def mix(loss: Loss) -> Loss:
    """Compute the loss of mixed samples by both of their labels."""

    def compute(outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        if "lam" not in batch:
            return loss(outputs, batch["label"])
        share = batch["lam"]
        if not share.ndim:
            return share * loss(outputs, batch["label"]) + (1 - share) * loss(outputs, batch["label_b"])
        one, other = (F.cross_entropy(outputs, batch[name], reduction="none") for name in ("label", "label_b"))
        return (share * one + (1 - share) * other).mean()

    return compute


# --- the whole --------------------------------------------------------------------------------------------------------


def draw_optimizer(choose: random.Random, model: nn.Module) -> tuple[str, torch.optim.Optimizer]:
    rate = math.exp(choose.uniform(math.log(3e-4), math.log(3e-3)))
    makes: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "SGD": lambda: torch.optim.SGD(model.parameters(), 10 * rate, momentum=choose.choice([0.0, 0.9])),
        "Adam": lambda: torch.optim.Adam(model.parameters(), rate),
        "AdamW": lambda: torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05),
    }
    name = choose.choice(["SGD", "Adam", "Adam", "AdamW"])
    return name, makes[name]()


def draw_schedule(
    choose: random.Random, optimizer: torch.optim.Optimizer, num_steps: int
) -> tuple[str, torch.optim.lr_scheduler.LRScheduler | None, bool]:
    """Draw a schedule, and whether it is stepped once an epoch."""
    name = choose.choice(["none", "none", "warm-up", "cosine", "warm-up and cosine"])
    if name == "none":
        return name, None, False
    is_by_epoch = choose.random() < 0.5
    whole = choose.choice([20, 50]) if is_by_epoch else max(num_steps * 10, 400)
    first = choose.choice([3, 5, 10, 20]) if is_by_epoch else whole // 10

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / first) if "warm-up" in name else 1.0
        return rise * (0.55 + 0.45 * math.cos(math.pi * min(step / whole, 1.0)) if "cosine" in name else 1.0)

    return (
        f"{name} by {'epochs' if is_by_epoch else 'steps'}",
        torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        is_by_epoch,
    )


def draw(seed: int, kind: str = "") -> Program:
    """Draw a program from a seed, of a rare kind if it is named; the same seed gives the same program."""
    choose = random.Random(f"healthy {kind} {seed}" if kind else f"healthy {seed}")
    torch.manual_seed(seed)
    if kind:
        return _finish_rare(choose, RARE[kind].draw(choose))
    kind = choose.choices(list(KINDS), [weight for *_, weight in KINDS.values()])[0]
    make, network, _ = KINDS[kind]
    num = round(math.exp(choose.uniform(math.log(64), math.log(600 if network in ("image", "map") else 5000))))
    samples = make(choose, num)
    num, words = len(samples.target), {"kind": kind, "samples": str(num), "outputs": str(samples.num_outputs)}
    num_inputs = samples.inputs[0].shape[1 if network in ("image", "map") else -1]
    if network == "words":
        num_inputs = int(samples.inputs[0].max()) + 1
    maker = choose.choice(NETWORKS[network])
    model = maker(choose, num_inputs, samples.num_outputs)
    if samples.compared == "counts" and isinstance(model, nn.Sequential) and choose.random() < 0.5:
        model.append(nn.Softplus())
    words["loss"], loss = draw_loss(choose, samples)
    words["network"] = maker.__qualname__.partition(".")[0].removeprefix("make_")
    if samples.compared == "graph":
        loader: Any = make_single_graph(samples)
        evaluation: Any = loader
    else:
        model, loss, loader, evaluation = _load(choose, samples, model, loss, words)
    words["optimizer"], optimizer = draw_optimizer(choose, model)
    words["schedule"], schedule, is_by_epoch = draw_schedule(choose, optimizer, len(loader))
    clip = choose.choice([None, None, 1.0, 5.0])
    is_watched = choose.random() < 0.4 and words.get("slow") != "True"  # an epoch of it takes seconds of waiting
    by_watch = is_watched and choose.random() < 0.4
    words |= {"clip": str(clip), "watched": str(is_watched), "checked by watch": str(by_watch)}
    program = Program(
        model, loss, loader, evaluation, optimizer, schedule, is_by_epoch, clip, is_watched, by_watch, words=words
    )
    words["trained"] = str(choose.random() < 0.25 and words.get("slow") != "True")
    if words["trained"] == "True":
        program.train(_TRAINED_UPDATES)
    return program


def _finish_rare(choose: random.Random, parts: Parts) -> Program:
    """Draw how a program of a rare kind is trained, and asked.

    One that has learnt is often watched for many updates more, in which its loss may stand. One that has not yet is
    no example of this: sooner or later it will.
    """
    words, optimizer = parts.words, draw_optimizer(choose, parts.model)[1]
    words["schedule"], schedule, is_by_epoch = draw_schedule(choose, optimizer, len(parts.loader))  # type: ignore[arg-type]
    clip, is_watched = choose.choice([None, None, 1.0, 5.0]), choose.random() < parts.watched
    goes_on = is_watched and choose.random() < 0.8
    by_watch = goes_on or (is_watched and choose.random() < 0.4)
    words |= {"clip": str(clip), "watched": str(is_watched), "checked by watch": str(by_watch)}
    program = Program(
        *(parts.model, parts.loss, parts.loader, parts.evaluation, optimizer, schedule, is_by_epoch, clip),
        *(is_watched, by_watch, parts.window, parts.count),
        words=words,
    )
    if goes_on or choose.random() < 0.2:
        values = program.train(_TRAINED_UPDATES // parts.window)
        part = len(values) // 10
        words["fell to"] = f"{sum(values[-part:]) / sum(values[:part]):.2f}"
        if goes_on and float(words["fell to"]) < _LEFT:
            program.num_watched = max(_SETTLED_UPDATES // parts.window, _WATCHED_UPDATES)
    return program


def _load(
    choose: random.Random, samples: Samples, model: nn.Module, loss: Loss, words: dict[str, str]
) -> tuple[nn.Module, Loss, Any, Any]:
    """Divide the samples, and make both loaders; of a form and an order that are drawn."""
    num = len(samples.target)
    batch = round(math.exp(choose.uniform(math.log(2), math.log(min(256, num // 3)))))
    batch = max(batch, 8) if samples.compared == "views" else batch
    has_labels = samples.compared in ("classes", "two")
    is_sorted = has_labels and choose.random() < 0.3
    order = samples.target.sort(stable=True)[1] if is_sorted else torch.arange(num)
    is_kept = torch.randperm(num) < max(num // 5, 4)
    parts = [samples.take(order[is_kept[order] == flag]) for flag in (False, True)]
    is_mixed = samples.compared == "classes" and samples.lengths is None and len(samples.inputs) == 1
    is_mixed = is_mixed and not isinstance(loss, nn.MultiMarginLoss) and choose.random() < 0.15
    is_mapping = not is_mixed and len(samples.inputs) == 1 and samples.lengths is None and choose.random() < 0.2
    is_slow = choose.random() < 0.08
    batch = min(batch, 16) if is_slow else batch
    noise = choose.choice([0.0, 0.0, 0.05])
    sets = [
        Stored(part, is_mapping=is_mapping, is_slow=is_slow, noise=noise if part is parts[0] else 0.0) for part in parts
    ]
    options: dict[str, Any] = {"collate_fn": pad} if samples.lengths is not None else {}
    mixing = {"collate_fn": MixUp(is_by_sample=choose.random() < 0.5)} if is_mixed else {}
    has_norm = any("Norm" in type(each).__name__ for each in model.modules())
    sampler = None
    if samples.compared == "classes" and choose.random() < 0.1:
        labels = parts[0].target
        sampler = WeightedRandomSampler(weigh(labels, samples.num_outputs)[labels].tolist(), len(labels))
    drops = has_norm or samples.compared == "views" or choose.random() < 0.3
    shuffled = {"sampler": sampler} if sampler is not None else {"shuffle": True}
    loader = DataLoader(sets[0], batch, drop_last=drops, **shuffled, **options, **mixing)
    evaluation = DataLoader(sets[1], batch, **options)
    if is_mapping or is_mixed:
        # The loss of a mapping reads it whole; one that evaluates plain samples gets them as a mapping, too.
        whole, model = mix(loss), ByName(model)
        evaluation = DataLoader(Stored(parts[1], is_mapping=True, is_slow=is_slow, noise=0.0), batch)
        loss = whole
    words |= {"batch": str(batch), "sorted": str(is_sorted), "slow": str(is_slow), "mixed": str(is_mixed)}
    words |= {"mapping": str(is_mapping), "noise": str(noise), "sampler": type(loader.sampler).__name__}
    return model, loss, loader, evaluation


def list_draws(num: int, first: int = 0) -> list[Row]:
    """List rows of some programs that are drawn, and of those of rare kinds, by numbers from the first one on."""

    def run(kind: str, number: int, seed: int, known: Any) -> Any:
        return observe(draw(number + 1_000_000 * seed, kind).run)

    rows = [("healthy", "", number) for number in range(first, first + num)]
    rows += [("rare", kind, number) for kind, each in RARE.items() for number in range(first, first + each.num)]
    return [
        Row(id="/".join(filter(None, ("healthy", word, str(n)))), kind=kind, family="run", run=partial(run, word, n))
        for kind, word, n in rows
    ]
