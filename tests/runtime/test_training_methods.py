"""Known methods of training, correct, raise nothing; the bug that each of them resembles is found."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline
from sightline.workbench.watch.watch import Watch
from tests.runtime.odd_healthy_loops import mlp

Method = Callable[[], Watch]


def draw(size: int = 32, turn: int = 0) -> tuple[Tensor, Tensor]:
    """Draw a batch whose label is the largest of four numbers; `turn` shifts the labels, for another task."""
    points = torch.randn(size, 8)
    return points, (points[:, :4].argmax(dim=1) + turn) % 4


def lose(model: nn.Module, size: int = 32, turn: int = 0) -> Tensor:
    points, label = draw(size, turn)
    return F.cross_entropy(model(points), label)


def copy_gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def list_codes(watch: Watch) -> list[str]:
    return [finding.code for finding in watch.findings if finding.severity != "note"]


def make(*widths: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = mlp(*widths)
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


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
    assert list_codes(watch) == ["skipped-updates"]


# --- restarts --------------------------------------------------------------------------------------------------------


def train(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int, rate: float | None = None) -> None:
    """Train; with `rate`, the learning rate rises to it by equal factors from a millionth of it."""
    for step in range(updates):
        for group in optimizer.param_groups if rate else ():
            group["lr"] = rate * 1e-6 ** (1 - step / updates)
        optimizer.zero_grad()
        lose(model).backward()
        optimizer.step()


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


def folds(*, draws: bool = True, clears: bool = True) -> Watch:
    """Each fold begins with other weights, or (a bug) with those of the last one."""
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            for layer in model.children() if draws else ():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            if clears:
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


# --- schedules and averages ------------------------------------------------------------------------------------------


def follow(*, warms: int, updates: int, steps_plateau: bool = True) -> Watch:
    """Warm up by `warms` updates, and lower the rate after epochs whose loss has not fallen."""
    model, optimizer = make(8, 16, 4)
    schedulers = torch.optim.lr_scheduler
    warm_up = schedulers.LinearLR(optimizer, 0.01, total_iters=warms)
    plateau = schedulers.ReduceLROnPlateau(optimizer, patience=1)
    with sightline.watch(model, optimizer=optimizer, scheduler=[warm_up, plateau]) as watch:
        for step in range(updates):
            train(model, optimizer, 1)
            if step < warms:
                warm_up.step()
            elif step % 20 == 19 and steps_plateau:
                plateau.step(1.0)
    return watch


def test_a_second_scheduler_takes_over_after_the_warm_up() -> None:
    torch.manual_seed(0)
    assert list_codes(follow(warms=40, updates=120)) == []
    assert list_codes(follow(warms=100, updates=80)) == []
    assert list_codes(follow(warms=40, updates=120, steps_plateau=False)) == ["schedule"]


def average(*, begins: int, updates: int, copies_buffers: bool = True) -> Watch:
    """Average weights from an update on, by hand, and evaluate the average after each twenty updates."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    mean, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.05)
    with sightline.watch(model, optimizer=optimizer, ema=mean) as watch:
        for step in range(updates):
            train(model, optimizer, 1)
            with torch.no_grad():
                for own, value in zip(mean.parameters(), model.parameters(), strict=True) if step >= begins else ():
                    own.lerp_(value, 0.1)
                for own, value in zip(mean.buffers(), model.buffers(), strict=True) if step >= begins else ():
                    own.copy_(value if copies_buffers else own)
                if step % 20 == 19:
                    mean.eval()(draw()[0])
    return watch


def test_an_average_may_be_evaluated_before_it_begins() -> None:
    torch.manual_seed(0)
    assert list_codes(average(begins=60, updates=100)) == []
    assert list_codes(average(begins=210, updates=230)) == []
    assert list_codes(average(begins=60, updates=100, copies_buffers=False)) == ["ema"]
    assert list_codes(average(begins=60, updates=40)) == ["ema"]


# --- weights that are loaded -----------------------------------------------------------------------------------------


def load(*, edits: bool, clips: bool = False) -> Watch:
    """Load a state that the loop has just taken and edited in its place, or one that it took too early, uncopied."""
    model, optimizer = make(8, 16, 4)
    state: dict[str, Tensor] = {}
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(30):
            train(model, optimizer, 1)
            if clips:
                with torch.no_grad():
                    torch._foreach_clamp_max_(list(model.parameters()), 0.1)
            if step % 10 == 9:
                state = model.state_dict() if edits or not state else state
                if edits:
                    state["2.weight"] *= 0.9
                model.load_state_dict(state)
    return watch


def test_a_state_may_be_edited_in_its_place() -> None:
    torch.manual_seed(0)
    assert list_codes(load(edits=True)) == []
    assert list_codes(load(edits=True, clips=True)) == []
    assert list_codes(load(edits=False)) == ["aliased-weights"]
    assert list_codes(load(edits=False, clips=True)) == ["aliased-weights"]


# --- updates ---------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """A large table, of which the upper half of the rows is used, and a bias."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table, self.bias = nn.Embedding(20_000, 16, sparse=sparse), nn.Parameter(torch.zeros(4))

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words).mean(dim=1)[:, :4] + self.bias


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "too low a rate"])
def test_tables_are_compared_where_they_train(sparse: bool, form: str) -> None:
    torch.manual_seed(0)
    model = Words(sparse=sparse)
    kind = torch.optim.SparseAdam if sparse and form == "float32" else torch.optim.SGD
    model = model.bfloat16() if form != "float32" else model
    optimizers = [kind(model.table.parameters(), 1e-9 if form == "too low a rate" else 0.5)]
    optimizers.append(torch.optim.SGD([model.bias], 0.5))
    with sightline.watch(model, optimizer=optimizers) as watch:
        for _ in range(4):
            words = torch.randint(10_000, 20_000, (16, 3))
            model.zero_grad()
            (8 * F.cross_entropy(model(words), words[:, 0] % 4)).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert ("no-update" in list_codes(watch)) == (form == "too low a rate")


def test_a_line_search_ends_where_the_loss_is_lowest() -> None:
    torch.manual_seed(0)
    model, points = nn.Linear(8, 1), torch.randn(64, 8)
    nn.init.normal_(model.weight)
    wanted = points @ torch.randn(8, 1) + 0.1 * torch.randn(64, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(points), wanted)
        loss.backward()
        return loss

    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(8):
            optimizer.step(closure)
    assert list_codes(watch) == []


# --- layers that join later, and what else is trained -----------------------------------------------------------------


class Growing(nn.Module):
    """A network that begins with one stage and grows, with an output for each size; stages by numbers or in a list."""

    def __init__(self, *, listed: bool) -> None:
        super().__init__()
        self.enter, self.size = nn.Linear(8, 16), 0
        stages = [(nn.Linear(16, 16), nn.Linear(16, 4)) for _ in range(3)]
        if listed:
            self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
            for stage, head in stages:
                self.stages.append(stage)
                self.heads.append(head)
        else:
            for number, (stage, head) in enumerate(stages):
                setattr(self, f"stage{number}", stage)
                setattr(self, f"head_{number}", head)
        self.listed = listed

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.enter(points)
        for number in range(self.size + 1):
            hidden = (self.stages[number] if self.listed else getattr(self, f"stage{number}"))(hidden.relu())
        return (self.heads[self.size] if self.listed else getattr(self, f"head_{self.size}"))(hidden)


def grow(*, listed: bool, grows: bool = True) -> Watch:
    model = Growing(listed=listed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            train(model, optimizer, 60)
            model.size += grows
    return watch


@pytest.mark.parametrize("listed", [True, False])
def test_a_network_may_grow(listed: bool) -> None:
    torch.manual_seed(0)
    assert list_codes(grow(listed=listed)) == []
    assert list_codes(grow(listed=listed, grows=False)) == ["no-gradient"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.label, self.rest = mlp(8, 16), nn.Linear(16, 4), nn.Linear(16, 8)
        self.is_second = False

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.body(points).relu()
        return torch.cat([self.label(hidden), *([self.rest(hidden)] if self.is_second else ())], dim=1)


@pytest.mark.parametrize("joins", [30, 10_000])
def test_a_second_head_may_join(joins: int) -> None:
    torch.manual_seed(0)
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(60):
            model.is_second = step >= joins
            train(model, optimizer, 1)
    assert list_codes(watch) == ([] if joins == 30 else ["no-gradient"])


def test_gradients_of_a_layer_may_be_cancelled_at_first() -> None:
    """DINO cancels those of its last layer in the first epoch."""
    torch.manual_seed(0)
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(30):
            optimizer.zero_grad()
            lose(model).backward()
            if step < 10:
                model[2].weight.grad = None
            optimizer.step()
    assert list_codes(watch) == []


@pytest.mark.parametrize("form", ["latent", "prompt", "image", "head alone"])
def test_what_goes_into_a_model_may_be_trained(form: str) -> None:
    """Nobody need freeze a generator that is in no optimiser; a body that a head is trained on is left out."""
    torch.manual_seed(0)
    model, head = mlp(8, 16, 4), nn.Linear(4, 4)
    latent = torch.zeros(32 if form == "image" else 1, 8, requires_grad=True)
    optimizer = torch.optim.Adam(head.parameters() if form == "head alone" else [latent], lr=0.01)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(30):
            points, label = draw()
            inputs = {"prompt": points + latent, "head alone": points}.get(form, latent.expand(32, 8))
            optimizer.zero_grad()
            F.cross_entropy(head(model(inputs)), label).backward()
            optimizer.step()
    assert list_codes(watch) == (["not-optimised"] if form == "head alone" else [])


# --- units and pruned weights ----------------------------------------------------------------------------------------

CHOICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gathered": lambda values, action: values.gather(1, action[:, None])[:, 0],
    "indexed": lambda values, action: values[torch.arange(len(values)), action],
    "masked": lambda values, action: (values * F.one_hot(action, values.shape[1])).sum(dim=1),
    "the largest": lambda values, action: values.max(dim=1).values,
    "boxes of a class": lambda values, action: values.view(len(values), -1, 4)[torch.arange(len(values)), action].sum(
        1
    ),
}


def play(choose: Callable[[Tensor, Tensor], Tensor], *, dies: bool, ends_in_relu: bool = False) -> Watch:
    """Learn values of a few of many actions; `dies`: a bias turns most hidden units off."""
    model, optimizer = make(8, 32, 64)
    if dies:
        nn.init.constant_(model[0].bias[:28], -100.0)
    if ends_in_relu:
        model.append(nn.ReLU())
        nn.init.constant_(model[2].bias, -100.0)
        nn.init.constant_(model[2].bias[:8], 1.0)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(30):
            points, action = draw(8)
            optimizer.zero_grad()
            F.smooth_l1_loss(choose(model(points), action), points[:, 0]).backward()
            optimizer.step()
    return watch


@pytest.mark.parametrize("name", CHOICES)
def test_outputs_that_a_loss_does_not_take_are_not_dead(name: str) -> None:
    torch.manual_seed(0)
    assert list_codes(play(CHOICES[name], dies=False)) == []
    assert [(f.code, f.where.layer) for f in play(CHOICES[name], dies=True).findings] == [("dead-units", "0")]
    if name == "gathered":
        watch = play(CHOICES[name], dies=False, ends_in_relu=True)
        assert [(f.code, f.where.layer) for f in watch.findings] == [("dead-units", "2")]


def prune(*, last: int, masks: bool = False) -> Watch:
    """Set half of a weight to zero after some epochs of six, up to the `last`; `masks`: and after each update."""
    model, optimizer = make(8, 64, 64, 4)
    mask = torch.ones(64, 64)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for epoch in range(6):
            for _ in range(10):
                train(model, optimizer, 1)
                if masks:
                    model[2].weight.data *= mask
            if 2 <= epoch <= last:
                mask = model[2].weight.abs() > model[2].weight.abs().median()
                model[2].weight.data *= mask
    return watch


def test_softly_pruned_weights_are_zero_at_last() -> None:
    torch.manual_seed(0)
    assert list_codes(prune(last=5)) == []
    assert list_codes(prune(last=2, masks=True)) == []
    (finding,) = prune(last=4).findings
    assert (finding.code, finding.where.step) == ("regrown-weights", 31)


# --- gradients that the loop writes ----------------------------------------------------------------------------------


def test_gradients_may_be_written_in_place_of_the_last_ones() -> None:
    """Reptile, and MAML of the first order: a copy of the model is trained, and its gradients are copied."""
    torch.manual_seed(0)
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(8):
            other = copy.deepcopy(model)
            train(other, torch.optim.SGD(other.parameters(), 0.05), 3)
            for parameter, moved in zip(model.parameters(), other.parameters(), strict=True):
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(parameter.data - moved.data)
            optimizer.step()
    assert list_codes(watch) == []


@pytest.mark.parametrize("is_guarded", [True, False])
def test_gradients_that_are_not_finite_may_be_cleared(is_guarded: bool) -> None:
    torch.manual_seed(0)
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(20):
            optimizer.zero_grad()
            (lose(model) * (float("nan") if step == 7 else 1.0)).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if is_guarded and not norm.isfinite():
                optimizer.zero_grad()
            optimizer.step()
    assert list_codes(watch)[:1] == ([] if is_guarded else ["non-finite"])


def test_gradients_that_are_cleared_from_some_update_on_are_named() -> None:
    torch.manual_seed(0)
    model, optimizer = make(8, 16, 4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(20):
            optimizer.zero_grad()
            lose(model).backward()
            if step > 10:
                optimizer.zero_grad()
            optimizer.step()
    assert list_codes(watch) == ["gradients-cleared"]


class Calling(nn.Module):
    """A module of two parts, of which one calls the other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), self.head)

    def forward(self, points: Tensor) -> Tensor:
        return self.body(points)


@pytest.mark.parametrize("called", ["the model", "a part", "a part that fails"])
def test_a_first_update_may_come_before_a_first_pass(called: str) -> None:
    """Gradients by hand: parts of the model are watched from then on, until it is called as a whole."""
    torch.manual_seed(0)
    model = Calling()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        if called == "a part that fails":
            with pytest.raises(RuntimeError):
                model.body(torch.randn(4, 3))
        train(model if called == "the model" else model.body, optimizer, 20)
    assert list_codes(watch) == []
    assert watch._loop.num_forwards >= 20
