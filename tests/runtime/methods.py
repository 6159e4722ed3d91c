"""Methods of training that look like a bug, beside the bug that they look like: each loop with it and without."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

import sightline
from tests.runtime.method_layers import (
    CHOICES,
    anchors_before_boxes,
    forgotten_expert,
    grow,
    infinite_running_variance,
    learn_values,
    prune,
    prune_once,
    second_head,
    table_of_words,
    trained_inputs,
    unfrozen_layers,
    words_of_one_axis,
)
from tests.runtime.method_parts import Optimizer, draw, lose, read, run, sgd, train, update
from tests.runtime.method_schedules import (
    average,
    folds,
    load_an_edited_state,
    rate_falls_after_a_restart,
    rewind_weights,
    schedule,
    search_before_a_schedule,
    search_for_a_rate,
    state_lost_at_a_resume,
    teacher_that_follows,
    warm_up_then_plateau,
)
from tests.runtime.odd_healthy_loops import batches, mlp
from tests.runtime.robust_loops import Graph, adjacency

# --- gradients that the loop reads, clears or writes itself -----------------------------------------------------------


def project_gradients(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Gradients of tasks that conflict are projected, and their sum is written back (PCGrad)."""
    stored = [torch.cat([each.flatten() for each in read(model, optimizer, turn=turn)]) for turn in range(3)]
    for one in (total := [each.clone() for each in stored]):
        for other in stored:
            one -= (one @ other).clamp(max=0) / (other @ other) * other
    parts = torch.stack(total).sum(dim=0).split([p.numel() for p in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad.copy_(part.view_as(parameter))
    optimizer.step()


def compare_with_a_memory(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """A-GEM, in which the gradient of the memory has been read, and then changes nothing."""
    reference, gradients = read(model, optimizer), read(model, optimizer)
    product = sum((a * b).sum() for a, b in zip(reference, gradients, strict=True))
    for parameter, other in zip(model.parameters(), reference, strict=True) if product < -100 else ():
        parameter.grad = parameter.grad - product * other
    optimizer.step()


def clip_each_sample(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Each sample's gradient is clipped; their sum, with noise, is the gradient (DP-SGD)."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(28):
        optimizer.zero_grad()
        lose(model, 1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each, parameter in zip(total, model.parameters(), strict=True):
            each += parameter.grad
    for parameter, each in zip(model.parameters(), total, strict=True):
        parameter.grad = (each + 0.1 * torch.randn_like(each)) / 28
    optimizer.step()


def measure_information(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """The Fisher information of the weights about a task is measured after it (EWC)."""
    train(model, optimizer, 20)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(60):
        for each, gradient in zip(total, read(model, optimizer, 1), strict=True):
            each += gradient.square() / 60
    optimizer.zero_grad()


def attack(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Inputs are moved by forty steps before each update (PGD)."""
    points, label = draw()
    move = torch.zeros_like(points, requires_grad=True)
    for _ in range(40):
        F.cross_entropy(model(points + move), label).backward()
        move.data += 0.01 * move.grad.sign()
        move.grad.zero_()
        optimizer.zero_grad()
    update(optimizer, F.cross_entropy(model((points + move).detach()), label))


def draw_maps_of_saliency(model: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """The hidden layer is weighed by its gradients (Grad-CAM)."""
    train(model, optimizer, 12)
    for _ in range(30):
        points, label = draw(1)
        optimizer.zero_grad()
        hidden = model[:2](points)
        hidden.retain_grad()
        model[2](hidden).gather(1, label[:, None]).sum().backward()
        assert (hidden.grad * hidden).isfinite().all()


def measure_noise() -> None:
    """A small batch is measured, and a large one is trained on."""
    model = mlp(8, 16, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def measure(size: int) -> float:
        optimizer.zero_grad()
        lose(model, size).backward()
        return float(sum(p.grad.square().sum() for p in model.parameters()))

    with sightline.watch(model, optimizer=optimizer):
        for _ in range(8):
            assert measure(8) + measure(64) > 0
            optimizer.step()


def imitate_a_copy(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Reptile, and MAML of the first order: a copy of the model is trained, and its moves are the gradients."""
    other = copy.deepcopy(model)
    train(other, torch.optim.SGD(other.parameters(), 0.05), 3)
    for parameter, moved in zip(model.parameters(), other.parameters(), strict=True):
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad.copy_(parameter.data - moved.data)
    optimizer.step()


def cancel_at_first(model: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """DINO cancels the gradients of its last layer in the first epoch."""
    read(model, optimizer)
    if step < 10:
        model[2].weight.grad = None
    optimizer.step()


def clear_what_is_not_finite(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        optimizer.zero_grad()
        (lose(model) * (float("nan") if step == 7 else 1.0)).backward()
        if not bug and not nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            optimizer.zero_grad()
        optimizer.step()

    run(body, 20)


def clear_from_some_update_on(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        read(model, optimizer)
        if bug and step > 10:
            optimizer.zero_grad()
        optimizer.step()

    run(body, 20)


def oppose(bug: bool) -> None:
    """Train a generator and its critic; with the bug, the gradients of true samples are cleared."""
    parts = nn.ModuleDict({"generator": mlp(4, 16, 8), "critic": mlp(8, 16, 1)})
    first, second = (torch.optim.Adam(part.parameters(), 1e-3) for part in parts.values())
    with sightline.watch(parts, optimizer=[first, second]):
        for _ in range(8):
            second.zero_grad()
            F.softplus(-parts["critic"](torch.randn(16, 8))).mean().backward()
            if bug:
                second.zero_grad()
            F.softplus(parts["critic"](parts["generator"](torch.randn(16, 4)).detach())).mean().backward()
            second.step()
            update(first, F.softplus(-parts["critic"](parts["generator"](torch.randn(16, 4)))).mean())


def accumulate_for_two(bug: bool) -> None:
    parts = mlp(8, 16, 4)
    optimizers = [torch.optim.SGD(part.parameters(), 0.05) for part in (parts[0], parts[2])]
    with sightline.watch(parts, optimizer=optimizers):
        for step in range(24):
            if bug or step % 3 == 0:
                parts.zero_grad()
            lose(parts).backward()
            for optimizer in optimizers if step % 3 == 2 else ():
                optimizer.step()


def updates_end(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        read(model, optimizer)
        if not bug or step < 20:
            optimizer.step()

    run(body, 80)


def before_a_first_pass() -> None:
    """Gradients by hand: parts of the model are watched from then on, until it is called as a whole."""
    head = nn.Linear(8, 4)
    model = nn.ModuleDict({"head": head, "body": nn.Sequential(nn.Linear(8, 8), nn.ReLU(), head)})

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        for parameter in model.parameters() if step == 0 else ():
            parameter.grad = torch.randn_like(parameter)
        if step == 0:
            optimizer.step()
        train(model["body"], optimizer, 10)

    run(body, 2, model=model, make=sgd())


def in_another_thread(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        def work() -> None:
            for _ in range(12):
                if not bug:
                    optimizer.zero_grad()
                lose(model).backward()
                optimizer.step()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    run(body, 1, make=sgd(0.01))


# --- samples and labels that come again -------------------------------------------------------------------------------


class Ratings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Linear(20, 8), nn.Embedding(60, 8)

    def forward(self, features: Tensor, item: Tensor) -> Tensor:
        return (self.user(features) * self.item(item)).sum(-1)


def features_of_users(bug: bool) -> None:
    """Pairs of known users with other items, and of new users, are evaluated; or pairs that were trained on."""
    features, pairs = torch.randn(60, 20), torch.cartesian_prod(torch.arange(60), torch.arange(60))
    pairs = pairs[torch.randperm(len(pairs))]
    known, new = pairs[pairs[:, 0] < 40][:1000], pairs[pairs[:, 0] >= 40][:200]
    trained, others = known[:600], known[200 if bug else 600 :]
    evaluated = torch.cat([others, new])[torch.randperm(len(others) + 200)]

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        for rows in torch.randperm(600).split(50):
            user, item = trained[rows].T
            update(optimizer, F.mse_loss(model.train()(features[user], item), torch.rand(50)))
        with torch.no_grad():
            for part in evaluated.split(50):
                model.eval()(features[part[:, 0]], part[:, 1])

    run(body, 2, model=Ratings())


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 8)

    def forward(self, time: Tensor, rows: Tensor) -> Tensor:
        return self.layer(torch.cat([rows, time[:, None] / 10], dim=1))


def times_that_repeat(bug: bool) -> None:
    stored = torch.randn(10, 16, 8)

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        rows = stored[step % 10] if bug else torch.randn(16, 8)
        update(optimizer, F.mse_loss(model(torch.arange(16.0) + step % 10, rows), rows))

    run(body, 30, model=Timed())


def one_class_a_batch(bug: bool) -> None:
    order = [0, 1, 2, 0, 3, 1, 2]

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        label = torch.full((16,), order[step]) if bug else torch.randint(4, (16,))
        update(optimizer, F.cross_entropy(model(torch.randn(16, 8)), label))

    run(body, 7)


def real_and_generated_in_turns(*, in_one_loss: bool) -> None:
    """A discriminator of two classes gets a batch of each."""
    generator, judge = nn.Linear(4, 8), mlp(8, 16, 2)
    optimizers = [torch.optim.Adam(each.parameters()) for each in (generator, judge)]
    labels = torch.ones(16, dtype=torch.long), torch.zeros(16, dtype=torch.long)
    with sightline.watch({"generator": generator, "judge": judge}, optimizer=optimizers):
        for _ in range(60):
            drawn = generator(torch.randn(16, 4))
            optimizers[1].zero_grad()
            pairs = zip((torch.randn(16, 8), drawn.detach()), labels, strict=True)
            losses = [lambda rows=rows, label=label: F.cross_entropy(judge(rows), label) for rows, label in pairs]
            for loss in [lambda losses=losses: losses[0]() + losses[1]()] if in_one_loss else losses:
                loss().backward()
            optimizers[1].step()
            update(optimizers[0], F.cross_entropy(judge(drawn), labels[0]))


class Reranker(nn.Module):
    """Scores of a list of candidates for a query, of which the right one is the first; or of classes."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.body = form, nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        last = {"classes": nn.Sequential(nn.Flatten(), nn.Linear(80, 5)), "a number each": nn.Linear(16, 1)}
        self.last = last.get(form, nn.Identity())

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.body(rows)
        if self.form == "products":
            return (hidden[:, :1] * hidden).sum(-1)
        if self.form == "cosines":
            return 20 * F.cosine_similarity(hidden[:, :1], hidden, dim=-1)
        return self.last(hidden).view(len(rows), 5)


def first_candidates(bug: bool, *, form: str = "a number each") -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        update(optimizer, F.cross_entropy(model(torch.randn(16, 5, 12)), torch.zeros(16, dtype=torch.long)))

    run(body, model=Reranker("classes" if bug else form))


def few_defects() -> None:
    """Few images show a defect, and some places are ignored."""

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        label = torch.zeros(2, 16, 16, dtype=torch.long)
        label[:, :2] = 255
        label[0, 5:8, 5:8] = int(step % 8 == 7)
        update(optimizer, F.cross_entropy(model(torch.randn(2, 3, 16, 16)), label, ignore_index=255))

    run(body, 40, model=nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)))


def heads_as_wide_as_a_batch() -> None:
    """Eight samples, and heads of eight numbers."""

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        inputs = torch.randn(12, 8, 32)
        update(optimizer, F.cross_entropy(model(inputs)[0], inputs[0, :, :3].argmax(1)))

    run(body, 4, model=nn.Sequential(nn.TransformerEncoderLayer(32, 4, 32, dropout=0.0), nn.Linear(32, 3)))


# --- modes ------------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def rows_needed_first(bug: bool) -> None:
    """As a contrastive loss needs them: each part of a step passes once without gradients, then once with them."""

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        first = [torch.randn(8, 8) for _ in range(3)]
        with torch.no_grad():
            rows = [model(part) for part in first]
        optimizer.zero_grad()
        for index, part in enumerate([torch.randn(8, 8) for _ in range(3)] if bug else first):
            others = torch.cat(rows[:index] + rows[index + 1 :])
            (model(part) @ others.T).logsumexp(dim=1).mean().backward()
        optimizer.step()

    run(body, 4, model=nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)), make=sgd(1e-2))


def adapt(model: nn.Module) -> None:
    """Statistics of the target domain (AdaBN, Li et al. 2017)."""
    for _ in range(6):
        model(1 + torch.randn(32, 8))
    model.eval()(1 + torch.randn(32, 8))


def repeat_draws(model: nn.Module) -> None:
    for _ in range(4):
        rows = torch.randn(32, 8)
        torch.stack([model(rows) for _ in range(8)]).mean(0)


def evaluate_in_training_mode(bug: bool, *, passes: Callable[[nn.Module], None] = adapt) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        train(model.train(), optimizer, 5)
        with torch.no_grad():
            for _ in range(6 if bug else 0):
                model(torch.randn(32, 8))
            if not bug:
                passes(model)

    run(body, 2, model=network())


def hold_statistics(bug: bool) -> None:
    """A batch norm is held in evaluation mode before it has learned anything, or after."""
    model = network()
    if not bug:
        model(torch.randn(64, 8))

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        model.train()
        model[1].eval()
        train(model, optimizer, 1)

    run(body, model=model)


def frozen_critic() -> None:
    """The critic is frozen while its maker is trained through it."""
    maker, critic = mlp(4, 16, 10), mlp(10, 16, 1)
    of_maker, of_critic = (torch.optim.Adam(model.parameters(), 1e-3) for model in (maker, critic))
    with sightline.watch(critic, optimizer=of_critic):
        for (real,) in batches(torch.randn(256, 10)):
            update(of_critic, critic(maker(torch.randn(32, 4)).detach()).mean() - critic(real).mean())
            critic.requires_grad_(False)
            update(of_maker, -critic(maker(torch.randn(32, 4))).mean())
            critic.requires_grad_(True)


def compare_all(lose: Callable[[Tensor, Tensor], Tensor]) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        rows = torch.randn(16, 8)
        update(optimizer, lose(model(rows), rows[:, :1]))

    run(body, 4, model=(8, 16, 1))


def outputs_of_a_graph(change: Callable[[Tensor], Tensor]) -> None:
    """Train a graph network of a sparse adjacency; `change` plants a bug where the outputs are."""
    edges = adjacency(torch.sparse_csr)

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        nodes = torch.randn(30, 8)
        update(optimizer, F.cross_entropy(change(model(edges, nodes)), nodes[:, :4].argmax(1)))

    run(body, 20, model=Graph())


PAIRS: dict[str, tuple[str, Callable[[bool], object]]] = {
    "not finite, and cleared": ("optim.nonfinite loss.form model.numerics", clear_what_is_not_finite),
    "cleared from some update on": ("optim.step_order optim.grad_accumulation", clear_from_some_update_on),
    "gradients of true samples cleared": ("optim.grad_accumulation optim.step_order", oppose),
    "two optimisers accumulate": ("optim.grad_accumulation", accumulate_for_two),
    "updates end": ("optim.step_order optim.amp", updates_end),
    "another thread": ("optim.grad_accumulation", in_another_thread),
    "folds": ("ckpt.incomplete_state optim.state", folds),
    "a state that is lost at a resume": ("ckpt.incomplete_state", state_lost_at_a_resume),
    "a rate that falls after a restart": ("optim.scheduler", rate_falls_after_a_restart),
    "a warm-up, then a plateau": ("optim.scheduler", warm_up_then_plateau),
    "a warm-up by updates": (
        "optim.scheduler",
        lambda bug: schedule(lambda step: min(1.0, (step + 1) / 40), 20 if bug else 1),
    ),
    "an average that begins later": ("model.norm_mode optim.state", average),
    "a state that is edited": ("ckpt.alias", load_an_edited_state),
    "a teacher that follows": ("optim.state", teacher_that_follows),
    **{
        f"a network that grows, {'in a list' if listed else 'by numbers'}": (
            "model.structure",
            partial(grow, listed=listed),
        )
        for listed in (True, False)
    },
    "a second head": ("model.structure", second_head),
    "an input that is trained": ("optim.param_coverage", trained_inputs),
    "layers that are unfrozen": ("optim.param_coverage", unfrozen_layers),
    "an expert": ("model.structure", forgotten_expert),
    "a table of words": ("optim.lr model.numerics", table_of_words),
    "values of actions": ("model.activation", partial(learn_values, choose=CHOICES["gathered"])),
    "softly pruned weights": ("quant.no_effect optim.step_order", prune),
    "pruned weights": ("quant.no_effect optim.step_order", prune_once),
    "anchors before boxes": ("model.constant_output", anchors_before_boxes),
    "words of one axis": ("model.constant_output", words_of_one_axis),
    "a running variance": ("model.numerics data.corrupt_sample optim.nonfinite", infinite_running_variance),
    "features of users": ("data.split", features_of_users),
    "times that repeat": ("data.ordering", times_that_repeat),
    "a class a batch": ("data.ordering data.label_mapping data.sampling", one_class_a_batch),
    "the first candidate": ("data.label_mapping data.ordering", first_candidates),
    "rows that are needed first": ("eval.mode model.norm_mode", rows_needed_first),
    "training mode without gradients": ("eval.mode", evaluate_in_training_mode),
    "statistics that are held": ("model.norm_mode", hold_statistics),
    "outputs of a graph": (
        "loss.double_softmax",
        lambda bug: outputs_of_a_graph(lambda outputs: outputs.softmax(1) if bug else outputs),
    ),
    "infinite outputs of a graph": (
        "model.numerics loss.form",
        lambda bug: outputs_of_a_graph(lambda outputs: outputs / (0 if bug else 1)),
    ),
}
"""Causes and loop by name."""

READING = {
    project_gradients: 8,
    compare_with_a_memory: 12,
    clip_each_sample: 6,
    measure_information: 3,
    attack: 6,
    draw_maps_of_saliency: 2,
    imitate_a_copy: 8,
    cancel_at_first: 30,
}
HEALTHY: dict[str, Callable[[], object]] = {
    **{body.__name__: partial(run, body, steps) for body, steps in READING.items()},
    "measure_noise": measure_noise,
    "before a first pass": before_a_first_pass,
    "a search for a rate": partial(search_for_a_rate, sets_back=True),
    "a search that sets nothing back": partial(search_for_a_rate, sets_back=False),
    "a search before a schedule": search_before_a_schedule,
    "weights that are rewound": rewind_weights,
    "a long warm-up, then a plateau": partial(warm_up_then_plateau, False, warms=100, updates=80),
    "a warm-up by epochs": partial(schedule, lambda epoch: min(1.0, (epoch + 1) / 5), 20),
    "a warm-up that is longer than the loop": partial(schedule, lambda step: min(1.0, (step + 1) / 1000), 1),
    "a decay": partial(schedule, lambda epoch: 0.9**epoch, 20),
    "a rise": partial(schedule, lambda epoch: 0.2 * 1.1**epoch, 20),
    "an average that begins much later": partial(average, False, begins=210, updates=230),
    "a teacher that follows once": partial(teacher_that_follows, False, at=200),
    "a teacher of a trained model": partial(teacher_that_follows, False, at=-1, factor=5.0),
    "a teacher in a short loop": partial(teacher_that_follows, False, at=-1, updates=100),
    "a prompt": partial(trained_inputs, False, form="prompt"),
    "an image": partial(trained_inputs, False, form="image"),
    "layers in a second optimiser": partial(unfrozen_layers, False, held="by a second"),
    **{f"values, {name}": partial(learn_values, False, choose=choose) for name, choose in CHOICES.items()},
    "masks after each update": partial(prune, False, last=2, masks=True),
    "dense, sparse, dense": partial(prune_once, False, until=70),
    "pruned by torch": partial(prune_once, False, by_torch=True),
    "from zero": partial(prune_once, False, until=0, start="zeros_"),
    "from an identity": partial(prune_once, False, until=0, start="eye_"),
    "real and generated in turns": partial(real_and_generated_in_turns, in_one_loss=False),
    "real and generated in one loss": partial(real_and_generated_in_turns, in_one_loss=True),
    "products with the first candidate": partial(first_candidates, False, form="products"),
    "cosines with the first candidate": partial(first_candidates, False, form="cosines"),
    "few defects": few_defects,
    "heads as wide as a batch": heads_as_wide_as_a_batch,
    "draws of dropout": partial(evaluate_in_training_mode, False, passes=repeat_draws),
    "a frozen critic": frozen_critic,
    "a hinge of all pairs": partial(compare_all, lambda o, t: F.relu(1 - (o - t.T)).mean()),
    "a logistic loss of all pairs": partial(compare_all, lambda o, t: F.softplus(t.T - o).mean()),
    "an energy distance": partial(compare_all, lambda o, t: 2 * (o - t.T).abs().mean() - (o - o.T).abs().mean()),
}
