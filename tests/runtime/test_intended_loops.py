"""Loops that do on purpose what is a bug elsewhere: each beside a twin with the bug, which stays found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline

Loss = Callable[[Any, Any], Tensor]


def find(code: str, watch: Any) -> list[str]:
    """List the severities of the findings of a code."""
    return [each.severity for each in watch.findings if each.code == code]


def update(model: nn.Module, optimizer: torch.optim.Optimizer, value: Tensor) -> None:
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


# --- outputs that are the same for all samples ------------------------------------------------------------------------


class Detector(nn.Module):
    """Boxes relative to the cells of a grid, which come first among the outputs."""

    def __init__(self, grid: str) -> None:
        super().__init__()
        cells = torch.rand(16, 4)
        self.grid = nn.Parameter(cells) if grid == "learnt" else nn.Buffer(cells)
        self.maps, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.is_cut = grid == "cut"

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.maps(image).relu().flatten(2).mT
        grid = self.grid.expand(len(image), -1, -1).sigmoid()
        return grid, self.head(rows * 0 if self.is_cut else rows)


@pytest.mark.parametrize(("grid", "expected"), [("fixed", []), ("learnt", ["note"]), ("cut", ["error"])])
def test_anchors_before_the_boxes_are_no_constant_output(grid: str, expected: list[str]) -> None:
    torch.manual_seed(0)
    model = Detector(grid)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(8):
            anchors, boxes = model(torch.randn(8, 3, 16, 16))
            update(model, optimizer, F.smooth_l1_loss(anchors + boxes, torch.rand(8, 16, 4)))
    assert find("constant-output", watch) == expected


# --- passes without gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "expected"), [(3, []), (1, ["warning"]), (0, ["warning"])])
def test_parts_of_a_batch_whose_rows_are_needed_first_are_no_evaluation(kept: int, expected: list[str]) -> None:
    """As a contrastive loss needs them: each part of a step passes once without gradients, then once with them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(4):
            first = [torch.randn(8, 3) for _ in range(3)]
            parts = [*first[:kept], *(torch.randn(8, 3) for _ in range(3 - kept))]
            with torch.no_grad():
                rows = [model(part) for part in first]
            optimizer.zero_grad()
            for index, part in enumerate(parts):
                others = torch.cat(rows[:index] + rows[index + 1 :])
                (model(part) @ others.T).logsumexp(dim=1).mean().backward()
            optimizer.step()
    assert find("mode", watch) == expected


# --- samples that come again ------------------------------------------------------------------------------------------


class Ratings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Linear(20, 8), nn.Embedding(60, 8)

    def forward(self, features: Tensor, item: Tensor) -> Tensor:
        return (self.user(features) * self.item(item)).sum(-1)


@pytest.mark.parametrize("is_shared", [False, True])
def test_features_of_a_user_are_no_sample(is_shared: bool) -> None:
    """Pairs of known users with other items, and of new users, are evaluated."""
    torch.manual_seed(0)
    features, pairs = torch.randn(60, 20), torch.cartesian_prod(torch.arange(60), torch.arange(60))
    pairs = pairs[torch.randperm(len(pairs))]
    known, new = pairs[pairs[:, 0] < 40][:1000], pairs[pairs[:, 0] >= 40][:200]
    trained, others = known[:600], known[200 if is_shared else 600 :]
    evaluated = torch.cat([others, new])[torch.randperm(len(others) + 200)]
    model = Ratings()
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(2):
            model.train()
            for rows in torch.randperm(600).split(50):
                user, item = trained[rows].T
                update(model, optimizer, F.mse_loss(model(features[user], item), torch.rand(50)))
            model.eval()
            with torch.no_grad():
                for part in evaluated.split(50):
                    model(features[part[:, 0]], part[:, 1])
    assert find("split-overlap", watch) == ["error"] * is_shared


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 8)

    def forward(self, time: Tensor, rows: Tensor) -> Tensor:
        return self.layer(torch.cat([rows, time[:, None] / 10], dim=1))


@pytest.mark.parametrize("is_same", [False, True])
def test_a_time_step_that_repeats_is_no_order_of_batches(is_same: bool) -> None:
    torch.manual_seed(0)
    model, stored = Timed(), torch.randn(10, 16, 8)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(30):
            rows = stored[step % 10] if is_same else torch.randn(16, 8)
            update(model, optimizer, F.mse_loss(model(torch.arange(16.0) + step % 10, rows), rows))
    assert find("same-order", watch) == ["warning"] * is_same


# --- batches of one class ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["one loss", "two backward passes", "two updates"])
def test_a_discriminator_of_two_classes_gets_real_and_generated_ones_in_turns(form: str) -> None:
    torch.manual_seed(0)
    generator, judge = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizers = [torch.optim.Adam(each.parameters()) for each in (generator, judge)]
    labels = torch.ones(16, dtype=torch.long), torch.zeros(16, dtype=torch.long)
    with sightline.watch({"generator": generator, "judge": judge}, optimizer=optimizers) as watch:
        for _ in range(60):
            drawn = generator(torch.randn(16, 4))
            batches = [*zip((torch.randn(16, 8), drawn.detach()), labels, strict=True)]
            optimizers[1].zero_grad()
            if form == "one loss":
                sum(F.cross_entropy(judge(rows), label) for rows, label in batches).backward()  # type: ignore[union-attr]
            for rows, label in batches if form != "one loss" else ():
                F.cross_entropy(judge(rows), label).backward()
                if form == "two updates":
                    optimizers[1].step()
            optimizers[1].step()
            optimizers[0].zero_grad()
            F.cross_entropy(judge(drawn), labels[0]).backward()
            optimizers[0].step()
    assert find("same-label", watch) == []


@pytest.mark.parametrize("classes", [[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 0, 3, 1, 2]])
def test_batches_of_one_class_of_several_are_found(classes: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for number in classes:
            update(model, optimizer, F.cross_entropy(model(torch.randn(16, 8)), torch.full((16,), number)))
    assert find("same-label", watch) == ["warning"]


class Reranker(nn.Module):
    """Scores of a list of candidates for a query."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.body = form, nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.one, self.classes = nn.Linear(16, 1, bias=form != "no bias"), nn.Linear(80, 5)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.body(rows)
        if self.form == "products":
            return (hidden[:, :1] * hidden).sum(-1)
        if self.form == "cosines":
            return 20 * F.cosine_similarity(hidden[:, :1], hidden, dim=-1)
        return self.classes(hidden.flatten(1)) if self.form == "classes" else self.one(hidden).squeeze(-1)


@pytest.mark.parametrize("form", ["a number each", "no bias", "products", "cosines", "classes"])
def test_the_right_candidate_of_a_list_may_be_the_first(form: str) -> None:
    torch.manual_seed(0)
    model = Reranker(form)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(8):
            update(model, optimizer, F.cross_entropy(model(torch.randn(16, 5, 12)), torch.zeros(16, dtype=torch.long)))
    assert find("same-label", watch) == (["warning"] if form == "classes" else [])


# --- passes without gradients -----------------------------------------------------------------------------------------


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def _adapt(model: nn.Module) -> None:
    """Statistics of the target domain (AdaBN, Li et al. 2017)."""
    for _ in range(6):
        model(1 + torch.randn(32, 8))
    model.eval()
    model(1 + torch.randn(32, 8))


def _draw(model: nn.Module) -> None:
    for _ in range(4):
        rows = torch.randn(32, 8)
        torch.stack([model(rows) for _ in range(8)]).mean(0)


def _draw_of_a_loader(model: nn.Module) -> None:
    rows = torch.randn(4, 32, 8)
    torch.stack([torch.stack([model(part.clone()) for part in rows]) for _ in range(8)]).mean(0)


def _forget(model: nn.Module) -> None:
    for _ in range(6):
        model(torch.randn(32, 8))


def _forget_twice(model: nn.Module) -> None:
    """Two figures of the same batches, in two loops."""
    rows = torch.randn(4, 32, 8)
    for part in (*rows, *rows):
        model(part)


@pytest.mark.parametrize(
    ("evaluate", "is_bug"),
    [(_adapt, False), (_draw, False), (_draw_of_a_loader, False), (_forget, True), (_forget_twice, True)],
)
def test_training_mode_without_gradients(evaluate: Callable[[nn.Module], None], is_bug: bool) -> None:
    torch.manual_seed(0)
    model = _network()
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(2):
            model.train()
            for _ in range(5):
                rows = torch.randn(32, 8)
                update(model, optimizer, F.cross_entropy(model(rows), rows[:, :3].argmax(1)))
            with torch.no_grad():
                evaluate(model)
    assert find("mode", watch) == ["warning"] * is_bug
    assert all(each.where.step == 6 for each in watch.findings)


@pytest.mark.parametrize("form", ["learnt", "converted without a count", "bug"])
def test_statistics_that_were_learnt_may_be_held(form: str) -> None:
    torch.manual_seed(0)
    model = _network()
    if form == "learnt":
        model(torch.randn(64, 8))
    elif form != "bug":
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(8):
            model.train()
            model[1].eval()
            rows = torch.randn(32, 8)
            update(model, optimizer, F.cross_entropy(model(rows), rows[:, :3].argmax(1)))
    assert find("mode", watch) == ["warning"] * (form == "bug")


# --- differences of all pairs -----------------------------------------------------------------------------------------


def _rank(scores: Tensor, others: Tensor) -> Tensor:
    return F.relu(1 - (scores - others.detach().T)).mean()


def _energy(scores: Tensor, target: Tensor) -> Tensor:
    """Energy distance of two samples (Székely and Rizzo 2013)."""
    return 2 * (scores - target.T).abs().mean() - (scores - scores.T).abs().mean()


PAIRS: dict[str, tuple[Loss, bool]] = {
    "a hinge of all pairs": (_rank, False),
    "a logistic loss of all pairs": (lambda scores, others: F.softplus(others.T - scores).mean(), False),
    "an energy distance": (_energy, False),
    "squares": (lambda scores, target: (scores - target[:, 0]).square().mean(), True),
    "absolute values": (lambda scores, target: (0.5 * (target[:, 0] - scores)).abs().sum() / 16, True),
    "products": (lambda scores, target: ((error := scores - target[:, 0]) * error).mean(), True),
    "torch's": (lambda scores, target: F.l1_loss(scores, target[:, 0]), True),
    "torch's squares": (lambda scores, target: F.mse_loss(scores, target[:, 0]), True),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_differences_of_all_pairs_are_a_bug_of_distances_alone(name: str) -> None:
    torch.manual_seed(0)
    loss, is_bug = PAIRS[name]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for rows in torch.randn(4, 16, 8):
            update(model, optimizer, loss(model(rows), rows[:, :1]))
    assert find("loss-form", watch) == ["error"] * is_bug


def test_gains_of_pairs_may_weigh_columns() -> None:
    torch.manual_seed(0)

    def rank(scores: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        value, gain = target
        is_better = (value[:, None] > value).to(scores)
        return (F.softplus(scores.T - scores) * is_better * gain).mean()

    rows = torch.randn(16, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    report = sightline.check(model, rank, (rows, (rows[:, 0], torch.rand(16))))
    assert [each.code for each in report.findings if each.code == "loss-form"] == []
