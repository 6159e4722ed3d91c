"""Correct loops and losses that look odd on purpose: neither `check` nor `watch` may find anything in them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline
from tests.runtime.blind_losses import Call
from tests.runtime.healthy_loops import SGD, Adam, train

Model = nn.Module
Loss = Callable[[Any, Any], Tensor]


def mlp(*widths: int) -> nn.Sequential:
    layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def classes(count: int = 256, width: int = 10, number: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, width, generator=generator)
    return inputs, (inputs @ torch.randn(width, number, generator=generator)).argmax(dim=1)


def batches(*tensors: Tensor, size: int = 32, epochs: int = 4) -> Iterator[Any]:
    for _ in range(epochs):
        for rows in torch.randperm(len(tensors[0])).split(size):
            yield tuple(tensor[rows] for tensor in tensors)


def examine(model: Model, loss: Loss, pairs: Iterable[Any], optimizer: Any = None) -> list[Any]:
    """Check a batch of two, and train with a plain loop that is watched; return all findings but notes."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=3e-3)
    pairs = list(pairs)
    found = list(sightline.check(model, loss, pairs[0], optimizer=optimizer).findings)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for inputs, target in pairs:
            value = loss(model(*inputs) if isinstance(inputs, tuple) else model(inputs), target)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return [finding for finding in [*found, *watch.findings] if finding.severity != "note"]


class Universal(nn.Module):
    """One block, which a list with four places repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block, self.leave = nn.Linear(10, 24), mlp(24, 24, 24), nn.Linear(24, 3)
        self.steps = nn.ModuleList([self.block] * 4)

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.enter(rows)
        for step in self.steps:
            rows = rows + step(rows)
        return self.leave(rows)


def a_block_is_shared_on_purpose() -> list[Any]:
    return examine(Universal(), F.cross_entropy, batches(*classes()))


def a_mixture_of_probabilities_and_their_logarithm() -> list[Any]:
    model = Call(lambda x, one, two: (one(x).softmax(-1) + two(x).softmax(-1)) / 2, mlp(10, 24, 3), mlp(10, 24, 3))
    return examine(model, lambda p, label: F.nll_loss(p.clamp_min(1e-8).log(), label), batches(*classes()))


def hard_samples_alone_count() -> list[Any]:
    def hardest(logits: Tensor, label: Tensor) -> Tensor:
        each = F.cross_entropy(logits, label, reduction="none")
        return each.topk(len(each) // 4).values.mean()

    return examine(mlp(10, 24, 3), hardest, batches(*classes()))


def a_model_that_computes_its_own_loss() -> list[Any]:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
            self.predict = mlp(16, 8, 16)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            a, b = self.encode(first), self.encode(second)
            terms = [F.cosine_similarity(self.predict(x), y.detach(), dim=-1).mean() for x, y in ((a, b), (b, a))]
            return -(terms[0] + terms[1]) / 2

    rows, _ = classes()
    pairs = [((x + 0.1 * torch.randn_like(x), x), torch.zeros(len(x))) for (x,) in batches(rows)]
    return examine(Siamese(), lambda value, _: value, pairs)


class Momentum(nn.Module):
    """A student, and a teacher that requires gradients, gets none and is in no optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.predict = mlp(10, 32, 16), mlp(16, 16, 16)
        self.teacher = copy.deepcopy(self.student)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        wanted = F.normalize(self.teacher(second).detach(), dim=-1)
        return (F.normalize(self.predict(self.student(first)), dim=-1) - wanted).square().sum(dim=-1).mean()


def a_teacher_that_no_optimiser_holds() -> list[Any]:
    rows, _ = classes()
    pairs = [((x + 0.1 * torch.randn_like(x), x), torch.zeros(len(x))) for (x,) in batches(rows)]
    model = Momentum()
    parameters = [*model.student.parameters(), *model.predict.parameters()]
    return examine(model, lambda value, _: value, pairs, torch.optim.Adam(parameters, lr=2e-3))


def a_teacher_trained_before_the_loop() -> list[Any]:
    pair = nn.ModuleDict({"teacher": mlp(10, 32, 3), "student": mlp(10, 8, 3)})
    before = torch.optim.Adam(pair["teacher"].parameters(), lr=3e-3)
    for x, y in batches(*classes()):
        before.zero_grad()
        F.cross_entropy(pair["teacher"](x), y).backward()
        before.step()  # its last gradients stay

    def compute(pair: Any, x: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = (pair["teacher"](x) / 4).log_softmax(dim=1)
        return F.kl_div((pair["student"](x) / 4).log_softmax(dim=1), wanted, log_target=True, reduction="batchmean")

    optimizer = torch.optim.Adam(pair["student"].parameters(), lr=3e-3)
    return train(pair, optimizer=optimizer, compute=compute, data=batches(*classes())).findings


def a_queue_whose_positive_comes_first() -> list[Any]:
    query = mlp(10, 32, 16)
    key = copy.deepcopy(query).requires_grad_(False)
    queue, rows = F.normalize(torch.randn(64, 16), dim=1), classes()[0]
    optimizer = torch.optim.SGD(query.parameters(), lr=0.03, momentum=0.9)
    with sightline.watch({"query": query, "key": key}, optimizer=optimizer) as watch:
        for (x,) in batches(rows):
            a = F.normalize(query(x + 0.1 * torch.randn_like(x)), dim=1)
            with torch.no_grad():
                for mine, own in zip(key.parameters(), query.parameters(), strict=True):
                    mine.lerp_(own, 0.05)
                b = F.normalize(key(x), dim=1)
            logits = torch.cat([(a * b).sum(dim=1, keepdim=True), a @ queue.T], dim=1) / 0.1
            optimizer.zero_grad()
            F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64)).backward()
            optimizer.step()
            queue = torch.cat([b, queue])[:64]
    return watch.findings


def masks_that_a_model_draws_and_returns() -> list[Any]:
    def run(rows: Tensor, encode: nn.Module) -> tuple[Tensor, Tensor]:
        is_hidden = torch.rand_like(rows) < 0.3
        return encode(rows.masked_fill(is_hidden, 0.0)), is_hidden.float()

    def loss(outputs: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
        return ((outputs[0] - rows).square() * outputs[1]).sum() / outputs[1].sum()

    rows, _ = classes()
    return examine(Call(run, mlp(10, 32, 10)), loss, batches(rows, rows))


def slots_that_start_at_random() -> list[Any]:
    class Slots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread = nn.Parameter(torch.randn(16)), nn.Parameter(torch.zeros(16))
            self.enter, self.leave = nn.Linear(2, 16), nn.Linear(16, 2)

        def forward(self, points: Tensor) -> Tensor:
            rows = self.enter(points)
            slots = self.mean + self.spread.exp() * torch.randn(len(points), 3, 16)
            weights = (slots @ rows.mT / 4).softmax(dim=1)  # slots compete for points
            return self.leave((weights / weights.sum(dim=-1, keepdim=True)) @ rows)

    def chamfer(centres: Tensor, wanted: Tensor) -> Tensor:
        distances = torch.cdist(centres, wanted)
        return distances.amin(dim=1).mean() + distances.amin(dim=2).mean()

    wanted = torch.randn(128, 3, 2)
    return examine(Slots(), chamfer, batches(wanted.repeat(1, 4, 1), wanted, size=16))


def chunks_of_a_sequence_in_order() -> list[Any]:
    times = torch.arange(160) * 0.2
    waves = torch.stack([torch.sin(times * rate) for rate in (0.7, 1.0, 1.3, 1.7)])[..., None]
    model = nn.GRU(1, 1, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            state = None
            for start in range(0, 140, 10):
                outputs, state = model(waves[:, start : start + 10], state)
                state = state.detach()
                optimizer.zero_grad()
                F.mse_loss(outputs, waves[:, start + 1 : start + 11]).backward()
                optimizer.step()
    return watch.findings


def a_line_search_on_the_whole_set() -> list[Any]:
    inputs = torch.linspace(-2, 2, 64)[:, None]
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), torch.sin(3 * inputs))
        loss.backward()
        return loss

    found = sightline.check(model, F.mse_loss, (inputs, torch.sin(3 * inputs)), optimizer=optimizer).findings
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(7):
            optimizer.step(closure)
    return [finding for finding in [*found, *watch.findings] if finding.severity != "note"]


class TwoHeads(nn.Module):
    """Logits and a reconstruction, with a learned weight for each term."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.label, self.rest = mlp(10, 32, 32), nn.Linear(32, 3), nn.Linear(32, 10)
        self.log_variance = nn.Parameter(torch.zeros(2))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.trunk(rows).relu()
        return self.label(rows), self.rest(rows)


def a_term_that_is_ramped_up_from_zero() -> list[Any]:
    model, steps = TwoHeads(), iter(range(-16, 100))
    model.log_variance.requires_grad_(False)

    def compute(model: Any, rows: Tensor, label: Tensor) -> Tensor:
        logits, rest = model(rows)
        terms = F.cross_entropy(logits, label), max(0.0, next(steps) / 16) * F.mse_loss(rest, rows)
        return torch.stack(terms).sum()

    return train(model, optimizer=partial(Adam, lr=3e-3), compute=compute, data=batches(*classes())).findings


def a_loss_that_reads_a_parameter_itself() -> list[Any]:
    model = TwoHeads()

    def loss(outputs: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        terms = torch.stack([F.cross_entropy(outputs[0], target[0]), F.mse_loss(outputs[1], target[1])])
        return (terms * (-model.log_variance).exp() + model.log_variance).sum()

    rows, label = classes()
    return examine(model, loss, [(x, (y, x)) for x, y in batches(rows, label)])


def relative_boxes_and_their_overlap() -> list[Any]:
    def corners(boxes: Tensor) -> Tensor:
        return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)

    def loss(predicted: Tensor, wanted: Tensor) -> Tensor:
        a, b = corners(predicted), corners(wanted)
        shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
        hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(dim=1)
        union = predicted[:, 2:].prod(dim=1) + wanted[:, 2:].prod(dim=1) - shared
        return (1 - shared / (union + 1e-7) + (hull - union) / (hull + 1e-7)).mean()

    wanted = torch.rand(128, 4) * 0.3 + 0.3
    model = nn.Sequential(mlp(4, 32, 4), nn.Sigmoid())
    return examine(model, loss, batches(wanted * 4 - 2, wanted))


def play(*, clears: bool, steps: int = 30) -> list[Any]:
    """Train a generator and its critic; without `clears`, the critic keeps the gradients of the generator's loss."""
    generator, critic = mlp(4, 16, 2), mlp(2, 16, 1)
    first, second = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (generator, critic))
    with sightline.watch({"generator": generator, "critic": critic}, optimizer=[first, second]) as watch:
        for _ in range(steps):
            fake = generator(torch.randn(16, 4))
            if clears:
                second.zero_grad()
            (F.softplus(critic(fake.detach())) + F.softplus(-critic(torch.randn(16, 2)))).mean().backward()
            second.step()
            if not clears:
                second.zero_grad()
            first.zero_grad()
            F.softplus(-critic(fake)).mean().backward()
            first.step()
    return watch.findings


def an_encoder_with_two_heads_and_three_optimisers() -> list[Any]:
    """The encoder adds up the gradients of two losses, between which a head is updated."""
    parts = nn.ModuleDict({"trunk": mlp(10, 16, 16), "first": nn.Linear(16, 3), "second": nn.Linear(16, 3)})
    optimizers = [torch.optim.SGD(part.parameters(), lr=1e-2) for part in parts.values()]
    with sightline.watch(parts, optimizer=optimizers) as watch:
        for rows, label in batches(*classes()):
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(parts["first"](parts["trunk"](rows)), label).backward()
            optimizers[1].step()
            F.cross_entropy(parts["second"](parts["trunk"](rows)), label).backward()
            optimizers[2].step()
            optimizers[0].step()
    return watch.findings


def fine_tune(*, holds: bool) -> list[Any]:
    """Train a head on a frozen trunk; `holds`: its batch norm is in evaluation mode, too."""
    trunk = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU()).requires_grad_(False)
    for _ in range(4):
        trunk(2 * torch.randn(64, 10) + 1)  # statistics of what it was trained with
    model = nn.Sequential(trunk.train(not holds), nn.Linear(16, 3))
    return train(model, optimizer=partial(SGD, lr=0.05), data=batches(*classes())).findings


def a_key_encoder_whose_batch_norm_follows() -> list[Any]:
    """The frozen batch norm of a momentum encoder moves with the weights that it is given."""
    query = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    key = copy.deepcopy(query).requires_grad_(False)
    optimizer = torch.optim.SGD(query.parameters(), lr=0.03)
    with sightline.watch({"query": query, "key": key}, optimizer=optimizer) as watch:
        for (rows,) in batches(classes()[0]):
            with torch.no_grad():
                wanted = key(rows)
                for mine, own in zip(key.parameters(), query.parameters(), strict=True):
                    mine.lerp_(own, 0.05)
            optimizer.zero_grad()
            (1 - F.cosine_similarity(query(rows), wanted)).mean().backward()
            optimizer.step()
    return watch.findings


def schedule(*, is_factor: bool) -> list[Any]:
    """Train with a warm-up of LambdaLR, whose function returns a factor, or else a rate."""
    factor = lambda step: (1.0 if is_factor else 3e-3) * min(1.0, (step + 1) / 20)  # noqa: E731
    options = {"scheduler": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor)}
    return train(
        mlp(10, 24, 3), optimizer=partial(Adam, lr=3e-3), data=batches(*classes(), epochs=8), **options
    ).findings


def compute_shortly(*, keeps_weights: bool) -> list[Any]:
    """Train in bfloat16, by autocast or with all weights in it."""

    def compute(model: nn.Module, rows: Tensor, label: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=keeps_weights):
            return F.cross_entropy(model(rows if keeps_weights else rows.to(torch.bfloat16)).float(), label)

    model = mlp(10, 24, 3) if keeps_weights else mlp(10, 24, 3).to(torch.bfloat16)
    return train(model, optimizer=partial(Adam, lr=2e-4), compute=compute, data=batches(*classes())).findings


def sequences_padded_with_an_ignored_label() -> list[Any]:
    pad, pairs = partial(nn.utils.rnn.pad_sequence, batch_first=True), []
    for _ in range(12):
        rows = [torch.randint(1, 20, (length,)) for length in (4, 7, 9, 12, 15, 17, 18, 18)]
        pairs.append((pad(rows), pad([row % 4 for row in rows], padding_value=-100)))
    model = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 4))
    return examine(model, lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten()), pairs)


def maps_as_rows_with_exchanged_axes() -> list[Any]:
    labels = torch.randint(0, 3, (96, 4, 4))
    images = labels[:, None].float().repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    model = Call(lambda x, stem, head: head(stem(x).flatten(2).mT).mT, nn.Conv2d(1, 12, 4, 4), nn.Linear(12, 3))
    return examine(model, F.cross_entropy, list(batches(images - 1, labels.flatten(1), size=16)))


LOOPS: dict[str, Callable[[], list[Any]]] = {
    "a_critic_that_is_cleared_first": partial(play, clears=True),
    "a_frozen_trunk_with_its_statistics": partial(fine_tune, holds=True),
    "a_warm_up_by_factors": partial(schedule, is_factor=True),
    "weights_in_float32_under_autocast": partial(compute_shortly, keeps_weights=True),
    **{
        loop.__name__: loop
        for loop in (
            *(a_block_is_shared_on_purpose, a_mixture_of_probabilities_and_their_logarithm),
            *(hard_samples_alone_count, a_model_that_computes_its_own_loss, a_teacher_that_no_optimiser_holds),
            *(a_teacher_trained_before_the_loop, a_queue_whose_positive_comes_first),
            *(masks_that_a_model_draws_and_returns, slots_that_start_at_random, chunks_of_a_sequence_in_order),
            *(a_line_search_on_the_whole_set, a_term_that_is_ramped_up_from_zero),
            *(a_loss_that_reads_a_parameter_itself, relative_boxes_and_their_overlap),
            *(an_encoder_with_two_heads_and_three_optimisers, a_key_encoder_whose_batch_norm_follows),
            *(sequences_padded_with_an_ignored_label, maps_as_rows_with_exchanged_axes),
        )
    },
}
