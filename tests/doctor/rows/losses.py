"""Programs whose loss leads elsewhere than to its targets, mixes samples, or counts what it should not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from tests.doctor.rows import Cases


class Tagger(nn.Module):
    """Recurrent network that gives each token the scores of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(11, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens))[0])


class Coder(nn.Module):
    """Variational autoencoder of vectors, which draws its code in one of several ways."""

    def __init__(self, draw: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(2, 6)
        self.draw = draw or (lambda mean, scale: mean + scale * torch.randn_like(mean))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(values).chunk(2, -1)
        code = self.draw(mean, (0.5 * log_variance).exp()) if self.training else mean
        return self.decode(code), mean, log_variance


def net(*last: nn.Module, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs), *last)


def classes(num: int = 24, number: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(num, 6), torch.randint(0, number, (num,))


def numbers(width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(16, 6), torch.randn(16, width)


def masks(loss: Any) -> tuple[Any, ...]:
    images = torch.randn(4, 1, 8, 8)
    return nn.Conv2d(1, 1, 3, padding=1), loss, (images, (images > 0.5).float())


def dice(out: Tensor, mask: Tensor) -> Tensor:
    shares = out.sigmoid()
    return (2 * (shares * mask).sum() + 1) / (shares.sum() + mask.sum() + 1)


def cups(bug: bool) -> tuple[Any, ...]:
    """Masks of a network whose scores are all above 0 when it starts."""
    network, loss, data = masks(lambda out, mask: dice(out, mask) if bug else 1 - dice(out, mask))
    nn.init.constant_(network.bias, 6.0)
    return network, loss, data


def drawn(draw: Callable[[Tensor, Tensor], Tensor]) -> tuple[Any, ...]:
    return codes(lambda each: each.mean(), draw)


def true_share(out: Tensor, target: Tensor) -> Tensor:
    return out.softmax(1).gather(1, target[:, None]).mean()


def product_of_scores_and_maps(bug: bool) -> tuple[Any, ...]:
    images, link = torch.randn(4, 1, 8, 8), (lambda out: out) if bug else F.logsigmoid
    loss = lambda out, t: -(t * link(out) + (1 - t) * link(-out)).mean()  # noqa: E731
    return nn.Conv2d(1, 1, 3, padding=1), loss, (images, images.sigmoid())


def exchanged_shares(bug: bool) -> tuple[Any, ...]:
    def loss(out: Tensor, shares: Tensor) -> Tensor:
        each = out.softmax(1) * shares.log_softmax(1) if bug else out.log_softmax(1) * shares
        return -each.sum(1).mean()

    return net(), loss, (torch.randn(16, 6), torch.randn(16, 4).softmax(-1))


def axes_in_another_order(bug: bool) -> tuple[Any, ...]:
    tokens = torch.randint(0, 11, (6, 10))
    flatten = lambda out: (out.transpose(0, 1) if bug else out).reshape(-1, 11)  # noqa: E731
    return Tagger(), lambda out, t: F.cross_entropy(flatten(out), t.reshape(-1)), (tokens[:, :-1], tokens[:, 1:])


def weights_against_errors(bug: bool) -> tuple[Any, ...]:
    def loss(out: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        errors = F.cross_entropy(out, target[0], reduction="none")
        return (errors * (target[1] if bug else target[1][:, 0])).mean()

    inputs, label = classes(16)
    return net(), loss, (inputs, (label, torch.rand(16, 1)))


def summed_boxes(bug: bool) -> tuple[Any, ...]:
    def loss(out: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        errors = (out[:, 4:] - target[1]).abs().sum(1)
        return F.cross_entropy(out[:, :4], target[0]) + (errors.sum() if bug else errors.mean())

    inputs, label = classes(16)
    return net(outputs=8), loss, (inputs, (label, torch.rand(16, 4)))


def codes(loss: Any, draw: Callable[[Tensor, Tensor], Tensor] | None = None) -> tuple[Any, ...]:
    def with_divergence(out: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        decoded, mean, log_variance = out
        return F.mse_loss(decoded, target) + loss(-0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1))

    values = torch.randn(16, 6)
    return Coder(draw), with_divergence, (values, values)


def detached_self(bug: bool) -> tuple[Any, ...]:
    def loss(out: Tensor, label: Tensor) -> Tensor:
        each = F.cross_entropy(out, label)
        return 2 * each.detach() - each if bug else each

    rows = torch.randn(32, 6)
    return net(outputs=3), loss, (rows, rows[:, :3].argmax(1))


def padded() -> tuple[Tensor, Tensor]:
    """Draw rows of words, which 0 fills up, and their lengths."""
    lengths = torch.tensor([12, 9, 7, 10, 6, 11, 8, 5])
    return torch.randint(1, 11, (8, 12)) * (torch.arange(12) < lengths[:, None]), lengths


def padding_counts(bug: bool) -> tuple[Any, ...]:
    tokens, _ = padded()
    tags = tokens % 5 if bug else (tokens % 5).masked_fill(tokens == 0, -100)
    return Tagger(), lambda out, t: F.cross_entropy(out.mT, t), (tokens, tags)


def end_is_padding(bug: bool) -> tuple[Any, ...]:
    tokens, lengths = padded()
    tokens = torch.where(tokens == 2, 3, tokens)  # 2 ends a row
    tokens[torch.arange(8), lengths - 1] = 2
    padding = 2 if bug else 0
    tokens = torch.where(torch.arange(12) < lengths[:, None], tokens, padding)
    target = tokens.masked_fill(tokens == padding, -100)
    return Tagger(), lambda out, t: F.cross_entropy(out[:, :-1].mT, t[:, 1:]), (tokens, target)


def first_tag_is_padding(bug: bool) -> tuple[Any, ...]:
    """Tags of words, of which -1 marks padding: the mask is of positive ones, so that the first tag is padding, too."""
    words = torch.randint(0, 6, (16, 12))
    tags = torch.where(torch.arange(12) < torch.randint(6, 12, (16, 1)), words % 4, -1)

    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        is_word = labels > 0 if bug else labels >= 0
        return F.cross_entropy(scores[is_word], labels[is_word])

    return nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 4)), loss, (words, tags)


def standardised_before_the_mask(bug: bool) -> tuple[Any, ...]:
    """Rain of grids without a gauge everywhere: what is positive is taken after the numbers are standardised."""
    maps = torch.rand(8, 1, 12, 12)
    rain = torch.where(torch.rand(8, 1, 12, 12) < 0.2, 0.0, 2 + maps * 5 + 0.1 * torch.randn(8, 1, 12, 12))

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        has_gauge = wanted > 0 if bug else wanted != 0
        return F.l1_loss(outputs[has_gauge], wanted[has_gauge])

    return nn.Conv2d(1, 1, 3, padding=1), loss, (maps, torch.where(rain > 0, (rain - 4.5) / 1.5, 0.0))


def onsets_between_frames(bug: bool) -> tuple[Any, ...]:
    """Heat of onsets whose peaks are never 1, as the loss wants them."""
    centre = 3 + 14 * torch.rand(32, 1)
    heat = torch.exp(-((torch.arange(20.0) - (centre if bug else centre.round())) ** 2) / 2)[:, None]

    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        shares, is_peak = out.sigmoid().clamp(1e-6, 1 - 1e-6), wanted.eq(1)
        low = (-(1 - shares).log() * shares**2 * (1 - wanted) ** 4)[~is_peak].sum()
        return low - (shares.log() * (1 - shares) ** 2)[is_peak].sum()

    return nn.Conv1d(1, 1, 5, padding=2), loss, (torch.randn(32, 1, 20), heat)


def boxes_of_no_words(bug: bool) -> tuple[Any, ...]:
    def loss(out: Tensor, wanted: Tensor) -> Tensor:
        kept = torch.ones(wanted.shape[:2], dtype=torch.bool) if bug else wanted[..., 2] > 0
        return F.smooth_l1_loss(out[kept], wanted[kept])

    boxes = torch.rand(64, 12, 4) * (torch.rand(64, 12, 1) < 0.25)
    return nn.Sequential(nn.Linear(6, 48), nn.Unflatten(1, (12, 4))), loss, (torch.randn(64, 6), boxes)


def sigmoid_twice(bug: bool) -> tuple[Any, ...]:
    inputs, label = classes(number=2)
    model = net(*[nn.Sigmoid()] * bug, nn.Flatten(0), outputs=1)
    return model, nn.BCEWithLogitsLoss(), (inputs, label.float())


CASES: Cases = {
    "softmax twice": (
        "loss.double_softmax",
        lambda bug: (net(*[nn.Softmax(-1)] * bug), nn.CrossEntropyLoss(), classes()),
    ),
    "sigmoid twice": ("loss.double_softmax", sigmoid_twice),
    "likelihood of scores": ("loss.form", lambda bug: (net(*[nn.LogSoftmax(-1)] * (not bug)), nn.NLLLoss(), classes())),
    "likelihood is minimised": (
        "loss.sign",
        lambda bug: (
            net(),
            lambda out, t: (1 if bug else -1) * out.log_softmax(1).gather(1, t[:, None]).mean(),
            classes(),
        ),
    ),
    "error is maximised": (
        "loss.sign",
        lambda bug: (net(outputs=2), lambda out, t: (-1 if bug else 1) * F.mse_loss(out, t), numbers(2)),
    ),
    "overlap is minimised": ("loss.sign", cups),
    "a draw without a gradient": (
        "loss.detached",
        lambda bug: drawn(lambda m, s: Normal(m, s).sample() if bug else Normal(m, s).rsample()),
    ),
    "draws of several numbers without a gradient": (
        "loss.detached",
        lambda bug: drawn(
            lambda m, s: Independent(Normal(m, s), 1).sample() if bug else Independent(Normal(m, s), 1).rsample()
        ),
    ),
    "a normal draw without a gradient": (
        "loss.detached",
        lambda bug: drawn(lambda m, s: torch.normal(m, s) if bug else m + s * torch.normal(0.0, 1.0, m.shape)),
    ),
    "divergence is rewarded": ("loss.sign", lambda bug: codes(lambda each: (-1 if bug else 1) * each.mean())),
    "divergence is a sum over the batch": (
        "loss.normaliser",
        lambda bug: codes(lambda each: each.sum() if bug else each.mean()),
    ),
    "one term is against the target": (
        "loss.sign",
        lambda bug: masks(
            lambda o, t: F.binary_cross_entropy_with_logits(o, t) + (dice(o, t) if bug else 1 - dice(o, t))
        ),
    ),
    "one term lowers true classes": (
        "loss.sign",
        lambda bug: (net(), lambda o, t: F.cross_entropy(o, t) + (1 if bug else -1) * true_share(o, t), classes()),
    ),
    "a loss less than its detached self": ("loss.sign", detached_self),
    "softmax over the batch": (
        "loss.form",
        lambda bug: (net(), lambda out, t: F.nll_loss(out.log_softmax(0 if bug else 1), t), classes()),
    ),
    "product of scores and maps": ("loss.form", product_of_scores_and_maps),
    "shares are exchanged with outputs": ("loss.form", exchanged_shares),
    "weights against errors": ("loss.form", weights_against_errors),
    "onsets between frames": ("loss.form", onsets_between_frames),
    "axes are flattened in another order": ("cfg.axis_swap", axes_in_another_order),
    "targets are rolled": (
        "data.pairing",
        lambda bug: (net(outputs=3), lambda out, t: F.mse_loss(out, t.roll(1, 0) if bug else t), numbers(3)),
    ),
    "labels are flipped": (
        "data.pairing",
        lambda bug: (net(), lambda out, t: F.cross_entropy(out, t.flip(0) if bug else t), classes()),
    ),
    "coordinates are exchanged": (
        "data.pairing",
        lambda bug: (net(outputs=2), lambda out, t: F.l1_loss(out, t.flip(-1) if bug else t), numbers(2)),
    ),
    "boxes are summed and classes averaged": ("loss.normaliser", summed_boxes),
    "boxes of no words": ("loss.normaliser", boxes_of_no_words),
    "padding counts": ("data.padding", padding_counts),
    "end is padding": ("data.padding", end_is_padding),
    "a tag that counts as padding": ("data.ignore_handling", first_tag_is_padding),
    "a mask of what has been standardised": ("data.ignore_handling", standardised_before_the_mask),
}
