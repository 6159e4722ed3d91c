"""Programs whose loss leads elsewhere than to its targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.doctor.rows import Case


class Tagger(nn.Module):
    """Recurrent network that gives each token the scores of the next one."""

    def __init__(self, num_words: int = 11) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(num_words, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens))[0])


def make_classes(num: int = 24, width: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(num, width), torch.randint(0, classes, (num,))


def make_net(*last: nn.Module, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs), *last)


def softmax_twice(has_bug: bool, watch: Any, check: Any) -> None:
    check(make_net(*[nn.Softmax(-1)] * has_bug), nn.CrossEntropyLoss(), make_classes())


def sigmoid_twice(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, labels = make_classes(classes=2)
    link = torch.sigmoid if has_bug else lambda scores: scores
    loss = lambda out, t: F.binary_cross_entropy_with_logits(link(out)[:, 0], t)  # noqa: E731
    check(make_net(outputs=1), loss, (inputs, labels.float()))


def nll_of_scores(has_bug: bool, watch: Any, check: Any) -> None:
    check(make_net(*[nn.LogSoftmax(-1)] * (not has_bug)), nn.NLLLoss(), make_classes())


def likelihood_is_minimised(has_bug: bool, watch: Any, check: Any) -> None:
    sign = 1 if has_bug else -1
    loss = lambda out, t: sign * out.log_softmax(1).gather(1, t[:, None]).mean()  # noqa: E731
    check(make_net(), loss, make_classes())


def dice_is_minimised(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8)

    def loss(out: Tensor, mask: Tensor) -> Tensor:
        shares = out.sigmoid()
        dice = (2 * (shares * mask).sum() + 1) / (shares.sum() + mask.sum() + 1)
        return dice if has_bug else 1 - dice

    check(nn.Conv2d(1, 1, 3, padding=1), loss, (images, (images > 0.5).float()))


def softmax_over_the_batch(has_bug: bool, watch: Any, check: Any) -> None:
    loss = lambda out, t: F.nll_loss(out.log_softmax(0 if has_bug else 1), t)  # noqa: E731
    check(make_net(), loss, make_classes())


def softmax_over_rows_of_an_image(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    batch = torch.randn(3, 2, 6, 6), torch.randint(0, 5, (3, 6, 6))
    check(
        nn.Conv2d(2, 5, 3, padding=1), lambda out, t: F.nll_loss(F.log_softmax(out, dim=2 if has_bug else 1), t), batch
    )


def tokens_are_not_shifted(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (6, 9))
    start = 0 if has_bug else 1
    loss = lambda out, t: F.cross_entropy(out[:, : 9 - start].flatten(0, 1), t[:, start:].flatten())  # noqa: E731
    check(Tagger(), loss, (tokens, tokens))


def both_ends_are_cut_alike(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    notes = torch.randint(0, 11, (8, 12))
    target = notes[:, :-1] if has_bug else notes[:, 1:]
    check(Tagger(), lambda out, t: F.cross_entropy(out.transpose(1, 2), t), (notes[:, :-1], target))


def axes_are_flattened_in_another_order(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (6, 10))

    def loss(out: Tensor, target: Tensor) -> Tensor:
        scores = out.transpose(0, 1) if has_bug else out
        return F.cross_entropy(scores.reshape(-1, 11), target.reshape(-1))

    check(Tagger(), loss, (tokens[:, :-1], tokens[:, 1:]))


def targets_are_rolled(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    loss = lambda out, t: F.mse_loss(out, t.roll(1, 0) if has_bug else t)  # noqa: E731
    check(make_net(outputs=3), loss, (torch.randn(16, 6), torch.randn(16, 3)))


def labels_are_rolled(has_bug: bool, watch: Any, check: Any) -> None:
    loss = lambda out, t: F.cross_entropy(out, t.flip(0) if has_bug else t)  # noqa: E731
    check(make_net(), loss, make_classes())


def coordinates_are_exchanged(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    loss = lambda out, t: (out - (t.flip(-1) if has_bug else t)).abs().mean()  # noqa: E731
    check(make_net(outputs=2), loss, (torch.randn(16, 6), torch.rand(16, 2)))


def target_is_normalised_and_prediction_is_not(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(32, 6)
    target = inputs[:, :1] * 40 + 300
    loss = lambda out, t: F.mse_loss(out * 40 + 300 if has_bug else out, t)  # noqa: E731
    check(make_net(outputs=1), loss, (inputs, (target - 300) / 40))


def target_is_in_other_units(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    depth = torch.randn(4, 1, 6, 6)
    loss = lambda out, t: ((out * 25 + 12 if has_bug else out) - t).abs().mean()  # noqa: E731
    check(nn.Conv2d(1, 1, 3, padding=1), loss, (depth, depth))


class Coder(nn.Module):
    """Variational autoencoder of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(values).chunk(2, -1)
        noise = torch.randn_like(mean) * self.training
        return self.decode(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def divergence_is_rewarded(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    values = torch.randn(16, 6)

    def loss(out: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        decoded, mean, log_variance = out
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return F.mse_loss(decoded, target) + (-divergence if has_bug else divergence)

    check(Coder(), loss, (values, values))


def error_is_maximised(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    loss = lambda out, t: F.mse_loss(out, t) * (-1 if has_bug else 1)  # noqa: E731
    check(make_net(outputs=2), loss, (torch.randn(16, 6), torch.randn(16, 2)))


def divergence_of_shares_without_logarithm(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    link = (lambda out: out) if has_bug else (lambda out: out.log_softmax(-1))
    loss = lambda out, t: F.kl_div(link(out), t, reduction="batchmean")  # noqa: E731
    check(make_net(), loss, (torch.randn(16, 6), torch.randn(16, 4).softmax(-1)))


def product_of_scores_and_maps(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8)
    link = (lambda out: out) if has_bug else F.logsigmoid
    loss = lambda out, t: -(t * link(out) + (1 - t) * link(-out)).mean()  # noqa: E731
    check(nn.Conv2d(1, 1, 3, padding=1), loss, (images, images.sigmoid()))


def teacher_is_compared_with_shares(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, labels = make_classes()

    def loss(out: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        hard, soft = target
        shares = F.softmax(out / 2, 1)
        return F.cross_entropy(out, hard) + 4 * F.kl_div(shares if has_bug else shares.log(), soft)

    check(make_net(), loss, (inputs, (labels, torch.randn(24, 4).softmax(1))))


def shares_are_exchanged_with_outputs(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    target = torch.randn(16, 4).softmax(-1)

    def loss(out: Tensor, shares: Tensor) -> Tensor:
        if has_bug:
            return -(out.softmax(1) * shares.log_softmax(1)).sum(1).mean()
        return -(out.log_softmax(1) * shares).sum(1).mean()

    check(make_net(), loss, (torch.randn(16, 6), target))


def make_rare_classes() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(64, 6), torch.tensor([0] * 40 + [1] * 14 + [2] * 7 + [3] * 3)


def weights_are_frequencies(has_bug: bool, watch: Any, check: Any) -> None:
    inputs, labels = make_rare_classes()
    shares = labels.bincount() / len(labels)
    check(make_net(), nn.CrossEntropyLoss(weight=shares if has_bug else 1 / shares), (inputs, labels))


def places_are_weighted_by_frequency(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    labels = (torch.rand(4, 8, 8) ** 3 * 4).long()
    counts = labels.flatten().bincount().float()
    weights = (counts if has_bug else 1 / counts)[None, :, None, None]

    def loss(out: Tensor, target: Tensor) -> Tensor:
        hot = F.one_hot(target, 4).movedim(-1, 1)
        return -(weights * hot * out.log_softmax(1)).sum() / (weights * hot).sum()

    check(nn.Conv2d(2, 4, 1), loss, (torch.randn(4, 2, 8, 8), labels))


def one_term_is_against_the_target(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8)

    def loss(out: Tensor, mask: Tensor) -> Tensor:
        shares = out.sigmoid()
        dice = (2 * (shares * mask).sum() + 1) / (shares.sum() + mask.sum() + 1)
        return F.binary_cross_entropy_with_logits(out, mask) + (dice if has_bug else 1 - dice)

    check(nn.Conv2d(1, 1, 3, padding=1), loss, (images, (images > 0.5).float()))


def one_term_lowers_true_classes(has_bug: bool, watch: Any, check: Any) -> None:
    def loss(out: Tensor, target: Tensor) -> Tensor:
        shares = out.softmax(1).gather(1, target[:, None]).mean()
        return F.cross_entropy(out, target) + (shares if has_bug else -shares)

    check(make_net(), loss, make_classes())


CASES = [
    Case("softmax twice", softmax_twice, "loss.double_softmax"),
    Case("sigmoid twice", sigmoid_twice, "loss.double_softmax"),
    Case("likelihood of scores", nll_of_scores, "loss.form"),
    Case("likelihood is minimised", likelihood_is_minimised, "loss.sign"),
    Case("Dice is minimised", dice_is_minimised, "loss.sign"),
    Case("softmax over the batch", softmax_over_the_batch, "loss.form"),
    Case("softmax over rows of an image", softmax_over_rows_of_an_image, "loss.form"),
    Case("tokens are not shifted", tokens_are_not_shifted, "data.label_leak"),
    Case("both ends are cut alike", both_ends_are_cut_alike, "data.label_leak"),
    Case("axes are flattened in another order", axes_are_flattened_in_another_order, "cfg.axis_swap"),
    Case("targets are rolled", targets_are_rolled, "data.pairing"),
    Case("labels are rolled", labels_are_rolled, "data.pairing"),
    Case("coordinates are exchanged", coordinates_are_exchanged, "data.pairing"),
    Case("target is normalised", target_is_normalised_and_prediction_is_not, "data.target_encoding"),
    Case("target is in other units", target_is_in_other_units, "data.target_encoding"),
    Case("divergence is rewarded", divergence_is_rewarded, "loss.sign"),
    Case("error is maximised", error_is_maximised, "loss.sign"),
    Case("divergence without a logarithm", divergence_of_shares_without_logarithm, "loss.form"),
    Case("product of scores and maps", product_of_scores_and_maps, "loss.form"),
    Case("teacher is compared with shares", teacher_is_compared_with_shares, "loss.form"),
    Case("shares are exchanged with outputs", shares_are_exchanged_with_outputs, "loss.form"),
    Case("weights are frequencies", weights_are_frequencies, "loss.weights"),
    Case("places are weighted by frequency", places_are_weighted_by_frequency, "loss.weights"),
    Case("one term is against the target", one_term_is_against_the_target, "loss.sign"),
    Case("one term lowers true classes", one_term_lowers_true_classes, "loss.sign"),
]
