"""Programs that learn what samples have in common: reconstructions, pairs, triplets, memories, generators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.doctor.programs.images import draw_glyphs, make_classifier
from tests.doctor.programs.program import PlainForm, Program, program, rate, recast

WIDTH = 24


def draw_blobs(count: int, seed: int, classes: int = 6, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    """Draw points (count, 24) around the centres of classes, and their classes."""
    centres = torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=g)
    return centres[labels] + noise * torch.randn(count, WIDTH, generator=g), labels


def draw_signals(count: int, seed: int) -> Tensor:
    """Draw signals (count, 40) of five hidden factors, with some noise."""
    basis = torch.randn(5, 40, generator=torch.Generator().manual_seed(7))
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=g) @ basis / 2 + 0.2 * torch.randn(count, 40, generator=g)


def find_nearest(model: nn.Module, seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor]) -> float:
    """Return how often the nearest embedding of a seen sample has the class of an unseen one."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        keys, queries = (F.normalize(model(samples), dim=1) for samples in (seen[0], unseen[0]))
    model.train(was_training)
    return float((seen[1][(queries @ keys.T).argmax(1)] == unseen[1]).float().mean())


@program("batch: a tuple of one", "loss: the inputs are the target")
def autoencoder() -> Program:
    loader = DataLoader(TensorDataset(draw_signals(640, 0)), batch_size=32, shuffle=True)
    test_loader = DataLoader(TensorDataset(draw_signals(160, 1)), batch_size=80)
    model = nn.Sequential(
        nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 5), nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 40)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    criterion = nn.MSELoss()

    def step(batch: Any) -> Tensor:
        (signals,) = batch
        return criterion(model(signals), signals)

    spread = float(draw_signals(160, 1).var())
    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: 1 - rate(model, test_loader, lambda batch: (model(batch[0]) - batch[0]).square()) / spread,
        bar=0.5,
        epochs=5,
        plain_form=lambda: PlainForm(model, criterion, recast(loader, lambda batch: (batch[0], batch[0]))),
    )


class Signals(Dataset[Tensor]):
    """Signals alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.signals = draw_signals(count, seed)

    def __len__(self) -> int:
        return len(self.signals)

    def __getitem__(self, index: int) -> Tensor:
        return self.signals[index]


class VariationalAutoencoder(nn.Module):
    """Gaussian encoder and decoder."""

    def __init__(self, latent: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 48), nn.ReLU(), nn.Linear(48, 40))

    def reparameterize(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return mean + torch.randn_like(mean) * torch.exp(0.5 * log_var) if self.training else mean

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return self.decoder(self.reparameterize(mean, log_var)), mean, log_var


def measure_evidence(decoded: Tensor, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Negative evidence lower bound of a sample, for noise of 0.3."""
    reconstruction = F.mse_loss(decoded, x, reduction="sum") / (2 * 0.3**2)
    divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
    return (reconstruction + divergence) / len(x)


@program(
    *("batch: a tensor", "loss: the inputs are the target", "loss: several arguments", "model: several outputs"),
    *("model: methods beside forward", "step: noise or partners are drawn"),
)
def variational_autoencoder() -> Program:
    loader = DataLoader(Signals(640, 0), batch_size=32, shuffle=True)
    test_loader = DataLoader(Signals(160, 1), batch_size=80)
    model = VariationalAutoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step(x: Tensor) -> Tensor:
        decoded, mean, log_var = model(x)
        return measure_evidence(decoded, x, mean, log_var)

    spread = float(draw_signals(160, 1).var())
    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: 1 - rate(model, test_loader, lambda x: (model(x)[0] - x).square()) / spread,
        bar=0.5,
        epochs=6,
        plain_form=lambda: PlainForm(
            model,
            lambda outputs, x: measure_evidence(outputs[0], x, outputs[1], outputs[2]),
            recast(loader, lambda x: (x, x)),
        ),
    )


class Views(Dataset[Any]):
    """Two noisy, shifted views of each glyph, drawn anew each time it is read."""

    def __init__(self, count: int, seed: int) -> None:
        self.images, self.labels = draw_glyphs(count, seed)

    def __len__(self) -> int:
        return len(self.labels)

    def _augment(self, image: Tensor) -> Tensor:
        shift = torch.randint(-1, 2, (2,)).tolist()
        return torch.roll(image, shift, (1, 2)) * (0.8 + 0.4 * torch.rand(1)) + 0.2 * torch.randn_like(image)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        return (self._augment(image), self._augment(image)), self.labels[index]


class Projector(nn.Module):
    """Encoder, and a projection that only the loss of the pairs reads."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(288, 48),),
        )
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(48, 32))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.projection(self.encoder(images)), dim=1)


def contrast(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """Cross entropy of each view's partner among all other views of the batch."""
    both = torch.cat([first, second])
    similarity = (both @ both.T / temperature).fill_diagonal_(-1e9)
    partner = torch.arange(len(both)).roll(len(first))
    return F.cross_entropy(similarity, partner)


@program("batch: a tuple in a tuple", "step: two passes", "loss: no target")
def views_of_one_image() -> Program:
    loader = DataLoader(Views(512, 2), batch_size=64, shuffle=True, drop_last=True)
    model = Projector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4)
    seen, unseen = draw_glyphs(300, 4), draw_glyphs(200, 5)

    def step(batch: Any) -> Tensor:
        (first, second), _ = batch
        return contrast(model(first), model(second))

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=contrast,
        score=lambda: find_nearest(model, seen, unseen),
        bar=0.75,
        epochs=8,
    )


class Both:
    """Loader of batches of two loaders: labelled ones, and as often as these unlabelled ones of two views."""

    def __init__(self, labelled: DataLoader[Any], unlabelled: DataLoader[Any]) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled

    def __len__(self) -> int:
        return min(len(self.labelled), len(self.unlabelled))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for first, second in zip(self.labelled, self.unlabelled, strict=False):
            yield {"labelled": {"x": first[0], "y": first[1]}, "unlabelled": second[0]}


@program("batch: a mapping of mappings", "step: two passes", "step: noise or partners are drawn")
def consistent_predictions() -> Program:
    labelled = DataLoader(TensorDataset(*draw_blobs(400, 0)), batch_size=16, shuffle=True, drop_last=True)
    unlabelled = DataLoader(TensorDataset(draw_blobs(1600, 1)[0]), batch_size=64, shuffle=True, drop_last=True)
    loader = Both(labelled, unlabelled)
    test_loader = DataLoader(TensorDataset(*draw_blobs(300, 2)), batch_size=100)
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step(batch: Any) -> Tensor:
        supervised = F.cross_entropy(model(batch["labelled"]["x"]), batch["labelled"]["y"])
        x = batch["unlabelled"]
        with torch.no_grad():
            confidence, pseudo = model(x + 0.05 * torch.randn_like(x)).softmax(1).max(1)
        strong = model(x + 0.6 * torch.randn_like(x))
        consistency = (F.cross_entropy(strong, pseudo, reduction="none") * (confidence > 0.8)).mean()
        return supervised + 0.5 * consistency

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(batch[0]).argmax(1) == batch[1]),
        bar=0.7,
        epochs=5,
        plain_form=lambda: PlainForm(model, F.cross_entropy, labelled),
    )


class Triplets(Dataset[Any]):
    """An anchor, another sample of its class, one of another class; both are drawn."""

    def __init__(self, count: int, seed: int) -> None:
        self.samples, self.labels = draw_blobs(count, seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        is_same = self.labels == self.labels[index]
        same, other = is_same.nonzero().flatten(), (~is_same).nonzero().flatten()
        positive, negative = (rows[int(torch.randint(len(rows), (1,)))] for rows in (same[same != index], other))
        return self.samples[index], self.samples[positive], self.samples[negative]


@program("batch: three values", "step: three passes", "loss: several arguments", "loss: no target")
def triplets() -> Program:
    loader = DataLoader(Triplets(640, 0), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(WIDTH, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    criterion = nn.TripletMarginLoss(margin=0.5)
    seen, unseen = draw_blobs(200, 3), draw_blobs(200, 4)

    def step(batch: Any) -> Tensor:
        anchor, positive, negative = batch
        return criterion(model(anchor), model(positive), model(negative))

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        score=lambda: find_nearest(model, seen, unseen),
        bar=0.75,
        epochs=5,
    )


class Pairs(Dataset[Any]):
    """Two samples, and 1 where they have one class, -1 where not."""

    def __init__(self, count: int, seed: int) -> None:
        samples, labels = draw_blobs(2 * count, seed)
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for index in range(count):
            is_same = labels[count:] == labels[index]
            rows = (is_same if torch.rand(1, generator=g) < 0.5 else ~is_same).nonzero().flatten()
            other = int(rows[torch.randint(len(rows), (1,), generator=g)])
            self.rows.append((samples[index], samples[count + other], 2 * is_same[other].long() - 1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@program("batch: three values", "step: two passes", "loss: several arguments")
def pairs_of_one_class() -> Program:
    loader = DataLoader(Pairs(640, 0), batch_size=32, shuffle=True)
    test_loader = DataLoader(Pairs(200, 1), batch_size=100)
    model = nn.Sequential(nn.Linear(WIDTH, 48), nn.Tanh(), nn.Linear(48, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    criterion = nn.CosineEmbeddingLoss(margin=0.2)

    def step(batch: Any) -> Tensor:
        first, second, sign = batch
        return criterion(model(first), model(second), sign)

    def compare(batch: Any) -> Tensor:
        first, second, sign = batch
        return (F.cosine_similarity(model(first), model(second)) > 0.4) == (sign > 0)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.82,
        epochs=6,
    )


class Memory(nn.Module):
    """Ring of the last embeddings and their labels."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, width))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, keys: Tensor, labels: Tensor) -> None:
        rows = (self.position + torch.arange(len(keys))) % len(self.keys)
        self.keys[rows], self.labels[rows] = keys, labels
        self.position += len(keys)


@program("batch: a pair", "step: state goes on to the next", "model: another one that is not trained")
def memory_of_embeddings() -> Program:
    loader = DataLoader(TensorDataset(*draw_blobs(640, 0)), batch_size=32, shuffle=True, drop_last=True)
    model = nn.Sequential(nn.Linear(WIDTH, 48), nn.ReLU(), nn.Linear(48, 6))
    memory = Memory(128, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen, unseen = draw_blobs(200, 3), draw_blobs(200, 4)

    def step(batch: Any) -> Tensor:
        samples, labels = batch
        queries = F.normalize(model(samples), dim=1)
        memory.add(queries.detach(), labels)
        similarity = queries @ memory.keys.clone().T / 0.2
        is_same = labels[:, None] == memory.labels
        similarity = similarity.masked_fill(memory.labels < 0, -1e9)
        log_chance = similarity.log_softmax(1)
        return -((log_chance * is_same).sum(1) / is_same.sum(1)).mean()

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        score=lambda: find_nearest(model, seen, unseen),
        bar=0.8,
        epochs=4,
    )


@program("model: another one that is trained beside it", "step: noise or partners are drawn", "batch: a tuple of one")
def generator_and_critic() -> Program:
    g = torch.Generator().manual_seed(0)
    real = torch.tensor([2.0, -1.0]) + torch.randn(1024, 2, generator=g) @ torch.tensor([[0.4, 0.2], [0.0, 0.3]])
    loader = DataLoader(TensorDataset(real), batch_size=64, shuffle=True, drop_last=True)
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=4e-3, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()

    def step(batch: Any) -> Tensor:
        (samples,) = batch
        with torch.no_grad():
            made = generator(torch.randn(len(samples), 4))
        real_scores, made_scores = critic(samples), critic(made)
        return criterion(real_scores, torch.ones_like(real_scores)) + criterion(
            made_scores, torch.zeros_like(made_scores)
        )

    def losses(batch: Any) -> dict[str, Tensor]:
        scores = critic(generator(torch.randn(64, 4)))
        return {"generator": criterion(scores, torch.ones_like(scores)), "critic": step(batch)}

    def update(batch: Any) -> None:
        critic_optimizer.zero_grad()
        step(batch).backward()
        critic_optimizer.step()
        generator_optimizer.zero_grad()
        scores = critic(generator(torch.randn(64, 4)))
        criterion(scores, torch.ones_like(scores)).backward()
        generator_optimizer.step()

    def score() -> float:
        with torch.no_grad():
            made = generator(torch.randn(512, 4, generator=torch.Generator().manual_seed(1)))
        return -float((made.mean(0) - real.mean(0)).norm())

    return Program(
        model=critic,
        optimizer=critic_optimizer,
        loader=loader,
        step=step,
        update=update,
        score=score,
        bar=-0.8,
        epochs=10,
        watched={"generator": generator, "critic": critic},
        losses=losses,
        optimizers=[generator_optimizer, critic_optimizer],
    )


class Denoiser(nn.Module):
    """Predict the noise of points of a class at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Embedding(4, 16)
        self.time = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 16))
        self.body = nn.Sequential(nn.Linear(34, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, noisy: Tensor, time: Tensor, kind: Tensor) -> Tensor:
        return self.body(torch.cat([noisy, self.time(time[:, None]), self.kinds(kind)], 1))


@program(
    *("model: several arguments", "step: noise or partners are drawn", "model: an average of its weights"),
    *("step: gradients are clipped", "batch: a mapping"),
)
def diffusion() -> Program:
    g = torch.Generator().manual_seed(0)
    kind = torch.randint(4, (1024,), generator=g)
    angle = kind * torch.pi / 2
    points = torch.stack([angle.cos(), angle.sin()], 1) * 1.5 + 0.2 * torch.randn(1024, 2, generator=g)
    rows = [{"point": points[i], "kind": kind[i]} for i in range(1024)]
    loader = DataLoader(rows, batch_size=64, shuffle=True)
    model = Denoiser()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.95))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    alphas = torch.cumprod(1 - torch.linspace(1e-3, 0.15, 50), 0)

    def spoil(batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(50, (len(batch["point"]),), generator=generator)
        noise = torch.randn(batch["point"].shape, generator=generator)
        alpha = alphas[index][:, None]
        return alpha.sqrt() * batch["point"] + (1 - alpha).sqrt() * noise, index / 50, noise

    def step(batch: Any) -> Tensor:
        noisy, time, noise = spoil(batch)
        return F.mse_loss(model(noisy, time, batch["kind"]), noise)

    def update(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        step(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)

    def score() -> float:
        whole = {"point": points, "kind": kind}
        noisy, time, noise = spoil(whole, torch.Generator().manual_seed(1))
        return 1 - rate(average, [whole], lambda batch: (average(noisy, time, batch["kind"]) - noise).square())

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=F.mse_loss,
        update=update,
        score=score,
        bar=0.4,
        epochs=8,
    )


@program("batch: a pair", "step: gradients of several batches")
def classes_in_small_parts() -> Program:
    loader = DataLoader(TensorDataset(*draw_glyphs(640, 2)), batch_size=8, shuffle=True)
    test_loader = DataLoader(TensorDataset(*draw_glyphs(200, 3)), batch_size=100)
    model = make_classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    criterion = nn.CrossEntropyLoss()
    seen = [0]

    def step(batch: Any) -> Tensor:
        images, labels = batch
        return criterion(model(images), labels)

    def update(batch: Any) -> None:
        (step(batch) / 4).backward()
        seen[0] += 1
        if seen[0] % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        update=update,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(batch[0]).argmax(1) == batch[1]),
        bar=0.6,
        epochs=4,
        plain_form=lambda: PlainForm(model, criterion, loader),
    )
