"""Modules, losses and targets that do on purpose what is a bug elsewhere, and modules with the bug."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, WeightedRandomSampler

from tests.runtime.blind_losses import Call, LossCase
from tests.runtime.method_parts import draw
from tests.runtime.odd_healthy_loops import classes, mlp
from tests.runtime.robust_loops import Graph, adjacency

Make = Callable[[bool], tuple[Any, ...]]


def classify(model: nn.Module, loss: Any = F.cross_entropy, **options: Any) -> tuple[Any, ...]:
    return model, loss, classes(64), options


# --- losses that a bug resembles --------------------------------------------------------------------------------------


def nearest_other(bug: bool) -> LossCase:
    """The zeros of a mask are the least distances; infinities are not."""

    def loss(output: Tensor, label: Tensor) -> Tensor:
        distances, is_same = torch.cdist(output, output), label[:, None] == label
        others = distances * (~is_same).float() if bug else distances.masked_fill(is_same, torch.inf)
        return F.relu((distances * is_same).max(dim=1)[0] - others.min(dim=1)[0] + 1).mean()

    return mlp(10, 16, 40), loss, (torch.randn(24, 10), torch.arange(24) % 4)


def chamfer(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        distances = (output[:, :, None] - target[:, None]).square().sum(dim=-1)
        farthest = distances.min(dim=2)[0].max()  # one of the same minima, for another figure
        return distances.min(dim=2)[0].mean() + distances.min(2 if bug else 1)[0].mean() + farthest

    model = Call(lambda x, layer: layer(x).view(-1, 20, 3), nn.Linear(10, 60))
    return model, loss, (torch.randn(8, 10), torch.randn(8, 25, 3))


def mask_of_bytes(bug: bool) -> LossCase:
    mask = (torch.rand(4, 1, 8, 8) > 0.7).float() * (255 if bug else 1)
    return nn.Conv2d(1, 1, 3, padding=1), nn.BCEWithLogitsLoss(), (torch.randn(4, 1, 8, 8), mask)


def next_tokens(bug: bool) -> LossCase:
    """Causal attention whose mask lets each token see the one that it is to predict."""

    def attend(tokens: Tensor, embedding: nn.Module, head: nn.Module) -> Tensor:
        rows = embedding(tokens)
        scores = rows @ rows.mT / 4
        hidden = torch.triu(torch.ones(scores.shape[1:], dtype=torch.bool), 2 if bug else 1)
        return head(scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ rows)

    words = torch.randint(11, (6, 13))
    loss = lambda output, target: F.cross_entropy(output.flatten(0, 1), target.flatten())  # noqa: E731
    return Call(attend, nn.Embedding(11, 16), nn.Linear(16, 11)), loss, (words[:, :-1], words[:, 1:])


def turn(output: Tensor, target: Tensor) -> Tensor:
    return (1 - (output * target).sum(dim=1).abs()).mean()  # q and -q are one rotation


def known_values() -> tuple[Any, ...]:
    rows, _ = classes(64)
    loss = lambda output, target: (output - target.nan_to_num()).square()[~target.isnan()].mean()  # noqa: E731
    return mlp(10, 16, 3), loss, (rows, torch.where(torch.rand(64, 3) < 0.3, torch.nan, rows[:, :3]))


def marks_that_do_not_count() -> tuple[Any, ...]:
    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, target, reduction="none")[target >= 0].mean()

    inputs = torch.randn(32, 8)
    return nn.Linear(8, 4), loss, (inputs, torch.where(torch.rand(32, 4) < 0.3, -1.0, (inputs[:, :4] > 0).float()))


def gains_of_pairs() -> tuple[Any, ...]:
    def rank(scores: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        value, gain = target
        return (F.softplus(scores.T - scores) * (value[:, None] > value).to(scores) * gain).mean()

    rows = torch.randn(16, 8)
    return mlp(8, 16, 1), rank, (rows, (rows[:, 0], torch.rand(16)))


# --- outputs beside labels that are no scores: distances, levels of an order, features --------------------------------

NUM_GRADES = 5
CENTRES = torch.randn(NUM_GRADES, 16, generator=torch.Generator().manual_seed(1))


class Distances(nn.Module):
    """Squared distances from prototypes (Yang et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.prototypes = nn.Linear(8, 16), nn.Parameter(torch.randn(NUM_GRADES, 16))

    def forward(self, rows: Tensor) -> Tensor:
        point, squares = self.body(rows), self.prototypes.square().sum(1)
        return torch.addmm(point.square().sum(1, keepdim=True) + squares, point, self.prototypes.T, alpha=-2)


def nearest(distances: Tensor, label: Tensor) -> Tensor:
    own, others = distances.gather(1, label[:, None])[:, 0], distances.scatter(1, label[:, None], math.inf)
    return own.mean() + F.relu(4 + own - others.amin(dim=1)).mean()


def levels(scores: Tensor, label: Tensor) -> Tensor:
    """CORAL (Cao et al. 2020)."""
    is_reached = torch.arange(scores.shape[1], device=label.device) < label[:, None]
    return F.binary_cross_entropy_with_logits(scores, is_reached.to(scores))


def conditional_levels(scores: Tensor, label: Tensor) -> Tensor:
    """CORN (Shi et al. 2021)."""
    place = torch.arange(scores.shape[1], device=label.device)
    each = F.binary_cross_entropy_with_logits(scores, (place < label[:, None]).to(scores), reduction="none")
    return (each * (place <= label[:, None])).sum() / len(label)


def linked(scores: Tensor, label: Tensor) -> Tensor:
    """Proportional odds (McCullagh 1980)."""
    reached = F.pad(F.pad(scores.sigmoid(), (1, 0), value=1.0), (0, 1))
    return F.nll_loss((reached[:, :-1] - reached[:, 1:]).clamp(min=1e-8).log(), label)


def grade(model: Any, loss: Any) -> tuple[Any, ...]:
    """Make a program of five grades; the model may be a number of outputs."""
    rows = torch.randn(64, 8)
    label = (1.5 * rows[:, 0] + 2).round().clamp(0, NUM_GRADES - 1).long()
    return mlp(8, 16, model) if isinstance(model, int) else model(), loss, (rows, label)


def of_centres(features: Tensor, label: Tensor) -> Tensor:
    return (features - CENTRES.to(features)[label]).square().sum(1).mean()


GRADES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "softmax of negative distances": partial(grade, Distances, lambda o, label: F.cross_entropy(-o, label)),
    "distance with a margin": partial(grade, Distances, nearest),
    "levels": partial(grade, NUM_GRADES - 1, levels),
    "levels, one more than is needed": partial(grade, NUM_GRADES, levels),
    "levels that fall": partial(grade, NUM_GRADES - 1, lambda o, label: levels(-o, label)),
    "conditional levels": partial(grade, NUM_GRADES - 1, conditional_levels),
    "linked levels": partial(grade, NUM_GRADES - 1, linked),
    "the expected level": partial(
        grade, NUM_GRADES - 1, lambda o, label: F.smooth_l1_loss(o.sigmoid().sum(1), label.to(o))
    ),
    "centres": partial(grade, 16, of_centres),
    "proxies": partial(grade, 16, lambda o, label: F.cross_entropy(-torch.cdist(o, CENTRES.to(o)).square(), label)),
}


# --- networks ---------------------------------------------------------------------------------------------------------


class Masked(nn.Conv2d):
    """Convolution of the pixels before each, with or without its own (van den Oord et al. 2016)."""

    def __init__(self, channels: int, outputs: int, *, sees_own: bool) -> None:
        super().__init__(channels, outputs, 3, padding=1)
        rows = torch.ones(3, 3).tril(-1)
        rows[0], rows[1], rows[2] = 1, torch.tensor([1.0, sees_own, 0.0]), 0
        self.mask = nn.Buffer(rows)

    def forward(self, maps: Tensor) -> Tensor:
        return self._conv_forward(maps, self.weight * self.mask, self.bias)


def pixels_before() -> tuple[Any, ...]:
    level = torch.randint(0, 4, (16, 12, 12))
    layers = Masked(1, 8, sees_own=False), nn.ReLU(), Masked(8, 8, sees_own=True), nn.ReLU(), nn.Conv2d(8, 4, 1)
    return nn.Sequential(*layers), nn.CrossEntropyLoss(), ((level / 3)[:, None], level)


def transformed(bug: bool, *, form: str = "spectrum") -> tuple[Any, ...]:
    """Maps of a spectrum, of polar coordinates, or with rows and columns of memory exchanged."""

    def run(image: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
        if bug:
            image = image.permute(0, 2, 3, 1).reshape(image.shape)
        elif form == "spectrum":
            spectrum = torch.fft.ifft2(torch.complex(image[:, 0], image[:, 1]), norm="ortho")
            image = torch.stack([spectrum.real, spectrum.imag], dim=1)
        else:
            radius, angle = torch.linspace(0, 1, 32)[:, None], torch.linspace(0, 2 * math.pi, 32)
            grid = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).to(image)
            image = F.grid_sample(image, grid.expand(len(image), -1, -1, -1), align_corners=False)
        return last(first(image).relu())

    model = Call(run, nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1))
    return model, nn.MSELoss(), (torch.rand(8, 2, 32, 32), torch.rand(8, 1, 32, 32))


def overlapping_frames() -> tuple[Any, ...]:
    def run(rows: Tensor, layer: nn.Module) -> Tensor:
        start, place = torch.meshgrid(torch.arange(9), torch.arange(16), indexing="ij")
        index = start * 8 + place
        return torch.zeros_like(rows).index_add(1, index.flatten(), layer(rows[:, index]).flatten(1))

    rows = torch.randn(8, 80)
    return Call(run, nn.Linear(16, 16)), nn.MSELoss(), (rows, rows)


class Joints(nn.Module):
    """Graph convolution of joints, or layers of points that a view mixes up."""

    def __init__(self, bug: bool) -> None:
        super().__init__()
        self.bug, self.first, self.last = bug, nn.Linear(3, 16), nn.Linear(16, 3)
        self.neighbours = nn.Buffer(torch.rand(24, 24))

    def forward(self, pts: Tensor) -> Tensor:
        rows = self.first(pts).relu()
        rows = rows.mT.reshape(rows.shape) if self.bug else self.neighbours @ rows
        return self.last(rows.relu()).mean(dim=1)


class WithEdges(Joints):
    def forward(self, pts: Tensor, edges: Tensor) -> Tensor:
        rows = self.first(pts).relu()
        sources, ends = edges[:, :, :, None].expand(-1, -1, -1, 16).unbind(1)
        return self.last(rows.scatter_add(1, ends, rows.gather(1, sources)).relu()).mean(dim=1)


def with_edges() -> tuple[Any, ...]:
    inputs = torch.randn(16, 24, 3), torch.randint(0, 24, (16, 2, 60))
    return WithEdges(False), nn.CrossEntropyLoss(), (inputs, torch.randint(0, 3, (16,)))


class Pooled(nn.Module):
    """Layers for each point, pooled over `axis`: 1 is that of the points."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis, self.points, self.head = axis, mlp(3, 32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.points(x).amax(dim=self.axis))


class ChannelsFirst(Pooled):
    """Clouds (B, 3, N) of few points."""

    def forward(self, points: Tensor) -> Tensor:
        return super().forward(points.transpose(1, 2))


class Margin(nn.Module):
    """Cosines of classes; where labels are given, the labelled one is made smaller by a margin (ArcFace)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes = mlp(10, 24, 8), nn.Parameter(torch.randn(3, 8))

    def forward(self, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        cosines = F.linear(F.normalize(self.body(rows), dim=1), F.normalize(self.classes, dim=1))
        return 10 * (cosines if labels is None else cosines - 0.2 * F.one_hot(labels, 3))


class Scaled(Pooled):
    def forward(self, scale: Tensor, cloud: Tensor) -> Tensor:
        return super().forward(cloud * scale[:, None])


class OfMapping(Pooled):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch["points"])


class Parts(nn.Module):
    """Part labels; `bug` reads (B, N, C) as (B, C, N) and back."""

    def __init__(self, bug: bool) -> None:
        super().__init__()
        self.bug, self.first, self.last = bug, nn.Conv1d(3, 32, 1), nn.Conv1d(32, 4, 1)

    def forward(self, points: Tensor) -> Tensor:
        channels = points.reshape(len(points), 3, -1) if self.bug else points.transpose(1, 2)
        return self.last(F.relu(self.first(channels)))


def cloud(model: nn.Module, *more: Tensor) -> tuple[Any, ...]:
    points, label = torch.randn(16, 32, 3), torch.arange(16) % 4
    return model, nn.CrossEntropyLoss(), ((*more, points) if more else points, label)


def cloud_in_a_mapping() -> tuple[Any, ...]:
    batch = {"points": torch.randn(16, 32, 3), "label": torch.arange(16) % 4}
    return OfMapping(), lambda out, batch: F.cross_entropy(out, batch["label"]), batch


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(10, 8), nn.ModuleList(mlp(10, 8, 3) for _ in range(8))

    def forward(self, rows: Tensor) -> Tensor:
        share, chosen = self.gate(rows).softmax(dim=-1).max(dim=-1)
        outputs = rows.new_zeros(len(rows), 3)
        for index, expert in enumerate(self.experts):
            if len(own := (chosen == index).nonzero()[:, 0]):
                outputs = outputs.index_add(0, own, share[own, None] * expert(rows[own]))
        return outputs


def only_biases(*, and_a_head: bool) -> tuple[Any, ...]:
    model = mlp(10, 16, 16, 3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or (and_a_head and name.startswith("4")))
    return classify(model)


def from_zero() -> tuple[Any, ...]:
    model, (rows, _) = mlp(10, 16, 3), classes(64)
    for parameter in model[-1].parameters():
        nn.init.zeros_(parameter)
    return model, F.mse_loss, (rows, rows[:, :3])


def frozen_backbone(norm: type[nn.Module]) -> tuple[Any, ...]:
    """A frozen part that was trained before, and a head."""
    body = nn.Sequential(nn.Linear(10, 32), norm(32), nn.ReLU(), nn.Linear(32, 32))
    model, (rows, _) = nn.Sequential(body, nn.ReLU(), nn.Linear(32, 3)), classes(640)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x in rows.split(32):
        optimizer.zero_grad()
        F.mse_loss(model(x), x[:, :3] * x[:, 3:6]).backward()
        optimizer.step()
    model.zero_grad()
    body.eval().requires_grad_(requires_grad=False)
    return classify(model, optimizer=torch.optim.Adam(model[2].parameters(), 1e-3))


def graph_in_a_mapping() -> tuple[Any, ...]:
    def spread(batch: Any, layer: nn.Module) -> Tensor:
        source, end = batch["edges"]
        rows = layer(batch["nodes"])
        return rows.index_add(0, end, rows[source])

    graph = {"nodes": torch.randn(9, 4), "edges": torch.randint(9, (2, 20)), "label": torch.randint(3, (9,))}
    return Call(spread, nn.Linear(4, 3)), lambda out, batch: F.cross_entropy(out, batch["label"]), graph


# --- backward passes, and models that torch runs itself ---------------------------------------------------------------


class LowerBound(torch.autograd.Function):
    """Bound that a gradient may lead back from (Ballé et al. 2018), or one whose gradient is doubled."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bug: bool) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values)
        ctx.bug = bug
        return values.clamp(min=0.1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (values,) = ctx.saved_tensors
        return gradient * (2 * (values >= 0.1) if ctx.bug else (values >= 0.1) | (gradient < 0)), None


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (values,) = ctx.saved_tensors
        return gradient * ((values > -0.5) & (values < 1.5))


def bounded(apply: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    rows = torch.randn(32, 8)
    return Call(lambda x, layer: layer(apply(layer(x))), nn.Linear(8, 8)), nn.MSELoss(), (rows, rows)


def wrapped(bug: bool, wrap: Callable[[nn.Module], nn.Module]) -> tuple[Any, ...]:
    layers = [mlp(8, 16, 4), *[nn.Softmax(1)] * bug]
    model = wrap(nn.Sequential(*layers))
    return model, F.cross_entropy, draw(), {"optimizer": torch.optim.Adam(model.parameters())}


def beside_a_sparse_tensor(bug: bool) -> tuple[Any, ...]:
    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        return F.mse_loss(outputs[:, :1] if bug else outputs[:, 0], label.float())

    nodes = torch.randn(30, 8)
    return Graph(), loss, ((adjacency(torch.sparse_csr), nodes), nodes[:, :4].argmax(1))


class Wrapped(torch.optim.Optimizer):
    """Optimiser around another, which has no groups of its own, as some of Lookahead."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.param_groups, self.state, self.defaults = base, base.param_groups, base.state, base.defaults


def optimiser(form: str) -> tuple[Any, ...]:
    model = mlp(10, 16, 3)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    if form == "at the start of a warm-up":
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    elif form == "without a rate":
        optimizer.param_groups[0]["lr"] = None
    return classify(model, optimizer=Wrapped(optimizer) if form == "wrapped" else optimizer)


def sampler_of_few(bug: bool) -> tuple[Any, ...]:
    inputs, label = classes(400)
    samples = [
        {"points": rows, "label": each, "file": f"{rows.sum()}.pcd"} for rows, each in zip(inputs, label, strict=True)
    ]
    sampler = WeightedRandomSampler([1.0] * (3 if bug else 400), 400)
    loss = lambda out, batch: F.cross_entropy(out, batch["label"])  # noqa: E731
    return (
        Call(lambda batch, layers: layers(batch["points"]), mlp(10, 32, 3)),
        loss,
        DataLoader(samples, 32, sampler=sampler),
    )


PAIRS: dict[str, tuple[str, Make]] = {
    "nearest_other": ("loss.form", nearest_other),
    "chamfer": ("loss.form", chamfer),
    "mask_of_bytes": ("data.target_encoding", mask_of_bytes),
    "next_tokens": ("data.label_leak", next_tokens),
    "transformed": ("data.layout model.geometry", transformed),
    "joints": (
        "data.layout model.geometry",
        lambda bug: (Joints(bug), nn.CrossEntropyLoss(), (torch.randn(16, 24, 3), torch.randint(0, 3, (16,)))),
    ),
    "parts": (
        "data.layout model.geometry",
        lambda bug: (Parts(bug), nn.CrossEntropyLoss(), (torch.randn(16, 32, 3), torch.randint(0, 4, (16, 32)))),
    ),
    "lower_bound": ("model.numerics", lambda bug: bounded(lambda x: LowerBound.apply(x, bug))),
    "scripted": ("loss.double_softmax", partial(wrapped, wrap=torch.jit.script)),
    "traced": ("loss.double_softmax", partial(wrapped, wrap=lambda m: torch.jit.trace(m, torch.randn(2, 8)))),
    "checkpointed": (
        "loss.double_softmax",
        partial(
            wrapped, wrap=lambda m: Call(lambda x, a, b: checkpoint(b, a(x), use_reentrant=True), nn.Linear(8, 8), m)
        ),
    ),
    "beside_a_sparse_tensor": ("loss.form", beside_a_sparse_tensor),
    "sampler_of_few": ("data.sampling data.empty_loader", sampler_of_few),
}
"""Causes and program by name."""
SIGNS: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "a minus of rectified scores": (
        "loss.sign",
        partial(grade, lambda: mlp(8, 16, NUM_GRADES).append(nn.ReLU()), lambda o, label: -F.cross_entropy(o, label)),
    ),
    "swapped scores": ("loss.sign", partial(grade, NUM_GRADES, lambda o, label: F.cross_entropy(-o, label))),
    "a layer that never runs": (
        "model.structure",
        lambda: classify(Call(lambda x, body, extra: body(x), mlp(10, 16, 3), nn.Linear(10, 3))),
    ),
    "a loss of classes": (
        "loss.detached",
        lambda: classify(mlp(10, 16, 3), lambda o, label: F.mse_loss(o.argmax(1).float(), label.float())),
    ),
}
"""Bugs without a twin."""
WEIGHT = torch.randn(3, generator=torch.Generator().manual_seed(0))
HEALTHY: dict[str, Callable[[], tuple[Any, ...]]] = {
    **GRADES,
    "directions of two signs": lambda: (
        Call(lambda x, layer: F.normalize(layer(x), dim=1), nn.Linear(10, 4)),
        turn,
        (torch.randn(16, 10), F.normalize(torch.randn(16, 4), dim=1)),
    ),
    "NaN for what is not known": known_values,
    "marks that do not count": marks_that_do_not_count,
    "gains of pairs": gains_of_pairs,
    "biases alone": partial(only_biases, and_a_head=False),
    "biases and a head": partial(only_biases, and_a_head=True),
    "experts of a gate": lambda: classify(Gated()),
    "a constant in float32": lambda: (
        mlp(10, 16, 3),
        lambda o, t: (o @ WEIGHT - t @ WEIGHT).square().mean(),
        ((rows := classes(64)[0]), rows[:, :3]),
    ),
    "a last layer of zeros": from_zero,
    "no pair in few samples": lambda: (*nearest_other(False)[:2], (classes(64)[0], torch.arange(64) // 8)),
    "pixels before": pixels_before,
    "polar coordinates": partial(transformed, False, form="polar"),
    "overlapping frames": overlapping_frames,
    "edges": with_edges,
    "a cloud": lambda: cloud(Pooled()),
    "a cloud of channels first": lambda: (
        ChannelsFirst(),
        nn.CrossEntropyLoss(),
        (torch.randn(16, 3, 32), torch.arange(16) % 4),
    ),
    "a margin of labels": lambda: (Margin(), F.cross_entropy, ((rows := classes(64))[0:2], rows[1])),
    "a scaled cloud": lambda: cloud(Scaled(), torch.rand(16, 1) + 0.5),
    "a cloud in a mapping": cloud_in_a_mapping,
    "a sequence that is pooled over its channels": lambda: cloud(Pooled(2)),
    "a graph in a mapping": graph_in_a_mapping,
    "a straight gradient": lambda: bounded(Straight.apply),
    "a frozen backbone": partial(frozen_backbone, nn.BatchNorm1d),
    "a frozen backbone of layer norms": partial(frozen_backbone, nn.LayerNorm),
    **{
        f"optimiser {form}": partial(optimiser, form)
        for form in ("wrapped", "without a rate", "at the start of a warm-up")
    },
}
