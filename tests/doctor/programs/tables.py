"""Programs on tables, tastes and policies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.doctor.programs.program import PlainForm, Program, program, rate, recast
from tests.doctor.programs.representations import WIDTH, draw_blobs


class CustomerNetwork(nn.Module):
    """An embedding of each column of categories, and the numbers as they are."""

    def __init__(self, sizes: tuple[int, ...] = (7, 12, 3)) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 4) for size in sizes)
        self.norm = nn.BatchNorm1d(5)
        self.body = nn.Sequential(nn.Linear(17, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 1))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        embedded = [embed(categories[:, column]) for column, embed in enumerate(self.embeddings)]
        return self.body(torch.cat([*embedded, self.norm(numbers)], 1))[:, 0]


@program("batch: three values", "model: several arguments")
def columns_of_categories() -> Program:
    g = torch.Generator().manual_seed(0)
    categories = torch.stack([torch.randint(size, (1000,), generator=g) for size in (7, 12, 3)], 1)
    numbers = torch.randn(1000, 5, generator=g) * torch.tensor([1.0, 10.0, 0.1, 5.0, 2.0])
    effects = [torch.randn(size, generator=g) for size in (7, 12, 3)]
    value = (
        sum(effect[categories[:, column]] for column, effect in enumerate(effects)) + numbers[:, 0] - numbers[:, 4] / 2
    )
    is_lost = (value + 0.3 * torch.randn(1000, generator=g) > 0).float()
    tables = (categories, numbers, is_lost)
    loader = DataLoader(TensorDataset(*(part[:800] for part in tables)), batch_size=40, shuffle=True)
    test_loader = DataLoader(TensorDataset(*(part[800:] for part in tables)), batch_size=50)
    model = CustomerNetwork()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    criterion = nn.BCEWithLogitsLoss()

    def step(batch: Any) -> Tensor:
        categories, numbers, is_lost = batch
        return criterion(model(categories, numbers), is_lost)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: (model(*batch[:2]) > 0) == (batch[2] > 0)),
        bar=0.75,
        epochs=5,
        plain_form=lambda: PlainForm(model, criterion, recast(loader, lambda batch: (batch[:2], batch[2]))),
    )


class Ratings(Dataset[Any]):
    """A user, an item that the user liked, and one drawn among all others."""

    def __init__(self, liked: Tensor, items: int) -> None:
        self.rows = [(user, item) for user in range(len(liked)) for item in liked[user].tolist()]
        self.known, self.items = [set(row.tolist()) for row in liked], items

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        user, item = self.rows[index]
        other = int(torch.randint(self.items, (1,)))
        while other in self.known[user]:
            other = int(torch.randint(self.items, (1,)))
        return user, item, other


class Tastes(nn.Module):
    """Product of a user's factors and an item's."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, 8), nn.Embedding(items, 8)
        self.popularity = nn.Embedding(items, 1)
        for table in (self.users, self.items, self.popularity):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.users(user) * self.items(item)).sum(-1) + self.popularity(item)[..., 0]


@program("batch: three values", "model: several arguments", "step: two passes", "loss: no target")
def items_that_are_liked_more() -> Program:
    g = torch.Generator().manual_seed(0)
    order = (torch.randn(50, 3, generator=g) @ torch.randn(3, 60, generator=g)).argsort(1, descending=True)
    liked, held_out = order[:, 1:13], order[:, 0]
    loader = DataLoader(Ratings(liked, 60), batch_size=50, shuffle=True)
    model = Tastes(50, 60)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)

    def step(batch: Any) -> Tensor:
        user, item, other = batch
        return -F.logsigmoid(model(user, item) - model(user, other)).mean()

    def score() -> float:
        with torch.no_grad():
            scores = model(torch.arange(50)[:, None].expand(-1, 60), torch.arange(60).expand(50, -1))
        return float((scores[torch.arange(50), held_out][:, None] > scores).float().mean())

    return Program(model=model, optimizer=optimizer, loader=loader, step=step, score=score, bar=0.7, epochs=10)


@program("batch: three values", "loss: a weight for each sample")
def actions_and_returns() -> Program:
    g = torch.Generator().manual_seed(0)
    observations = torch.randn(1200, 8, generator=g)
    best = observations[:, :4].argmax(1)
    actions = torch.randint(4, (1200,), generator=g)
    returns = (actions == best).float() + 0.3 * torch.randn(1200, generator=g)
    loader = DataLoader(TensorDataset(observations, actions, returns), batch_size=50, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(batch: Any) -> Tensor:
        observations, actions, returns = batch
        policy = torch.distributions.Categorical(logits=model(observations))
        advantages = (returns - returns.mean()) / (returns.std() + 1e-8)
        weight = (0.25 * advantages).exp().clamp(max=4.0)  # of a behaviour policy of equal chances
        return -(policy.log_prob(actions) * weight).mean() - 0.01 * policy.entropy().mean()

    def score() -> float:
        fresh = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
        return rate(model, [fresh], lambda x: model(x).argmax(1) == x[:, :4].argmax(1))

    return Program(model=model, optimizer=optimizer, loader=loader, step=step, score=score, bar=0.45, epochs=6)


class ActorCritic(nn.Module):
    """Logits of four actions, and the value of a state."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = (
            nn.Sequential(nn.Linear(8, 48), nn.Tanh()),
            nn.Linear(48, 4),
            nn.Linear(48, 1),
        )

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(states)
        return self.actor(features), self.critic(features)[:, 0]


@program("batch: a mapping", "model: several outputs", "loss: a weight for each sample", "step: gradients are clipped")
def clipped_policy() -> Program:
    g = torch.Generator().manual_seed(0)
    states = torch.randn(1024, 8, generator=g)
    actions = torch.randint(4, (1024,), generator=g)
    rewards = (actions == states[:, :4].argmax(1)).float() + states[:, 5]
    rollout = {
        "states": states,
        "actions": actions,
        "log_chance": torch.full((1024,), -1.3863),
        "returns": rewards,
        "advantages": rewards - 0.25 - states[:, 5],
    }
    loader = DataLoader([{name: value[i] for name, value in rollout.items()} for i in range(1024)], 64, shuffle=True)
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3, eps=1e-5)

    def step(batch: Any) -> Tensor:
        logits, values = model(batch["states"])
        policy = torch.distributions.Categorical(logits=logits)
        ratio = (policy.log_prob(batch["actions"]) - batch["log_chance"]).exp()
        advantages = batch["advantages"]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        return -surrogate + 0.5 * F.mse_loss(values, batch["returns"]) - 0.01 * policy.entropy().mean()

    def update(batch: Any) -> None:
        optimizer.zero_grad()
        step(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    def score() -> float:
        fresh = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
        return rate(model, [fresh], lambda x: model(x)[0].argmax(1) == x[:, :4].argmax(1))

    return Program(
        model=model, optimizer=optimizer, loader=loader, step=step, update=update, score=score, bar=0.45, epochs=5
    )


@program(
    "batch: a mapping", "model: another one that is not trained", "step: two passes", "model: an average of its weights"
)
def values_of_actions() -> Program:
    g = torch.Generator().manual_seed(0)
    states = torch.randn(1200, 6, generator=g)
    actions = torch.randint(3, (1200,), generator=g)
    rewards = (states[:, :3].argmax(1) == actions).float()
    after = 0.5 * states + torch.randn(1200, 6, generator=g)
    is_end = (torch.rand(1200, generator=g) < 0.3).float()
    names = {"states": states, "actions": actions, "rewards": rewards, "after": after, "is_end": is_end}
    loader = DataLoader([{name: value[i] for name, value in names.items()} for i in range(1200)], 60, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 3))
    target = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def step(batch: Any) -> Tensor:
        values = model(batch["states"]).gather(1, batch["actions"][:, None])[:, 0]
        with torch.no_grad():
            future = target(batch["after"]).amax(1)
            goal = batch["rewards"] + 0.9 * (1 - batch["is_end"]) * future
        return F.smooth_l1_loss(values, goal)

    def update(batch: Any) -> None:
        optimizer.zero_grad()
        step(batch).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.05)

    def score() -> float:
        fresh = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
        return rate(model, [fresh], lambda x: model(x).argmax(1) == x[:, :3].argmax(1))

    return Program(
        model=model, optimizer=optimizer, loader=loader, step=step, update=update, score=score, bar=0.6, epochs=6
    )


class Experts(nn.Module):
    """Four experts, of which a gate chooses two; the balance of their use is stored for the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, 24)) for _ in range(4)
        )
        self.head = nn.Linear(24, 6)
        self.balance: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        chance = self.gate(x).softmax(-1)
        top, chosen = chance.topk(2, dim=-1)
        weight = torch.zeros_like(chance).scatter(1, chosen, top / top.sum(-1, keepdim=True))
        self.balance = 4 * (chance.mean(0) * (weight > 0).float().mean(0)).sum()
        mixed = torch.stack([expert(x) for expert in self.experts], 1)
        return self.head((weight[..., None] * mixed).sum(1))


@program("batch: a pair", "loss: a term that the forward pass stores")
def experts_in_balance() -> Program:
    loader = DataLoader(TensorDataset(*draw_blobs(640, 0)), batch_size=32, shuffle=True)
    test_loader = DataLoader(TensorDataset(*draw_blobs(200, 1)), batch_size=100)
    model = Experts()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def measure(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels) + 0.05 * model.balance

    def step(batch: Any) -> Tensor:
        x, labels = batch
        return measure(model(x), labels)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=measure,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(batch[0]).argmax(1) == batch[1]),
        bar=0.7,
        epochs=4,
        plain_form=lambda: PlainForm(model, measure, loader),
    )


@program("batch: three values", "loss: a weight for each sample", "loss: several arguments")
def weighted_quantiles() -> Program:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 10, generator=g)
    slope = torch.randn(10, generator=g) / 3
    y = x @ slope + (0.2 + 0.2 * x[:, 0].abs()) * torch.randn(1000, generator=g)
    weight = 0.5 + torch.rand(1000, generator=g)
    loader = DataLoader(TensorDataset(x[:800], y[:800], weight[:800]), batch_size=40, shuffle=True)
    test_loader = DataLoader(TensorDataset(x[800:], y[800:], weight[800:]), batch_size=100)
    model = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    levels = torch.tensor([0.1, 0.5, 0.9])

    def measure(quantiles: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        error = y[:, None] - quantiles
        pinball = torch.maximum(levels * error, (levels - 1) * error).sum(1)
        return (weight * pinball).sum() / weight.sum()

    def step(batch: Any) -> Tensor:
        x, y, weight = batch
        return measure(model(x), y, weight)

    spread = float(y.var())
    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=measure,
        evaluation=test_loader,
        score=lambda: 1 - rate(model, test_loader, lambda batch: (model(batch[0])[:, 1] - batch[1]).square()) / spread,
        bar=0.5,
        epochs=6,
        plain_form=lambda: PlainForm(
            model,
            lambda quantiles, target: measure(quantiles, *target),
            recast(loader, lambda batch: (batch[0], (batch[1], batch[2]))),
        ),
    )
