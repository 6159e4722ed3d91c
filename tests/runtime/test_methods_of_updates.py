"""Known methods, correct, raise nothing: schedules, averages, layers that join, pruning; bugs like them are found."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline
from sightline.doctor.watch.watch import Watch
from tests.runtime.odd_healthy_loops import mlp
from tests.runtime.short_loops import draw, list_codes, lose, make, train

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
    assert list_codes(watch) == (["no-update"] if form == "too low a rate" else [])


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
