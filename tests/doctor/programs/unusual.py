"""Programs whose training is unusual: slopes of slopes, steps within steps, two passes an update, solvers, rollouts."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.doctor.programs.program import Program, program, rate


def mlp(*widths: int, between: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [[nn.Linear(a, b), between()] for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*list(itertools.chain(*layers))[:-1])


def draw_moons(count: int, seed: int) -> Tensor:
    """Draw points (count, 2) of two half circles."""
    g = torch.Generator().manual_seed(seed)
    angle = torch.pi * torch.rand(count, generator=g)
    is_lower = torch.rand(count, generator=g) < 0.5
    points = torch.stack([angle.cos() + is_lower, torch.where(is_lower, 0.3 - angle.sin(), angle.sin())], 1)
    return points - torch.tensor([0.5, 0.15]) + 0.05 * torch.randn(count, 2, generator=g)


@program("batch: a tensor", "model: another one that is trained beside it", "step: noise or partners are drawn")
def penalised_critic() -> Program:
    """A critic whose slope between real and generated points is kept at 1, updated five times as often."""
    loader = DataLoader(draw_moons(1920, 0), batch_size=64, shuffle=True)  # type: ignore[arg-type]
    critic, generator = mlp(2, 64, 64, 1), mlp(8, 64, 64, 2)
    own = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.9))
    other = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    count = 0

    def measure(real: Tensor, fake: Tensor) -> Tensor:
        share = torch.rand(len(real), 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return critic(fake).mean() - critic(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()

    def step(real: Tensor) -> Tensor:
        return measure(real, generator(torch.randn(len(real), 8)).detach())

    def update(real: Tensor) -> None:
        nonlocal count
        own.zero_grad(set_to_none=True)
        step(real).backward()
        own.step()
        count += 1
        if count % 5 == 0:
            other.zero_grad(set_to_none=True)
            (-critic(generator(torch.randn(len(real), 8))).mean()).backward()
            other.step()

    def losses(real: Tensor) -> dict[str, Tensor]:
        fake = generator(torch.randn(len(real), 8))
        return {"critic": measure(real, fake.detach()), "generator": -critic(fake).mean()}

    def score() -> float:
        fake = generator(torch.randn(400, 8, generator=torch.Generator().manual_seed(1))).detach()
        return 1 - float(torch.cdist(draw_moons(400, 2), fake).amin(1).mean())

    return Program(
        model=critic, optimizer=own, loader=loader, step=step, update=update, score=score, bar=0.7, epochs=12,
        watched={"critic": critic, "generator": generator}, optimizers=[own, other], losses=losses,
    )  # fmt: skip


class Factors(nn.Module):
    """How much a user likes an item: a product of embeddings, and a network over both."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.deep = nn.Embedding(60, 8), nn.Embedding(40, 8), mlp(16, 32, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        u, i = self.users(user), self.items(item)
        return (u * i).sum(1) + self.deep(torch.cat([u, i], 1))[:, 0]


@program("batch: three values", "model: several arguments")
def optimizers_in_turn() -> Program:
    """Embeddings are updated on even batches by Adagrad, the network on odd ones by Adam."""

    def draw(count: int, seed: int) -> TensorDataset:
        g = torch.Generator().manual_seed(seed)
        tables = torch.Generator().manual_seed(9)
        user, item = torch.randint(60, (count,), generator=g), torch.randint(40, (count,), generator=g)
        u, i = torch.randn(60, 3, generator=tables), torch.randn(40, 3, generator=tables)
        return TensorDataset(user, item, (u[user] * i[item]).sum(1) + 0.1 * torch.randn(count, generator=g))

    loader, test_loader = DataLoader(draw(2000, 0), 32, shuffle=True), DataLoader(draw(400, 1), 100)
    model = Factors()
    tables = torch.optim.Adagrad([*model.users.parameters(), *model.items.parameters()], lr=0.2)
    dense = torch.optim.Adam(model.deep.parameters(), lr=3e-3)
    turn = 0

    def step(batch: Any) -> Tensor:
        return F.mse_loss(model(*batch[:2]), batch[2])

    def update(batch: Any) -> None:
        nonlocal turn
        optimizer = (tables, dense)[turn % 2]
        turn += 1
        model.zero_grad()
        step(batch).backward()
        optimizer.step()

    return Program(
        model=model, optimizer=[tables, dense], loader=loader, step=step, update=update, evaluation=test_loader,
        score=lambda: -rate(model, test_loader, lambda batch: (model(*batch[:2]) - batch[2]).square()),
        bar=-2.0, epochs=10,
    )  # fmt: skip


def draw_stripes(count: int, seed: int) -> TensorDataset:
    """Draw images (1, 12, 12) of four directions of stripes, and the direction."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=g)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    waves = torch.stack([rows, columns, rows + columns, rows - columns])[labels]
    phases = 6.3 * torch.rand(count, 1, 1, generator=g)
    return TensorDataset((torch.sin(waves + phases) + 0.5 * torch.randn(count, 12, 12, generator=g))[:, None], labels)


@program("batch: a pair", "step: two passes")
def flat_minimum() -> Program:
    """Each update moves the weights uphill, takes the gradient there, and moves them back before its step."""
    loader, test_loader = DataLoader(draw_stripes(480, 0), 32, shuffle=True), DataLoader(draw_stripes(200, 1), 50)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def step(batch: Any) -> Tensor:
        return criterion(model(batch[0]), batch[1])

    def update(batch: Any) -> None:
        optimizer.zero_grad()
        step(batch).backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
            moves = [0.05 * p.grad / (norm + 1e-12) for p in model.parameters() if p.grad is not None]
            for p, move in zip(model.parameters(), moves, strict=True):
                p.add_(move)
        optimizer.zero_grad()
        step(batch).backward()
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p.sub_(move)
        optimizer.step()

    return Program(
        model=model, optimizer=optimizer, loader=loader, step=step, update=update, loss=criterion,
        evaluation=test_loader, score=lambda: rate(model, test_loader, lambda b: model(b[0]).argmax(1) == b[1]),
        bar=0.7, epochs=8,
    )  # fmt: skip


@program("batch: a tensor", "loss: no target", "loss: the gradient of the outputs")
def equation_of_a_rod() -> Program:
    """The temperature of a heated rod with cold ends, by L-BFGS over all its points."""
    places = torch.linspace(0, 1, 64)[:, None]
    model = mlp(1, 24, 24, 1, between=nn.Tanh)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=10, line_search_fn="strong_wolfe")

    def step(batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        heat = torch.pi**2 * (torch.pi * x).sin()
        return (bend + heat).square().mean() + 10 * model(torch.tensor([[0.0], [1.0]])).square().mean()

    def update(batch: Tensor) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = step(batch)
            loss.backward()
            return loss

        optimizer.step(closure)

    def score() -> float:
        with torch.no_grad():
            return -float((model(places) - (torch.pi * places).sin()).abs().max())

    return Program(
        model=model, optimizer=optimizer, loader=[places], step=step, update=update, score=score, bar=-0.1, epochs=12
    )


@program("batch: a pair", "model: an average of its weights", "loss: no target", "step: two passes")
def student_of_its_average() -> Program:
    """A student meets, in one view, the sharpened and centred shares that its own average gives to another view."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (800,), generator=g)
    samples = 2 * torch.randn(5, 24, generator=g)[labels] + 0.6 * torch.randn(800, 24, generator=g)
    loader = DataLoader(TensorDataset(samples, labels), 50, shuffle=True, drop_last=True)
    student = mlp(24, 64, 32, 12)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    centre = torch.zeros(12)

    def change(x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) < 0.7) + 0.3 * torch.randn_like(x)

    def compare(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            raw = teacher(change(x))
        return -(((raw - centre) / 0.1).softmax(1) * (student(change(x)) / 0.2).log_softmax(1)).sum(1).mean(), raw

    def update(batch: Any) -> None:
        optimizer.zero_grad()
        loss, raw = compare(batch[0])
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        centre.lerp_(raw.mean(0), 0.1)
        with torch.no_grad():
            for kept, new in zip(teacher.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, 0.02)

    def score() -> float:
        with torch.no_grad():
            shares = teacher(samples).softmax(1).argmax(1)
        table = torch.zeros(12, 5).index_put_((shares, labels), torch.ones(800), accumulate=True)
        return float(table.amax(1).sum() / 800)

    return Program(
        model=student, optimizer=optimizer, loader=loader, step=lambda batch: compare(batch[0])[0], update=update,
        score=score, bar=0.85, epochs=15,
    )  # fmt: skip


@program("batch: a tensor", "loss: no target", "step: noise or partners are drawn")
def episodes_of_a_walker() -> Program:
    """A policy walks to the origin of a plane; the gradient is of the chance of a move times what came after it."""
    starts = torch.randint(-4, 5, (640, 2), generator=torch.Generator().manual_seed(0)).float()
    loader = DataLoader(starts, 32, shuffle=True)  # type: ignore[arg-type]
    policy = mlp(2, 32, 4, between=nn.Tanh)
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    moves = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

    def walk(place: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log chances of eight moves, and the rewards after each."""
        logs, rewards = [], []
        for _ in range(8):
            choice = torch.distributions.Categorical(logits=policy(place / 4))
            action = choice.sample()
            after = (place + moves[action]).clamp(-5, 5)
            rewards.append(place.abs().sum(1) - after.abs().sum(1))
            logs.append(choice.log_prob(action))
            place = after
        return torch.stack(logs), torch.stack(rewards)

    def step(batch: Tensor) -> Tensor:
        logs, rewards = walk(batch)
        returns = rewards.flip(0).cumsum(0).flip(0)
        advantages = returns - returns.mean(1, keepdim=True)
        return -(logs * advantages).sum(0).mean()

    def score() -> float:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            return float(walk(starts)[1].sum(0).mean())

    return Program(model=policy, optimizer=optimizer, loader=loader, step=step, score=score, bar=2.0, epochs=10)


@program("batch: four values", "step: two passes")
def learning_to_learn() -> Program:
    """Weights from which two steps fit a wave of which five points are seen; the gradient goes through the steps."""

    def draw(count: int, seed: int) -> TensorDataset:
        g = torch.Generator().manual_seed(seed)
        height, phase = 0.5 + 1.5 * torch.rand(count, 1, 1, generator=g), 3.1 * torch.rand(count, 1, 1, generator=g)
        x = 6 * torch.rand(count, 20, 1, generator=g) - 3
        y = height * (x + phase).sin()
        return TensorDataset(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])

    loader, test_loader = DataLoader(draw(800, 0), 20, shuffle=True), DataLoader(draw(200, 1), 50)
    model = mlp(1, 40, 40, 1, between=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def fit(weights: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(model, weights, (x,)), y)

    def adapt(weights: Any, seen_x: Tensor, seen_y: Tensor, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(2):
            slopes = grad(fit)(weights, seen_x, seen_y)
            weights = {name: weight - 0.1 * slopes[name] for name, weight in weights.items()}
        return fit(weights, x, y)

    def step(batch: Any) -> Tensor:
        return vmap(adapt, in_dims=(None, 0, 0, 0, 0))(dict(model.named_parameters()), *batch).mean()

    return Program(
        model=model, optimizer=optimizer, loader=loader, step=step,
        score=lambda: -sum(float(step(batch).detach()) for batch in test_loader) / len(test_loader), bar=-0.3, epochs=8,
    )  # fmt: skip


class Tagger(nn.Module):
    """A label of each token, by a GRU in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body = (
            nn.Embedding(20, 24, padding_idx=0),
            nn.GRU(24, 24, batch_first=True, bidirectional=True),
        )
        self.head = nn.Linear(48, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.words(tokens))[0])


def draw_sentences(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Draw rows of 2 to 12 tokens; a label is whether a token is below, equal to or above the one before."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, 20, (int(torch.randint(2, 13, (), generator=g)),), generator=g) for _ in range(count)]
    return [(row, (row - row.roll(1)).sign() + 1) for row in rows]


def pad_sentences(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    tokens, labels = zip(*samples, strict=True)
    pad = nn.utils.rnn.pad_sequence
    return pad(list(tokens), batch_first=True), pad(list(labels), batch_first=True, padding_value=-100)


@program("batch: a pair", "loss: labels that are ignored", "step: gradients of several batches")
def windows_that_end_early() -> Program:
    """Four small batches an update, weighted by their tokens; the last window of an epoch has two."""
    loader = DataLoader(draw_sentences(205, 0), 6, shuffle=True, collate_fn=pad_sentences)  # type: ignore[arg-type]
    test_loader = DataLoader(draw_sentences(100, 1), 20, collate_fn=pad_sentences)  # type: ignore[arg-type]
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    window: list[Any] = []

    def step(batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=-100)

    def flush() -> None:
        count = sum(int((labels >= 0).sum()) for _, labels in window)
        optimizer.zero_grad()
        for batch in window:
            (step(batch) * (int((batch[1] >= 0).sum()) / count)).backward()
        optimizer.step()
        window.clear()

    def update(batch: Any) -> None:
        window.append(batch)
        if len(window) == 4:
            flush()

    def compare(batch: Any) -> Tensor:
        return (model(batch[0]).argmax(2) == batch[1])[batch[1] >= 0]

    return Program(
        model=model, optimizer=optimizer, loader=loader, step=step, update=update, evaluation=test_loader,
        end_epoch=lambda: flush() if window else None, score=lambda: rate(model, test_loader, compare),
        bar=0.6, epochs=8,
    )  # fmt: skip


class MaskedAutoencoder(nn.Module):
    """Patches (B, 9, 16): a random third is encoded, and all are decoded; returns them and which were hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places, self.mask = (
            nn.Linear(16, 32),
            nn.Parameter(0.1 * torch.randn(9, 32)),
            nn.Parameter(torch.zeros(32)),
        )
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.rand(patches.shape[:2]).argsort(1)
        seen = order[:, :4, None]
        tokens = (self.embed(patches) + self.places).gather(1, seen.expand(-1, -1, 32))
        encoded = self.encoder(tokens)
        whole = self.mask.expand(len(patches), 9, 32).scatter(1, seen.expand(-1, -1, 32), encoded)
        is_hidden = torch.ones(patches.shape[:2]).scatter(1, order[:, :4], 0.0)
        return self.head(self.decoder(whole + self.places)), is_hidden


@program("batch: a tuple of one", "model: several outputs", "loss: the inputs are the target")
def patches_that_are_hidden() -> Program:
    def draw(count: int, seed: int) -> TensorDataset:
        images = draw_stripes(count, seed).tensors[0]
        return TensorDataset(images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(1, 3).flatten(2))

    loader, test_loader = DataLoader(draw(960, 0), 32, shuffle=True), DataLoader(draw(200, 1), 50)
    model = MaskedAutoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05)

    def step(batch: Any) -> Tensor:
        outputs, is_hidden = model(batch[0])
        mean, var = batch[0].mean(2, keepdim=True), batch[0].var(2, keepdim=True)
        errors = (outputs - (batch[0] - mean) / (var + 1e-6).sqrt()).square().mean(2)
        return (errors * is_hidden).sum() / is_hidden.sum()

    def score() -> float:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            return -sum(float(step(batch)) for batch in test_loader) / len(test_loader)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=score,
        bar=-0.9,
        epochs=8,
    )


class Translator(nn.Module):
    """Gives a row of tokens back to front; each step is told the right token before, or at random its own."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.words, self.encoder, self.decoder = (
            nn.Embedding(12, 32),
            nn.GRU(32, 48, batch_first=True),
            nn.GRUCell(80, 48),
        )
        self.head, self.share = nn.Linear(48, 12), share

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.words(source))
        hidden, token, outputs = last[0], torch.zeros_like(target[:, 0]), []
        for place in range(target.shape[1]):
            weights = (memory @ hidden[:, :, None]).softmax(1)
            hidden = self.decoder(torch.cat([self.words(token), (memory * weights).sum(1)], 1), hidden)
            outputs.append(self.head(hidden))
            is_told = self.training and float(torch.rand(())) < self.share
            token = target[:, place] if is_told else outputs[-1].argmax(1)
        return torch.stack(outputs, 1)


@program("batch: a pair", "model: several arguments", "step: noise or partners are drawn")
def rows_back_to_front() -> Program:
    def draw(count: int, seed: int) -> TensorDataset:
        rows = torch.randint(1, 12, (count, 5), generator=torch.Generator().manual_seed(seed))
        return TensorDataset(rows, rows.flip(1))

    loader, test_loader = DataLoader(draw(1600, 0), 32, shuffle=True), DataLoader(draw(200, 1), 50)
    model = Translator(share=0.7)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(batch: Any) -> Tensor:
        return F.cross_entropy(model(*batch).flatten(0, 1), batch[1].flatten())

    return Program(
        model=model, optimizer=optimizer, loader=loader, step=step, evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(*batch).argmax(2) == batch[1]), bar=0.5, epochs=12,
    )  # fmt: skip


class Flow(nn.Module):
    """The path of a point (B, 2) at times (T,), by steps of Runge and Kutta that are computed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.field = mlp(2, 32, 32, 2, between=nn.Tanh)

    def move(self, x: Tensor, h: Tensor) -> Tensor:
        first = self.field(x)
        second = self.field(x + h / 2 * first)
        third = self.field(x + h / 2 * second)
        return x + h / 6 * (first + 2 * second + 2 * third + self.field(x + h * third))

    def forward(self, start: Tensor, times: Tensor) -> Tensor:
        path = [start]
        for h in times.diff():
            path.append(checkpoint(self.move, path[-1], h, use_reentrant=False))
        return torch.stack(path, 1)


@program("batch: three values", "model: several arguments")
def path_of_a_flow() -> Program:
    """Spirals seen at irregular times, the same for all rows of a batch."""

    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        starts, noise = (torch.stack(each) for each in zip(*samples, strict=True))
        times = torch.cat([torch.zeros(1), torch.rand(7).sort().values * 2])
        turn = torch.stack([times.cos(), times.sin(), -times.sin(), times.cos()], 1).view(-1, 2, 2)
        paths = torch.einsum("tij,bi->btj", turn * (-0.3 * times).exp()[:, None, None], starts)
        return starts, times, paths + noise

    def draw(count: int, seed: int) -> TensorDataset:
        g = torch.Generator().manual_seed(seed)
        return TensorDataset(torch.randn(count, 2, generator=g), 0.02 * torch.randn(count, 8, 2, generator=g))

    loader = DataLoader(draw(480, 0), 24, shuffle=True, collate_fn=collate)
    test_loader = DataLoader(draw(96, 1), 24, collate_fn=collate)
    model = Flow()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(batch: Any) -> Tensor:
        start, times, path = batch
        return F.smooth_l1_loss(model(start, times), path)

    return Program(
        model=model, optimizer=optimizer, loader=loader, step=step, evaluation=test_loader,
        score=lambda: -rate(model, test_loader, lambda batch: (model(*batch[:2]) - batch[2]).abs()),
        bar=-0.15, epochs=6,
    )  # fmt: skip


class Denoiser(nn.Module):
    """The noise in a point (B, 2) at a time (B,), with a class that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.body = nn.Embedding(3, 16), mlp(2 + 16 + 2, 96, 96, 2, between=nn.SiLU)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        wave = torch.stack([(time * 1.5).sin(), (time * 1.5).cos()], 1)
        return self.body(torch.cat([x, wave, self.classes(label)], 1))


@program("batch: a pair", "step: noise or partners are drawn", "model: an average of its weights")
def noise_in_short_numbers() -> Program:
    """Diffusion in bfloat16 with a scaler that is switched off, as a script for GPUs has it on a CPU."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (1600,), generator=g)
    points = torch.randn(1600, 2, generator=g) * 0.1 + torch.where(labels[:, None] > 0, 1.0, -1.0)
    loader = DataLoader(TensorDataset(points, labels), 64, shuffle=True)
    model = Denoiser()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step(batch: Any) -> Tensor:
        x, label = batch
        time, noise = torch.rand(len(x)), torch.randn_like(x)
        label = torch.where(torch.rand(len(x)) < 0.1, 2, label)
        angle = time[:, None] * torch.pi / 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = model(angle.cos() * x + angle.sin() * noise, time, label)
        return F.mse_loss(predicted.float(), noise)

    def update(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(step(batch)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 0.05)

    def score() -> float:
        fixed = torch.Generator().manual_seed(1)
        label = torch.arange(400) % 2
        x = torch.randn(400, 2, generator=fixed)
        with torch.no_grad():
            for number in range(20, 0, -1):
                here, there = (torch.tensor(torch.pi / 2 * each / 20) for each in (number, number - 1))
                noise = average(x, torch.full((400,), number / 20), label)
                clean = ((x - here.sin() * noise) / here.cos().clamp(min=0.05)).clamp(-2, 2)
                x = there.cos() * clean + there.sin() * noise
        return -float((x - torch.where(label[:, None] > 0, 1.0, -1.0)).norm(dim=1).mean())

    return Program(
        model=model, optimizer=optimizer, loader=loader, step=step, update=update, score=score, bar=-0.5, epochs=12
    )
