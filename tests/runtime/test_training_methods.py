"""Known methods of training, correct, raise nothing: gradients that a loop reads, restarts; like bugs are found."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline
from sightline.doctor.watch.watch import Watch
from tests.runtime.odd_healthy_loops import mlp
from tests.runtime.short_loops import Method, copy_gradients, draw, list_codes, lose, make, train

# --- gradients that the loop reads itself ----------------------------------------------------------------------------


def projected_gradients_of_tasks() -> Watch:
    """Gradients of tasks that conflict are projected, and their sum is written back (PCGrad)."""
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(8):
            stored = []
            for turn in range(3):
                optimizer.zero_grad()
                lose(model, turn=turn).backward()
                stored.append(torch.cat([gradient.flatten() for gradient in copy_gradients(model)]))
            for one in (total := [each.clone() for each in stored]):
                for other in stored:
                    one -= (one @ other).clamp(max=0) / (other @ other) * other
            parts = torch.stack(total).sum(dim=0).split([p.numel() for p in model.parameters()])
            for parameter, part in zip(model.parameters(), parts, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(part.view_as(parameter))
            optimizer.step()
    return watch


def a_memory_whose_gradient_never_conflicts() -> Watch:
    """A-GEM, in which the gradient of the memory has been read, and then changes nothing."""
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(12):
            optimizer.zero_grad()
            lose(model).backward()
            reference = copy_gradients(model)
            optimizer.zero_grad()
            lose(model).backward()
            gradients = copy_gradients(model)
            product = sum((a * b).sum() for a, b in zip(reference, gradients, strict=True))
            for parameter, other in zip(model.parameters(), reference, strict=True) if product < -100 else ():
                parameter.grad = parameter.grad - product * other
            optimizer.step()
    return watch


def gradients_of_each_sample() -> Watch:
    """Each sample's gradient is clipped; their sum, with noise, is the gradient (DP-SGD)."""
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(6):
            total = [torch.zeros_like(p) for p in model.parameters()]
            for _ in range(28):
                optimizer.zero_grad()
                lose(model, 1).backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                assert norm > 0
                for each, gradient in zip(total, copy_gradients(model), strict=True):
                    each += gradient
            for parameter, each in zip(model.parameters(), total, strict=True):
                parameter.grad = (each + 0.1 * torch.randn_like(each)) / 28
            optimizer.step()
    return watch


def estimate_information(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    total = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(60):
        optimizer.zero_grad()
        lose(model, 1).backward()
        for each, parameter in zip(total, model.parameters(), strict=True):
            each += parameter.grad.square() / 60
    optimizer.zero_grad()
    return total


def information_of_weights(*, before: bool = False) -> Watch:
    """The Fisher information of the weights about a task is measured after it, or `before` all (EWC)."""
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        kept = estimate_information(model.eval(), optimizer) if before else []
        for turn in range(3):
            old = [p.detach().clone() for p in model.parameters()]
            for _ in range(20):
                optimizer.zero_grad()
                terms = zip(kept, model.train().parameters(), old, strict=False)
                loss = lose(model, turn=turn) + sum((a * (p - b).square()).sum() for a, p, b in terms)
                loss.backward()
                optimizer.step()
            kept = estimate_information(model, optimizer)
    return watch


def information_before_all() -> Watch:
    return information_of_weights(before=True)


def attacks_of_many_steps() -> Watch:
    """Inputs are moved by forty steps before each update (PGD)."""
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(6):
            points, label = draw()
            move = torch.zeros_like(points, requires_grad=True)
            for _ in range(40):
                F.cross_entropy(model(points + move), label).backward()
                move.data += 0.01 * move.grad.sign()
                move.grad.zero_()
                optimizer.zero_grad()
            F.cross_entropy(model((points + move).detach()), label).backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch


def map_of_saliency(model: nn.Sequential, points: Tensor, label: Tensor) -> Tensor:
    """Weigh the hidden layer by its gradients (Grad-CAM)."""
    hidden = model[:2](points)
    hidden.retain_grad()
    model[2](hidden).gather(1, label[:, None]).sum().backward()
    return (hidden.grad * hidden).detach()


def maps_of_saliency(*, each_update: bool = False) -> Watch:
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(2):
            for _ in range(12):
                points, label = draw()
                optimizer.zero_grad()
                if each_update:
                    model(points)
                    points = points * (map_of_saliency(model, points, label).mean(dim=1, keepdim=True) < 0.1)
                    optimizer.zero_grad()
                F.cross_entropy(model(points), label).backward()
                optimizer.step()
            for _ in range(30):
                optimizer.zero_grad()
                map_of_saliency(model, *draw(1))
    return watch


def maps_of_saliency_at_each_update() -> Watch:
    return maps_of_saliency(each_update=True)


def norms_of_small_and_large_batches() -> Watch:
    """The noise scale of gradients: a small batch is measured, and a large one is trained on."""
    model, optimizer = make(8, 16, 4)

    def measure(size: int) -> float:
        optimizer.zero_grad()
        lose(model, size).backward()
        return float(sum(p.grad.square().sum() for p in model.parameters()))

    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(8):
            assert measure(8) + measure(64) > 0
            optimizer.step()
    return watch


READING: list[Method] = [
    projected_gradients_of_tasks,
    a_memory_whose_gradient_never_conflicts,
    gradients_of_each_sample,
    information_of_weights,
    information_before_all,
    attacks_of_many_steps,
    maps_of_saliency,
    maps_of_saliency_at_each_update,
    norms_of_small_and_large_batches,
]


@pytest.mark.parametrize("method", READING, ids=lambda method: method.__name__)
def test_gradients_may_be_read_and_cleared(method: Method) -> None:
    torch.manual_seed(0)
    assert list_codes(method()) == []


def accumulate(*, clip: bool = False, loops: bool = True) -> Watch:
    """Clear the gradients of all passes but the last of an update, from one line or from two."""
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(8):
            if loops:
                for _ in range(3):
                    optimizer.zero_grad()
                    lose(model).backward()
            else:
                optimizer.zero_grad()
                lose(model, turn=1).backward()
                optimizer.zero_grad()
                lose(model).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                nn.utils.clip_grad_value_(model.parameters(), 0.01)
            optimizer.step()
    return watch


@pytest.mark.parametrize(
    "options", [{}, {"clip": True}, {"loops": False}], ids=["one line", "clipped, too", "two lines"]
)
def test_gradients_that_no_code_reads_are_lost(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    assert list_codes(accumulate(**options)) == ["gradients-cleared"]


def oppose(*, clears_twice: bool) -> Watch:
    """Train a generator and its critic; with `clears_twice`, the gradients of true samples are cleared."""
    parts = nn.ModuleDict({"generator": mlp(4, 16, 8), "critic": mlp(8, 16, 1)})
    first, second = (torch.optim.Adam(part.parameters(), 1e-3) for part in parts.values())
    with sightline.watch(parts, optimizer=[first, second]) as watch:
        for _ in range(8):
            second.zero_grad()
            F.softplus(-parts["critic"](torch.randn(16, 8))).mean().backward()
            if clears_twice:
                second.zero_grad()
            F.softplus(parts["critic"](parts["generator"](torch.randn(16, 4)).detach())).mean().backward()
            second.step()
            first.zero_grad()
            F.softplus(-parts["critic"](parts["generator"](torch.randn(16, 4)))).mean().backward()
            first.step()
    return watch


def accumulate_for_two(*, clears_each: bool) -> Watch:
    parts = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizers = [torch.optim.SGD(part.parameters(), 0.05) for part in (parts[0], parts[2])]
    with sightline.watch(parts, optimizer=optimizers) as watch:
        for step in range(24):
            if clears_each or step % 3 == 0:
                parts.zero_grad()
            lose(parts).backward()
            for optimizer in optimizers if step % 3 == 2 else ():
                optimizer.step()
    return watch


def test_gradients_are_lost_beside_another_optimiser() -> None:
    torch.manual_seed(0)
    assert list_codes(oppose(clears_twice=False)) == []
    assert list_codes(oppose(clears_twice=True)) == ["gradients-cleared"]
    assert list_codes(accumulate_for_two(clears_each=False)) == []
    assert list_codes(accumulate_for_two(clears_each=True)) == ["gradients-cleared"]


@pytest.mark.parametrize(("first", "last"), [(0, 40), (20, 80)], ids=["never", "no more"])
def test_a_loop_without_updates_is_named(first: int, last: int) -> None:
    torch.manual_seed(0)
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(last):
            optimizer.zero_grad()
            lose(model).backward()
            if step < first:
                optimizer.step()
    assert list_codes(watch) == ["no-update"]


# --- restarts --------------------------------------------------------------------------------------------------------


def a_search_for_a_rate(*, sets_back: bool = True) -> Watch:
    model, optimizer = make(8, 16, 4)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with sightline.watch(model, optimizer=optimizer) as watch:
        train(model, optimizer, 80, rate=1.0)
        if sets_back:
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        optimizer.param_groups[0]["lr"] = 1e-3
        train(model, optimizer, 100)
    return watch


def a_search_that_sets_nothing_back() -> Watch:
    return a_search_for_a_rate(sets_back=False)


def a_search_before_a_schedule() -> Watch:
    model = mlp(8, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with sightline.watch(model, optimizer=optimizer, scheduler=(scheduler := make_cosine(optimizer))) as watch:
        train(model, optimizer, 60, rate=3.0)
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        for _ in range(70):
            train(model, optimizer, 1)
            scheduler.step()
    return watch


def make_cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 70, eta_min=1e-3)


def folds(*, draws: bool = True) -> Watch:
    """Each fold begins with other weights, or (a bug) with those of the last one."""
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            for layer in model.children() if draws else ():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            optimizer.state.clear()
            train(model, optimizer, 20)
    return watch


def weights_that_are_rewound() -> Watch:
    """The lottery ticket: what is not pruned goes back to its first values, by `data`."""
    model, optimizer = make(8, 32, 4)
    first = copy.deepcopy(model.state_dict())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            train(model, optimizer, 20)
            mask = model[0].weight.abs() > model[0].weight.abs().quantile(0.2)
            for name, parameter in model.named_parameters():
                parameter.data = first[name].clone()
            model[0].weight.data *= mask
            optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    return watch


RESTARTS: list[Method] = [
    a_search_for_a_rate,
    a_search_that_sets_nothing_back,
    a_search_before_a_schedule,
    folds,
    weights_that_are_rewound,
]


@pytest.mark.parametrize("method", RESTARTS, ids=lambda method: method.__name__)
def test_a_loop_may_begin_anew(method: Method) -> None:
    torch.manual_seed(0)
    assert list_codes(method()) == []


def test_a_state_that_is_lost_alone_is_named() -> None:
    torch.manual_seed(0)
    assert list_codes(folds(draws=False)) == ["lost-state"]


@pytest.mark.parametrize("loads", ["the same weights", "clipped weights"])
def test_a_state_that_is_lost_at_a_resume_is_named(loads: str) -> None:
    torch.manual_seed(0)
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            train(model, optimizer, 20)
            if loads == "the same weights":
                model.load_state_dict(copy.deepcopy(model.state_dict()))
            else:
                nn.init.trunc_normal_(model[0].bias, std=1e-3)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    assert list_codes(watch) == ["lost-state"]


def test_a_fall_of_the_rate_is_named_after_a_restart() -> None:
    torch.manual_seed(0)
    model, optimizer = make(8, 16, 4)
    first = copy.deepcopy(model.state_dict())
    with sightline.watch(model, optimizer=optimizer) as watch:
        train(model, optimizer, 20)
        model.load_state_dict(first)
        optimizer.state.clear()
        for _ in range(12):
            train(model, optimizer, 10)
            optimizer.param_groups[0]["lr"] *= 0.3
    assert list_codes(watch) == ["schedule"]
