"""Loops whose fault shows in the run: what moves, what enters the model, what the rates and losses do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from tests.doctor.rows import Case

Batches = list[tuple[Tensor, Tensor]]


def make_tables(number: int = 12) -> Batches:
    """Tables of eight columns and their classes."""
    torch.manual_seed(0)
    weight = torch.randn(8, 3)
    inputs = [torch.randn(16, 8) for _ in range(number)]
    return [(values, (values @ weight).argmax(1)) for values in inputs]


def make_images(number: int = 12) -> Batches:
    """Images (16, 3, 8, 8) and whether their left half is the brighter."""
    torch.manual_seed(1)
    inputs = [torch.rand(16, 3, 8, 8) for _ in range(number)]
    return [(values, (values[..., :4].mean((1, 2, 3)) > values[..., 4:].mean((1, 2, 3))).long()) for values in inputs]


def make_table_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def make_image_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))


def repeat(batches: Batches, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of some epochs, in another order in each."""
    for _ in range(epochs):
        yield from (batches[place] for place in torch.randperm(len(batches)))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], bound: float = 0) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    if bound:
        nn.utils.clip_grad_norm_(model.parameters(), bound)
    optimizer.step()


def evaluate(model: nn.Module, batches: Any) -> None:
    model.eval()
    with torch.no_grad():
        for values, _ in batches:
            model(values)
    model.train()


def train_tables_without_step(has_bug: bool, watch: Any, check: Any) -> None:
    model, batches = make_table_model(), make_tables()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer=optimizer):
        for _ in range(2):
            for values, labels in repeat(batches, 1):
                optimizer.zero_grad()
                F.cross_entropy(model(values), labels).backward()
                if not has_bug:
                    optimizer.step()
            evaluate(model, batches[:2])
            model.eval()
            model(batches[0][0])
            model.train()
        model.eval()
        model(batches[0][0])


def train_images_without_step(has_bug: bool, watch: Any, check: Any) -> None:
    model, batches = make_image_model(), make_images()
    with watch(model):
        for values, labels in batches:
            F.cross_entropy(model(values), labels).backward()
            for parameter in () if has_bug else model.parameters():
                parameter.data -= 0.05 * parameter.grad
            model.zero_grad()
        model.eval()
        model(batches[0][0])


def evaluate_tables_unscaled(has_bug: bool, watch: Any, check: Any) -> None:
    model, batches = make_table_model(), make_tables()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    others = [(30 * values + 5 if has_bug else values * 1.1, labels) for values, labels in make_tables(16)[12:]]
    with watch(model, optimizer=optimizer):
        for batch in repeat(batches, 2):
            step(model, optimizer, batch)
        evaluate(model, others)


def evaluate_images_unscaled(has_bug: bool, watch: Any, check: Any) -> None:
    model, batches = make_image_model(), make_images()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with watch(model, optimizer=optimizer):
        for values, labels in repeat(batches, 2):
            jitter = 0.8 + 0.4 * torch.rand(len(values), 1, 1, 1)
            step(model, optimizer, ((values * jitter - 0.5) / 0.3, labels))
        evaluate(model, [(v if has_bug else (v - 0.5) / 0.3, t) for v, t in make_images(16)[12:]])


def restart_rates_of_tables(has_bug: bool, watch: Any, check: Any) -> None:
    model, batches = make_table_model(), make_tables()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 if has_bug else 48)
    with watch(model, optimizer=optimizer):
        for batch in repeat(batches, 4):
            step(model, optimizer, batch)
            schedule.step()


def restart_rates_of_images(has_bug: bool, watch: Any, check: Any) -> None:
    model = make_image_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    values, labels = (torch.cat(each) for each in zip(*make_images(32), strict=True))
    loader = DataLoader(TensorDataset(values, labels), batch_size=16, shuffle=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 8 if has_bug else 64)
    with watch(model, optimizer=optimizer):
        for _ in range(2):
            for batch in loader:
                step(model, optimizer, tuple(batch))
                schedule.step()


def clip_tables_away(has_bug: bool, watch: Any, check: Any) -> None:
    model = make_table_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer=optimizer):
        for batch in repeat(make_tables(), 2):
            step(model, optimizer, batch, 1e-5 if has_bug else 1.0)


def clip_images_away(has_bug: bool, watch: Any, check: Any) -> None:
    model = make_image_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    with watch(model, optimizer=optimizer):
        for batch in repeat(make_images(), 2):
            step(model, optimizer, batch, 1e-5 if has_bug else 0.1)


def push_apart_without_bound(has_bug: bool, watch: Any, check: Any) -> None:
    model = make_image_model()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    with watch(model, optimizer=optimizer):
        for values, labels in repeat(make_images(), 25):
            points = model(values)
            centre = points[labels == 0].mean(0) - points[labels == 1].mean(0)
            distance = centre.square().sum()
            loss = -distance if has_bug else F.relu(1 - distance) + 1e-3 * points.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accumulate_tokens(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 11))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer=optimizer):
        for number in range(8):
            tokens = torch.randint(0, 11, (4, 4, 20))
            lengths = [20, 3, 9, 5 + number % 3]
            targets = (tokens * 3 + 1) % 11
            for part, length in enumerate(lengths):
                targets[part, :, length:] = -100
            total = int((targets != -100).sum())
            for words, target in zip(tokens, targets, strict=True):
                summed = F.cross_entropy(model(words).flatten(0, 1), target.flatten(), reduction="sum")
                (summed / (4 * int((target != -100).sum()) if has_bug else total)).backward()
            optimizer.step()
            optimizer.zero_grad()


def accumulate_pixels(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 1, 3, padding=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with watch(model, optimizer=optimizer):
        for values, _ in make_images(8):
            parts = values.split(4)
            known = [torch.rand(4, 1, 8, 8) < share for share in (1.0, 0.2, 0.5, 0.1)]
            total = sum(int(mask.sum()) for mask in known)
            for part, mask in zip(parts, known, strict=True):
                error = ((model(part) - part.mean(1, keepdim=True)).abs() * mask).sum()
                (error / mask.sum() / 4 if has_bug else error / total).backward()
            optimizer.step()
            optimizer.zero_grad()


def collapse(model: nn.Module, batches: Batches, has_bug: bool, watch: Any) -> None:
    """Train distances with a margin; weights decay so fast that all points become one."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3 if has_bug else 0.01, weight_decay=300 if has_bug else 0)
    with watch(model, optimizer=optimizer):
        for values, labels in batches:
            points = model(values)
            distance = torch.cdist(points, points)
            alike = (labels[:, None] == labels[None]).float()
            near, far = ((distance * each).sum(1) / each.sum(1).clamp(min=1) for each in (alike, 1 - alike))
            loss = F.softplus(1 + near - far).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def collapse_tables(has_bug: bool, watch: Any, check: Any) -> None:
    collapse(nn.Sequential(nn.Linear(8, 4, bias=False)), [*repeat(make_tables(), 25)], has_bug, watch)


def collapse_images(has_bug: bool, watch: Any, check: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 4))
    collapse(model, [*repeat(make_images(), 40)], has_bug, watch)


def train_adversaries(make_inputs: Any, width: int, is_detached: bool, watch: Any) -> None:
    torch.manual_seed(0)
    maker, judge = nn.Linear(width, width), nn.Linear(width, 1)
    optimizers = [torch.optim.Adam(each.parameters(), 1e-3) for each in (maker, judge)]
    with watch({"maker": maker, "judge": judge}, optimizer=optimizers):
        for values, _ in make_inputs(24):
            values = values.flatten(1)
            made, ones = maker(values), torch.ones(len(values), 1)
            scores = judge(made.detach() if is_detached else made)
            adversarial = F.binary_cross_entropy_with_logits(scores, ones)
            optimizers[0].zero_grad()
            (10 * F.l1_loss(made, values) + adversarial).backward()
            optimizers[0].step()
            optimizers[1].zero_grad()
            real, false = judge(values), judge(made.detach())
            loss = F.binary_cross_entropy_with_logits(real, ones)
            (loss + F.binary_cross_entropy_with_logits(false, 0 * ones)).backward()
            optimizers[1].step()


def train_table_adversaries(has_bug: bool, watch: Any, check: Any) -> None:
    train_adversaries(make_tables, 8, has_bug, watch)


def train_image_adversaries(has_bug: bool, watch: Any, check: Any) -> None:
    train_adversaries(make_images, 192, has_bug, watch)


class Codes(nn.Module):
    """Classifier by nearness to unit vectors, which are a buffer, or a parameter."""

    def __init__(self, width: int, *, is_buffer: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(width, 8)
        codes = F.normalize(torch.randn(5, 8), dim=1)
        if is_buffer:
            self.register_buffer("codes", codes)
        else:
            self.codes = nn.Parameter(codes)

    def forward(self, values: Tensor) -> Tensor:
        return self.body(values.flatten(1)) @ self.codes.T


def average_codes(batches: Batches, width: int, is_buffer: bool, is_normalised: bool, watch: Any) -> None:
    model = Codes(width, is_buffer=is_buffer)
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    with watch(model, optimizer=optimizer, ema=average):
        for batch in batches:
            step(model, optimizer, batch)
            with torch.no_grad():
                model.codes.copy_(F.normalize(model.codes + 0.5 * torch.randn(5, 8), dim=1))
                for own, mine in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    own.lerp_(mine, 0.1)
                if is_normalised:
                    average.codes.copy_(F.normalize(average.codes, dim=1))


def average_codes_of_tables(has_bug: bool, watch: Any, check: Any) -> None:
    average_codes([*repeat(make_tables(), 3)], 8, True, not has_bug, watch)


def average_codes_of_images(has_bug: bool, watch: Any, check: Any) -> None:
    average_codes([*repeat(make_images(), 3)], 192, False, not has_bug, watch)


def evaluate_in_training(batches: Batches, others: Batches, model: nn.Module, has_bug: bool, watch: Any) -> None:
    own, other = (TensorDataset(*map(torch.cat, zip(*each, strict=True))) for each in (batches, others))
    loader = DataLoader(ConcatDataset([own, other]) if has_bug else own, batch_size=16, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer=optimizer):
        for _ in range(2):
            for batch in loader:
                step(model, optimizer, tuple(batch))
            evaluate(model, DataLoader(other, batch_size=16))


def evaluate_tables_in_training(has_bug: bool, watch: Any, check: Any) -> None:
    batches = make_tables(16)
    evaluate_in_training(batches[:12], batches[12:], make_table_model(), has_bug, watch)


def evaluate_images_in_training(has_bug: bool, watch: Any, check: Any) -> None:
    batches = make_images(16)
    evaluate_in_training(batches[:12], batches[12:], make_image_model(), has_bug, watch)


CASES = [
    Case("no step, tables", train_tables_without_step, "optim.step_order"),
    Case("no step, images", train_images_without_step, "optim.step_order"),
    Case("evaluation of other units, tables", evaluate_tables_unscaled, "data.normalisation"),
    Case("evaluation of other units, images", evaluate_images_unscaled, "data.normalisation"),
    Case("rate restarts, tables", restart_rates_of_tables, "optim.scheduler"),
    Case("rate restarts, images", restart_rates_of_images, "optim.scheduler"),
    Case("clipped away, tables", clip_tables_away, "optim.clip"),
    Case("clipped away, images", clip_images_away, "optim.clip"),
    Case("distance rewarded", push_apart_without_bound, "loss.sign"),
    Case("means of unlike counts, tokens", accumulate_tokens, "optim.grad_accumulation"),
    Case("means of unlike counts, pixels", accumulate_pixels, "optim.grad_accumulation"),
    Case("collapse, tables", collapse_tables, "loss.collapse"),
    Case("collapse, images", collapse_images, "loss.collapse"),
    Case("detached adversary, tables", train_table_adversaries, "loss.detached"),
    Case("detached adversary, images", train_image_adversaries, "loss.detached"),
    Case("average of unit vectors, buffer", average_codes_of_tables, "ckpt.stale"),
    Case("average of unit vectors, parameter", average_codes_of_images, "ckpt.stale"),
    Case("validation trained on, tables", evaluate_tables_in_training, "data.split"),
    Case("validation trained on, images", evaluate_images_in_training, "data.split"),
]
