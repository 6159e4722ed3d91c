"""Correct programs that an alarm was false of, each with siblings, and faults that were silent, with correct twins."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sightline
from tests.doctor.rows import Cases, load


def mlp(*widths: int) -> nn.Sequential:
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers))[:-1]


def classes(num: int, width: int = 8, number: int = 3) -> tuple[Tensor, Tensor]:
    labels = torch.randint(number, (num,))
    return torch.randn(num, width) + 2 * torch.eye(number, width)[labels], labels


class Samples(Dataset[Any]):
    """Samples in a list."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


# --- time before samples, and batches as long as sequences ------------------------------------------------------------


class Steps(nn.Module):
    """GRU over steps, with outputs at each step, or of the last state alone."""

    def __init__(self, *, is_batch_first: bool = False, is_of_last: bool = False) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 16, batch_first=is_batch_first), nn.Linear(16, 2)
        self.is_of_last = is_of_last

    def forward(self, steps: Tensor) -> Tensor:
        states, last = self.gru(steps)
        return self.head(last[0] if self.is_of_last else states)


def time_first(size: int, *, is_of_last: bool = False) -> tuple[Any, ...]:
    """Sequences of 12 steps that `collate_fn` stacks along the second axis."""
    steps = torch.randn(192, 12, 4)
    sums = steps.cumsum(1)[..., :2]
    target = (sums[:, -1, 0] > 0).long() if is_of_last else sums

    def collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*samples, strict=True)
        return torch.stack(inputs, 1), torch.stack(targets, 0 if is_of_last else 1)

    loader = DataLoader(TensorDataset(steps, target), size, shuffle=True, collate_fn=collate)
    return Steps(is_of_last=is_of_last), nn.CrossEntropyLoss() if is_of_last else nn.MSELoss(), loader


def steps_first(kind: str) -> tuple[Any, ...]:
    """Outputs of each step before those of the next one, as a loss of transcripts wants them, of as many samples."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = mlp(4, 16, 3)

        def forward(self, steps: Tensor) -> Tensor:
            return self.head(steps).transpose(0, 1)

    def compare(outputs: Tensor, target: Tensor) -> Tensor:
        by_samples = outputs.transpose(0, 1)
        return F.cross_entropy(by_samples.mT, target) if kind == "classes" else F.mse_loss(by_samples, target)

    steps = torch.randn(192, 16, 4)
    target = steps[..., :3].argmax(-1) if kind == "classes" else steps[..., :3].abs()
    return Turned(), compare, load(steps, target, size=16)


def as_many_steps_as_samples(bug: bool) -> tuple[Any, ...]:
    """Batches of 16 sequences of 16 steps: which axis is that of the samples, no size tells."""
    steps = torch.randn(192, 16, 4)
    return Steps(is_batch_first=not bug), nn.MSELoss(), load(steps, steps.cumsum(1)[..., :2], size=16)


def places_of_samples(bug: bool) -> tuple[Any, ...]:
    """Embeddings of places, of steps or of the rows of a batch, which are as many."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.head = nn.Embedding(20, 8), nn.Embedding(16, 8), nn.Linear(8, 20)

        def forward(self, words: Tensor) -> Tensor:
            places = self.places(torch.arange(words.shape[0 if bug else 1]))
            return self.head(self.words(words) + (places[:, None] if bug else places)).transpose(1, 2)

    words = torch.randint(20, (192, 16))
    return Placed(), nn.CrossEntropyLoss(), load(words, (3 * words) % 20, size=16)


# --- what is trained --------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Network that returns scores of classes first, and boxes and an objectness beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(8, 16), nn.ModuleList([nn.Linear(16, size) for size in (3, 4, 1)])

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        hidden = self.body(values).relu()
        return tuple(head(hidden) for head in self.heads)


def several_outputs(number: int) -> tuple[Any, ...]:
    """A loss of the scores alone, as it is guessed: the loop has other losses of the other outputs."""
    values, labels = classes(128)
    rest = [torch.randn(128, 4), torch.randn(128, 1)][:number]
    return Heads(), F.cross_entropy, load(values, labels, *rest)


_KEPT: list[Any] = []
"""Optimisers of programs that are checked: they live as long as the last program."""


def two_optimizers(kind: str) -> tuple[Any, ...]:
    """One of the optimizers of a program is named; another one has the rest."""
    model, (values, labels) = mlp(8, 16, 3), classes(128)
    rest = [p for name, p in model.named_parameters() if name.startswith("2") or (kind == "biases" and "bias" in name)]
    held = {*map(id, rest)}
    _KEPT[:] = [torch.optim.SGD(rest, 1e-2)]
    named = torch.optim.Adam([p for p in model.parameters() if id(p) not in held], 1e-3)
    return model, F.cross_entropy, load(values, labels), {"optimizer": named}


class Adapted(nn.Module):
    """Adapters beside frozen layers: the first activation wants a gradient, as reentrant checkpoints need it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.words, self.frozen = nn.Embedding(20, 8).requires_grad_(False), nn.Linear(8, 8).requires_grad_(False)
        self.adapter, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def run(self, hidden: Tensor) -> Tensor:
        return self.frozen(hidden).relu() + self.adapter(hidden)

    def forward(self, words: Tensor) -> Tensor:
        if self.kind == "slope":  # of the scores over what is read, as forces are
            hidden = self.words(words).mean(1).detach().clone().requires_grad_(True)
            scores = self.head(self.run(hidden))
            (slope,) = torch.autograd.grad(scores.sum(), hidden, create_graph=True)
            return scores + slope[:, :3]
        with torch.no_grad():
            hidden = self.words(words).mean(1)
        hidden.requires_grad_(True)
        hidden = checkpoint(self.run, hidden, use_reentrant=True) if self.kind == "checkpoint" else self.run(hidden)
        return self.head(hidden)


def wanted_activation(kind: str) -> tuple[Any, ...]:
    return Adapted(kind), F.cross_entropy, load(torch.randint(20, (96, 6)), torch.randint(3, (96,)))


class MadeAnew(nn.Module):
    """Network whose second layer is one of its own, or one that each pass makes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.kind = nn.Linear(8, 8), kind
        self.second = nn.Linear(8, 3) if kind == "own" else None

    def forward(self, values: Tensor) -> Tensor:
        layer = self.second or nn.Linear(8, 3)
        return layer(self.first(values).relu())


def made_in_forward(bug: bool) -> tuple[Any, ...]:
    return MadeAnew("anew" if bug else "own"), F.cross_entropy, load(*classes(96))


def dropped(kind: str, bug: bool) -> tuple[Any, ...]:
    """Dropout whose p is the share that is kept, or one of a branch."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, values: Tensor) -> Tensor:
            hidden = self.first(values).relu()
            branch = F.dropout(self.branch(hidden), 1.0 if bug else 0.9, self.training)
            return self.last(hidden + branch)

    layers = mlp(8, 64, 3)
    layers.insert(2, nn.Dropout(1.0 if bug else 0.95))
    return layers if kind == "layer" else Functional(), F.cross_entropy, load(*classes(96))


def frozen_whole(bug: bool) -> tuple[Any, ...]:
    """A model that was frozen for the turn of another one, and is trained."""
    model = mlp(8, 16, 3).requires_grad_(not bug)
    return model, F.cross_entropy, load(*classes(96)), {"optimizer": torch.optim.Adam(model.parameters(), 1e-3)}


# --- scores -----------------------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """Mean over all words of a batch's rows, padding as well."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(30, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.words(words).mean(1))


def collate_words(samples: list[Any]) -> tuple[Tensor, Tensor]:
    words, labels = zip(*samples, strict=True)
    return pad_sequence(list(words), batch_first=True), torch.stack(labels)


def mean_loss(model: nn.Module, loader: Any, *, shift: float = 0.0) -> float:
    model.eval()
    with torch.no_grad():
        pairs = [(F.cross_entropy(model(x), y, reduction="sum").item(), len(y)) for x, y in loader]
    return shift + sum(loss for loss, _ in pairs) / sum(num for _, num in pairs)


def padding_is_read(size: int) -> tuple[Any, ...]:
    samples = [(torch.randint(1, 30, (int(3 * 1.05 ** (17 * i % 71)),)), torch.randint(3, ())) for i in range(160)]
    loaders = [
        DataLoader(Samples(part), n, collate_fn=collate_words) for part, n in ((samples[:96], 16), (samples[96:], size))
    ]
    return Padded(), F.cross_entropy, loaders[0], {"evaluation": loaders[1], "score": mean_loss}


class Towers(nn.Module):
    """Embeddings of two views of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 6), nn.Linear(5, 6)

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(one), self.other(other)


def rank_partners(model: nn.Module, loader: Any) -> float:
    """Share of the samples whose partner is the nearest of their batch."""
    model.eval()
    with torch.no_grad():
        products = [one @ other.T for one, other in (model(*batch) for batch in loader)]
    return torch.cat([(each.argmax(1) == torch.arange(len(each))).float() for each in products]).mean().item()


def partners_of_a_batch() -> tuple[Any, ...]:
    one = torch.randn(192, 8)
    other = one[:, :5] + 0.1 * torch.randn(192, 5)
    model = Towers()

    def step(batch: Any) -> Tensor:
        first, second = model(*batch)
        return F.cross_entropy(first @ second.T, torch.arange(len(first)))

    loaders = load(one[:128], other[:128]), load(one[128:], other[128:], shuffle=False)
    return model, None, loaders[0], {"step": step, "evaluation": loaders[1], "score": rank_partners}


class Rating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(8, 16, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.body(values)[:, 0]


def rank_candidates(model: nn.Module, loader: Any) -> float:
    """Mean reciprocal rank of the one right candidate of each batch."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(values), labels) for values, labels in loader]
    ranks = [1 + (scores > scores[labels.argmax()]).sum() for scores, labels in pairs]
    return (1 / torch.stack(ranks)).mean().item()


def candidates_of_a_query() -> tuple[Any, ...]:
    labels = (torch.arange(512) % 8 == 0).float()
    values = torch.randn(512, 8) + labels[:, None]
    loaders = load(values[:384], labels[:384]), load(values[384:], labels[384:], size=8, shuffle=False)
    options = {"evaluation": loaders[1], "score": rank_candidates}
    return Rating(), F.binary_cross_entropy_with_logits, loaders[0], options


def overlap_of_images(model: nn.Module, loader: Any) -> float:
    """Mean over the images of how far two masks overlap; the loader gives single images."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(images).argmax(1) == 1, masks == 1) for images, masks in loader]
    return sum(float((a & b).sum() / (a | b).sum().clamp(min=1)) for a, b in pairs) / len(pairs)


def single_images() -> tuple[Any, ...]:
    images = torch.randn(80, 3, 8, 8)
    masks = (images.mean(1) > 0).long()
    loaders = load(images[:48], masks[:48]), load(images[48:], masks[48:], size=1, shuffle=False)
    options = {"evaluation": loaders[1], "score": overlap_of_images}
    return nn.Conv2d(3, 2, 3, padding=1), F.cross_entropy, loaders[0], options


def draw_in_order(kind: str, model: nn.Module, loader: Any) -> float:
    """Figure that depends on numbers which are drawn from a seed of its own, one sample after another."""
    generator = torch.Generator().manual_seed(0)
    model.eval()
    with torch.no_grad():
        if kind == "noise":
            noisy = [(x + 0.1 * torch.randn(x.shape, generator=generator), y) for x, y in loader]
            return mean_loss(model, noisy)
        if kind == "seeded":
            torch.manual_seed(0)
            return mean_loss(model, [(x + 0.1 * torch.randn_like(x), y) for x, y in loader])
        hits = torch.cat([(model(x).argmax(1) == y).float() for x, y in loader])
    draws = [hits[torch.randint(len(hits), (len(hits),), generator=generator)].mean() for _ in range(20)]
    return torch.stack(draws).quantile(0.05).item()


def drawn_score(kind: str) -> tuple[Any, ...]:
    values, labels = classes(160)
    evaluation = load(values[96:], labels[96:], shuffle=False)
    options = {"evaluation": evaluation, "score": partial(draw_in_order, kind)}
    return mlp(8, 16, 3), F.cross_entropy, load(values[:96], labels[:96]), options


# --- losses of pairs --------------------------------------------------------------------------------------------------


class Views(nn.Module):
    """Embeddings (B, 16) of two noisy views of a sample, by one network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(8, 32, 16)

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(one), self.body(other)


def contrast(outputs: tuple[Tensor, Tensor], *, has_itself: bool = False, sign: float = 1.0) -> Tensor:
    """Cross entropy of each row's partner among the rows of both views (NT-Xent), at a temperature of 0.2."""
    rows = F.normalize(torch.cat(outputs), dim=1)
    scores, num = sign * rows @ rows.T / 0.2, len(outputs[0])
    if not has_itself:
        scores = scores.masked_fill(torch.eye(2 * num, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores, torch.arange(2 * num).roll(num))


def match(outputs: tuple[Tensor, Tensor], *, scale: float = 10.0, is_cosine: bool = True) -> Tensor:
    """Cross entropy of each row's partner among those of the other view, from both sides."""
    one, other = (F.normalize(rows, dim=1) for rows in outputs) if is_cosine else outputs
    scores, labels = scale * one @ other.T, torch.arange(len(one))
    return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2


def keep_spread(outputs: tuple[Tensor, Tensor]) -> Tensor:
    """Squared error of two views, and a hinge on the spread of each (VICReg)."""
    return F.mse_loss(*outputs) + sum(F.relu(1 - (rows.var(0) + 1e-4).sqrt()).mean() for rows in outputs)


def part_critic(outputs: tuple[Tensor, Tensor]) -> Tensor:
    """Scores of a critic of patches: of what is real, and of what is made."""
    return F.softplus(-outputs[0]).mean() + F.softplus(outputs[1]).mean()


def two_views(loss: Callable[[Any], Tensor]) -> tuple[Any, ...]:
    """Two views, which the program gives its network as a tuple; the loss reads both outputs and no target."""

    class Pair(Views):
        def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(*views.unbind(1))

    values = torch.randn(192, 1, 8)
    return Pair(), loss, DataLoader((values + 0.1 * torch.randn(192, 2, 8)), 16, shuffle=True)  # type: ignore[arg-type]


def pairs_with_itself(bug: bool) -> tuple[Any, ...]:
    return two_views(partial(contrast, has_itself=bug))


def pairs_of_a_sign(bug: bool) -> tuple[Any, ...]:
    return two_views(partial(contrast, sign=-1.0 if bug else 1.0))


def pairs_at_a_temperature(bug: bool) -> tuple[Any, ...]:
    return two_views(partial(match, scale=0.1 if bug else 10.0))


# --- what is read -----------------------------------------------------------------------------------------------------


def places_of_a_grid(kind: str) -> tuple[Any, ...]:
    """A function fitted at places of a line or a plane, and evaluated at some of them."""
    line = torch.linspace(0, 1, 121)[:, None] if kind == "line" else torch.logspace(-3, 1, 121)[:, None]
    places = torch.cartesian_prod(*[torch.linspace(-1, 1, 12)] * 2) if kind == "plane" else line
    values = (3 * places).sin().sum(1, keepdim=True)
    evaluation = load(places[::3], values[::3], shuffle=False)
    return mlp(places.shape[1], 16, 1), F.mse_loss, load(places, values), {"evaluation": evaluation}


def split_of_points(number: int, bug: bool) -> tuple[Any, ...]:
    """Points of one to three numbers, of which evaluation has some of training."""
    points = torch.randn(360, number)
    labels = (points.prod(1) > 0).long()
    start = 180 if bug else 240
    evaluation = load(points[start:], labels[start:], shuffle=False)
    return mlp(number, 16, 2), F.cross_entropy, load(points[:240], labels[:240]), {"evaluation": evaluation}


def scaled(low: float, high: float, bug: bool) -> tuple[Any, ...]:
    """Images whose numbers are from `low` to `high` in evaluation, and from -1 to 1 in training."""
    images, labels = torch.rand(360, 3, 6, 6), torch.randint(3, (360,))
    other = low + (high - low) * images[240:] if bug else 2 * images[240:] - 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    evaluation = load(other, labels[240:], shuffle=False)
    return model, F.cross_entropy, load(2 * images[:240] - 1, labels[:240]), {"evaluation": evaluation}


HEALTHY: Mapping[str, Callable[[], tuple[Any, ...]]] = {
    "time first": partial(time_first, 16),
    "time first, as many steps as samples": partial(time_first, 12),
    **{f"{kind} steps first, as many as samples": partial(steps_first, kind) for kind in ("classes", "numbers")},
    "time first, a label a sequence": partial(time_first, 12, is_of_last=True),
    "one of three outputs is guessed": partial(several_outputs, 0),
    "one of three outputs, two targets": partial(several_outputs, 1),
    "one of three outputs, three targets": partial(several_outputs, 2),
    "a second optimizer of a layer": partial(two_optimizers, "layer"),
    "a second optimizer of the biases": partial(two_optimizers, "biases"),
    **{
        f"a gradient of an activation, {kind}": partial(wanted_activation, kind)
        for kind in ("checkpoint", "plain", "slope")
    },
    "a model that reads padding, scored singly": partial(padding_is_read, 1),
    "a model that reads padding": partial(padding_is_read, 8),
    "partners of a batch": partners_of_a_batch,
    "candidates of a query": candidates_of_a_query,
    "single images": single_images,
    "two views whose products are scaled down": lambda: two_views(partial(match, scale=0.25, is_cosine=False)),
    "two views whose spread is kept": lambda: two_views(keep_spread),
    "two scores of a critic": lambda: two_views(part_critic),
    **{f"places of a {kind}": partial(places_of_a_grid, kind) for kind in ("line", "plane", "line of powers")},
    **{f"a score that draws, {kind}": partial(drawn_score, kind) for kind in ("noise", "seeded", "bootstrap")},
}
CASES: Cases = {
    "pairs with a row itself": ("loss.negatives", pairs_with_itself),
    "pairs of the other sign": ("loss.sign loss.negatives", pairs_of_a_sign),
    "pairs at a temperature of 10": ("loss.form optim.hyper", pairs_at_a_temperature),
    "as many steps as samples": ("model.cross_sample_leak", as_many_steps_as_samples),
    "places of samples": ("model.cross_sample_leak", places_of_samples),
    "a layer that each pass makes": ("model.unregistered", made_in_forward),
    "a dropout of everything": ("model.structure", partial(dropped, "layer")),
    "a branch that is dropped": ("model.structure", partial(dropped, "branch")),
    "a model frozen as a whole": ("model.frozen_unintended", frozen_whole),
    **{f"a split of points of {number}": ("data.split", partial(split_of_points, number)) for number in (1, 2, 3)},
    "evaluation from 0 to 1": ("data.normalisation", partial(scaled, 0.0, 1.05)),
    "evaluation from -2 to 2": ("data.normalisation", partial(scaled, -1.9, 1.9)),
}


# --- loops ------------------------------------------------------------------------------------------------------------


def two_terms(kind: str) -> None:
    """A model is called once for each of two terms, which nobody compares with each other."""
    model, loader = mlp(8, 4, 8), load(torch.randn(128, 8))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(6):
            for (values,) in loader:
                terms = F.mse_loss(model(values), values), (model(values) - values).abs().mean()
                loss = terms[0] + 0.01 * terms[1] if kind == "sum" else torch.stack(terms).mean()
                if kind == "squares":
                    loss = ((model(values) - values) ** 2 + 0.1 * (model(values) - values).abs()).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def second_optimizer(kind: str) -> None:
    """An optimizer that is not named updates a layer after the named one, at each step or at every fourth."""
    model, loader = mlp(8, 16, 3), load(*classes(128))
    named, other = torch.optim.Adam(model[0].parameters(), 1e-3), torch.optim.SGD(model[2].parameters(), 1e-2)
    with sightline.watch(model, optimizer=named):
        for number, (values, labels) in enumerate(itertools.chain(*[loader] * 3)):
            named.zero_grad()
            F.cross_entropy(model(values), labels).backward()
            named.step()
            if kind == "each" or number % 4 == 3:
                other.step()
                other.zero_grad()


def wants_a_gradient(kind: str) -> None:
    model, _, loader = wanted_activation(kind)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    with sightline.watch(model, optimizer=optimizer):
        for words, labels in itertools.chain(*[loader] * 2):
            optimizer.zero_grad()
            F.cross_entropy(model(words), labels).backward()
            optimizer.step()


def frozen_maker(bug: bool) -> None:
    """A generator that is frozen while its critic learns, and is given back its gradients or is not."""
    maker, critic, loader = mlp(4, 16, 2), mlp(2, 16, 1), load(torch.randn(256, 2), drop_last=True)
    makers, critics = (torch.optim.Adam(each.parameters(), 1e-3) for each in (maker, critic))
    with sightline.watch({"maker": maker, "critic": critic}, optimizer=[makers, critics]):
        for (real,) in itertools.chain(*[loader] * 3):
            maker.requires_grad_(False)
            made = maker(torch.randn(len(real), 4))
            critics.zero_grad()
            (F.softplus(-critic(real)) + F.softplus(critic(made))).mean().backward()
            critics.step()
            maker.requires_grad_(not bug)
            makers.zero_grad()
            F.softplus(-critic(maker(torch.randn(len(real), 4)))).mean().backward()
            makers.step()


def watched_maker(bug: bool) -> None:
    """A network that rebuilds its input is watched; its critic, which judges what it makes, is not."""
    maker, critic, loader = mlp(8, 4, 8), mlp(8, 16, 1), load(torch.randn(256, 8), drop_last=True)
    makers, critics = (torch.optim.Adam(each.parameters(), 1e-3) for each in (maker, critic))
    with sightline.watch(maker, optimizer=makers):
        for (real,) in itertools.chain(*[loader] * 4):
            made = maker(real)
            makers.zero_grad()
            judged = critic(made.detach() if bug else made)
            (F.mse_loss(made, real) + 0.1 * F.softplus(-judged).mean()).backward()
            makers.step()
            critics.zero_grad()
            (F.softplus(-critic(real)) + F.softplus(critic(made.detach()))).mean().backward()
            critics.step()


def updated_together(kind: str) -> None:
    """One loss of a network that is watched and of a probe that is not; both are updated after it."""
    body, probe, loader = mlp(8, 16, 8), mlp(8, 3), load(*classes(256), drop_last=True)
    optimizers = [torch.optim.Adam(each.parameters(), 1e-3) for each in (body, probe)]
    with sightline.watch(body, optimizer=optimizers[0] if kind == "one" else optimizers):
        for values, labels in itertools.chain(*[loader] * 4):
            hidden = body(values)
            for optimizer in optimizers:
                optimizer.zero_grad()
            (F.mse_loss(hidden, values) + F.cross_entropy(probe(hidden.detach()), labels)).backward()
            for optimizer in optimizers:
                optimizer.step()


HEALTHY_LOOPS: Mapping[str, Callable[[], None]] = {
    **{f"a probe that is updated beside it, {kind} named": partial(updated_together, kind) for kind in ("one", "both")},
    **{f"a pass for each term, {kind}": partial(two_terms, kind) for kind in ("sum", "stack", "squares")},
    **{f"an optimizer that is not named, {kind}": partial(second_optimizer, kind) for kind in ("each", "fourth")},
    **{f"a gradient of an activation, {kind}": partial(wants_a_gradient, kind) for kind in ("checkpoint", "slope")},
}
LOOPS: dict[str, tuple[str, Callable[[bool], None]]] = {
    "a term that trains nothing that is updated": ("loss.detached", watched_maker),
    "a generator that stays frozen": ("model.frozen_unintended", frozen_maker),
}
