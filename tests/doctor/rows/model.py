"""Programs whose model answers what it should not, keeps what it should not, or does not train what it should."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.doctor.rows import Cases, load


class Images(nn.Module):
    """Classifier of images with one of several slips."""

    def __init__(self, slip: str) -> None:
        super().__init__()
        self.slip, self.gain = slip, nn.Parameter(torch.ones(6, 1, 1))
        if slip == "tensor":
            self.gain, self.loose = None, torch.ones(6, 1, 1, requires_grad=True)
        self.body, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.register_buffer("seen", torch.zeros(6), persistent=slip != "memory")

    def forward(self, images: Tensor) -> Tensor:
        if self.slip == "writes":
            images.mul_(2).sub_(1)
        if self.slip == "view":
            images = images.permute(0, 2, 3, 1).reshape(len(images), 3, *images.shape[2:])
        hidden = self.body(images) * (self.loose if self.slip == "tensor" else self.gain)
        pooled = hidden.relu().mean((2, 3))
        if self.slip == "detached":
            pooled = pooled.detach()
        if self.slip == "batch norm by hand":
            pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-3)
        if self.training or self.slip == "counts in evaluation":
            with torch.no_grad():
                self.seen.lerp_(pooled.mean(0), 0.1)
        answer: Tensor = self.last(pooled - self.seen * 0.5)
        return F.dropout(answer, 0.5) if self.slip == "dropout" else answer


def of_images(slip: str, bug: bool) -> tuple[Any, ...]:
    return Images(slip if bug else ""), nn.CrossEntropyLoss(), (torch.randn(12, 3, 10, 8), torch.arange(12) % 4)


class Tagger(nn.Module):
    """Attention over words, or of words that come, with one of several slips."""

    def __init__(self, slip: str, *, is_causal: bool = False) -> None:
        super().__init__()
        self.slip, self.is_causal = slip, is_causal
        self.embed, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(9, 8) * 0.1)
        self.pairs, self.last = nn.Linear(8, 24), nn.Linear(8, 11)

    def forward(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        embedded = self.embed(words) + self.places[: words.shape[1]]
        query, key, value = self.pairs(embedded).chunk(3, -1)
        if self.slip == "heads":
            query, key, value = (t.reshape(len(t), 2, -1, 4) for t in (query, key, value))
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        if self.is_causal and self.slip != "sees ahead":
            scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -math.inf)
        if mask is not None and self.slip != "no mask":
            scores = scores.masked_fill((mask if self.slip == "upside down" else ~mask)[:, None], -1e9)
        read = scores.softmax(-2 if self.slip == "queries" else -1) @ value
        return self.last(embedded + read.reshape_as(embedded))


def score(logits: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), words.flatten(), ignore_index=0)


def of_words(slip: str, bug: bool) -> tuple[Any, ...]:
    words = torch.randint(1, 11, (10, 9))
    return Tagger(slip if bug else ""), score, (words, (words * 3) % 11)


def of_padded_words(slip: str, bug: bool) -> tuple[Any, ...]:
    mask = torch.arange(9) < torch.randint(4, 10, (10, 1))
    words = torch.randint(1, 11, (10, 9)) * mask
    batch = {"words": words, "mask": mask, "tags": (words * 3) % 11}
    return Tagger(slip if bug else ""), lambda logits, batch: score(logits, batch["tags"]), batch


def words_that_come(bug: bool) -> tuple[Any, ...]:
    words = torch.randint(0, 11, (10, 10))
    return Tagger("sees ahead" if bug else "", is_causal=True), score, (words[:, :-1], words[:, 1:])


class Recurrent(nn.Module):
    def __init__(self, body: nn.Module, last: nn.Module, *, is_last: bool = False) -> None:
        super().__init__()
        self.body, self.last, self.is_last = body, last, is_last

    def forward(self, values: Tensor) -> Tensor:
        read = self.body(values)[0]
        return self.last(read[:, -1] if self.is_last else read)


def values_that_come(bug: bool) -> tuple[Any, ...]:
    series = torch.randn(12, 21, 2).cumsum(1)
    model = Recurrent(nn.GRU(2, 8, batch_first=True, bidirectional=bug), nn.Linear(16 if bug else 8, 2))
    return model, nn.MSELoss(), (series[:, :-1], series[:, 1:])


def steps_for_samples(bug: bool) -> tuple[Any, ...]:
    model = Recurrent(nn.LSTM(4, 8, batch_first=not bug), nn.Linear(8, 3), is_last=True)
    return model, nn.CrossEntropyLoss(), load(torch.randn(20, 7, 4), torch.randint(0, 3, (20,)), size=10, shuffle=False)


class Gaps(nn.Module):
    """Fills a gap of each signal, which it hides; a bug tells the loss of the gap of another order of the batch."""

    def __init__(self, bug: bool) -> None:
        super().__init__()
        self.net, self.bug = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24)), bug

    def forward(self, signals: Tensor) -> tuple[Tensor, Tensor]:
        is_hidden = torch.arange(24) // 6 == torch.randint(0, 4, (len(signals), 1))
        return self.net(signals.masked_fill(is_hidden, 0)), is_hidden.flip(0) if self.bug else is_hidden


def gaps_of_others(bug: bool) -> tuple[Any, ...]:
    signals = torch.randn(16, 24)
    loss = lambda out, wanted: ((out[0] - wanted).square() * out[1]).sum() / out[1].sum()  # noqa: E731
    return Gaps(bug), loss, (signals, signals)


class RunningScale(nn.Module):
    """Divides signals by their largest number in training, and by the running one in evaluation."""

    def __init__(self, bug: bool) -> None:
        super().__init__()
        self.largest, self.bug = nn.Buffer(torch.ones(1, 3, 1)), bug

    def forward(self, signals: Tensor) -> Tensor:
        if not self.training:
            return signals / self.largest
        largest = signals.detach().abs().amax(dim=(0, 2), keepdim=True)
        self.largest.lerp_(largest, 0.0 if self.bug else 0.1)
        return signals / largest


class Centred(nn.Module):
    """Subtracts a running mean of table rows, which is a buffer or not."""

    def __init__(self, is_buffer: bool) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.mean = nn.Buffer(torch.zeros(6)) if is_buffer else torch.zeros(6)

    def forward(self, rows: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * rows.detach().mean(0)
        return self.head(rows - self.mean)


def table() -> tuple[Tensor, Tensor]:
    rows = torch.randn(32, 6) + 1
    return rows, rows[:, :3].argmax(1)


def root_of_zero(bug: bool) -> tuple[Any, ...]:
    class Unit(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            hidden = super().forward(rows)
            size = hidden.sub(hidden.detach()).pow(2).sum(1).sqrt() if bug else hidden.norm(dim=1)
            return hidden.mean(1) + 0.1 * size

    return Unit(4, 5), nn.MSELoss(), (torch.randn(8, 4), torch.randn(8))


def one_block_three_times(bug: bool) -> tuple[Any, ...]:
    blocks = [nn.Linear(6, 6)] * 3 if bug else [nn.Linear(6, 6) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(6, 3)), nn.CrossEntropyLoss(), table()


def weight_frozen_beside_its_bias(bug: bool) -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for parameter in [model[0].weight] if bug else model[0].parameters():
        parameter.requires_grad_(requires_grad=False)
    return model, nn.CrossEntropyLoss(), table()


# --- optimisers -------------------------------------------------------------------------------------------------------


class Momentum(torch.optim.Optimizer):
    """Momentum that lies in the optimiser's state, or beside it."""

    def __init__(self, parameters: Any, lr: float, *, is_saved: bool) -> None:
        super().__init__(parameters, {"lr": lr})
        self.is_saved, self.beside = is_saved, dict[Tensor, Any]()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                kept = self.state if self.is_saved else self.beside
                average = kept.setdefault(parameter, {}).setdefault("average", torch.zeros_like(parameter))
                parameter.sub_(group["lr"] * average.mul_(0.9).add_(parameter.grad))


class Averaged(nn.Module):
    """Classifier by the mean of words, of the true ones or with what fills up their row."""

    def __init__(self, has_bug: bool) -> None:
        super().__init__()
        self.words, self.last, self.has_bug = nn.Embedding(20, 8), nn.Linear(8, 3), has_bug

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        is_true = torch.arange(words.shape[1]) < lengths[:, None]
        weights = (is_true | self.has_bug).float()[..., None]
        return self.last((self.words(words) * weights).sum(1) / weights.sum(1))


def words_of_lengths(bug: bool) -> tuple[Any, ...]:
    lengths = torch.randint(3, 12, (24,))
    words = torch.randint(1, 20, (24, int(lengths.max())))
    words[torch.arange(words.shape[1]) >= lengths[:, None]] = 0
    return Averaged(bug), nn.CrossEntropyLoss(), ((words, lengths), words[:, 0] % 3)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def optimise(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any = None, factor: float = 0
) -> tuple[Any, ...]:
    rows, label = table()
    target = factor * rows[:, :3] if factor else label
    return model, loss or (nn.MSELoss() if factor else nn.CrossEntropyLoss()), (rows, target), {"optimizer": optimizer}


def head_left_out(bug: bool) -> tuple[Any, ...]:
    optimizer = torch.optim.AdamW((model := network()).parameters(), 1e-3)
    if bug:
        model[3] = nn.Linear(16, 3)
    return optimise(model, optimizer)


def group_by_name(bug: bool, name: str = "3.", rate: float = 1e-4) -> tuple[Any, ...]:
    """A group of the parameters of a name at a rate of its own; with the bug the layer has another name."""
    model = network()
    chosen = [
        parameter for key, parameter in model.named_parameters() if key.startswith(f"head.{name}" if bug else name)
    ]
    others = [parameter for parameter in model.parameters() if not any(parameter is each for each in chosen)]
    groups = [{"params": others}, {"params": chosen, "lr": rate}]
    return optimise(model, torch.optim.AdamW(groups, lr=1e-3))


def summed_at_a_huge_rate(bug: bool) -> tuple[Any, ...]:
    optimizer = torch.optim.SGD((model := network()).parameters(), 0.05)
    return optimise(model, optimizer, nn.MSELoss(reduction="sum" if bug else "mean"), 20)


def ends_in_a_relu(kind: str, bug: bool) -> tuple[Any, ...]:
    """Maps or masks of bright squares in images, or their corners, from the middle of the image on."""
    size, num = 12, 16
    corners = torch.randint(0, size - 4, (num, 2))
    cells = torch.arange(size)
    inside = [(cells >= corner[:, None]) & (cells < corner[:, None] + 4) for corner in corners.T]
    masks = (inside[0][:, :, None] & inside[1][:, None]).float()[:, None]
    images = masks + 0.1 * torch.randn(num, 1, size, size)
    widths = range(1, 13, 2) if kind == "maps" else [1]
    last = nn.Conv2d(8, len(widths), 3, padding=1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), last)
    target = torch.cat([F.avg_pool2d(masks, width, 1, width // 2) for width in widths], dim=1)
    if kind == "corners":
        model.append(nn.Flatten()).append(nn.Linear(size * size, 4))
        target = torch.cat([corners, corners + 4], dim=1) / size - 0.5
    loss = {"masks": nn.BCEWithLogitsLoss(), "maps": nn.MSELoss(), "corners": nn.SmoothL1Loss()}[kind]
    nn.init.zeros_(model[-1].bias)  # type: ignore[arg-type]
    return model.append(nn.ReLU()) if bug else model, loss, (images, target)


class Adapted(nn.Module):
    """Frozen layer with a product of two trained factors beside it; one of them is 0 at the start, or both are."""

    def __init__(self, num_inputs: int, num_outputs: int, has_bug: bool) -> None:
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
        self.down = nn.Parameter((not has_bug) * 0.1 * torch.randn(2, num_inputs))
        self.up = nn.Parameter(torch.zeros(num_outputs, 2))

    def forward(self, values: Tensor) -> Tensor:
        return self.base(values) + values @ self.down.T @ self.up.T


def zeroed(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def adapted(bug: bool) -> nn.Sequential:
    return nn.Sequential(Adapted(6, 16, bug), nn.ReLU(), Adapted(16, 3, bug))


CASES: Cases = {
    "adapters of two zeros": ("model.init", lambda bug: (adapted(bug), nn.CrossEntropyLoss(), table())),
    "a layer that begins at zero": (
        "model.init",
        lambda bug: (adapted(True) if bug else zeroed(nn.Linear(6, 3)), nn.CrossEntropyLoss(), table()),
    ),
    **{f"a ReLU behind {kind}": ("model.activation", partial(ends_in_a_relu, kind)) for kind in ("masks", "maps")},
    "a ReLU behind corners": ("model.activation", partial(ends_in_a_relu, "corners")),
    "dropout in evaluation": ("eval.mode", partial(of_images, "dropout")),
    "a tensor that is no parameter": ("model.unregistered", partial(of_images, "tensor")),
    "pooled features detached": ("loss.detached", partial(of_images, "detached")),
    "features normed over the batch": ("model.cross_sample_leak", partial(of_images, "batch norm by hand")),
    "steps for samples": ("model.cross_sample_leak", steps_for_samples),
    "images by reshape": ("model.geometry", partial(of_images, "view")),
    "heads by reshape": ("model.geometry model.structure", partial(of_words, "heads")),
    "softmax over queries": ("model.structure", partial(of_words, "queries")),
    "a decoder that sees ahead": ("model.structure data.label_leak", words_that_come),
    "a series read from both ends": ("model.structure data.label_leak", values_that_come),
    "a mask upside down": ("data.padding", partial(of_padded_words, "upside down")),
    "a mask that nobody reads": ("data.padding", partial(of_padded_words, "no mask")),
    "padding in a mean of words": ("data.padding", words_of_lengths),
    "gaps of other signals that count": ("data.pairing", gaps_of_others),
    "statistics that move in evaluation": ("eval.mode", partial(of_images, "counts in evaluation")),
    "a running scale that is never written": (
        "model.norm_mode",
        lambda bug: (
            nn.Sequential(RunningScale(bug), nn.Flatten(), nn.Linear(48, 2)),
            nn.CrossEntropyLoss(),
            (5 * torch.randn(16, 3, 16), torch.arange(16) % 2),
        ),
    ),
    "inputs written in place": ("data.item_mutation", partial(of_images, "writes")),
    "a root of 0": ("model.numerics", root_of_zero),
    "one block three times": ("model.structure", one_block_three_times),
    "weight frozen beside its bias": ("model.frozen_unintended", weight_frozen_beside_its_bias),
    "a running mean that is no buffer": (
        "ckpt.incomplete_state",
        lambda bug: (Centred(not bug), nn.CrossEntropyLoss(), table()),
    ),
    "a memory that is not saved": ("ckpt.incomplete_state", partial(of_images, "memory")),
    "a momentum beside the state": (
        "optim.state",
        lambda bug: optimise(model := network(), Momentum(model.parameters(), 0.05, is_saved=not bug)),
    ),
    "a network that is made after its optimizer": (
        "optim.param_coverage",
        lambda bug: optimise(model := network(), torch.optim.SGD((network() if bug else model).parameters(), 0.1)),
    ),
    "a head made after its optimizer": ("optim.param_coverage", head_left_out),
    "a group of a name that no layer has": ("optim.param_coverage", group_by_name),
    "the first layer alone in an optimizer": (
        "optim.param_coverage",
        lambda bug: optimise(
            model := network(), torch.optim.SGD((model[0] if bug else model).parameters(), 0.1, momentum=0.9)
        ),
    ),
    "a rate below the last bit": (
        "optim.lr",
        lambda bug: optimise(model := network(), torch.optim.SGD(model.parameters(), 1e-12 if bug else 1e-2), factor=2),
    ),
    "a huge rate": (
        "optim.lr",
        lambda bug: optimise(model := network(), torch.optim.Adam(model.parameters(), 3.0 if bug else 3e-3)),
    ),
    "a huge rate of a sum": ("optim.lr", summed_at_a_huge_rate),
}
