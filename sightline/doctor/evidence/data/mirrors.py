"""Targets that contradict mirrored inputs: a fit to plain samples is asked for the mirrored ones, on other samples.

No pair of samples tells whether a number is to follow: a size rightly stays. But where mirrored inputs are like plain
ones, a number that plain inputs determine is the same function of the mirrored ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_PLAIN, _MIN_GAIN, _MAX_LACK, _MIN_CORRECTED = 0.5, 0.35, 0.25, 0.3
"""Shares of variance: what a fit explains of plain samples, what it explains less of mirrored ones as they are given,
what corrected ones may lack on average, and what it explains of each of them."""
_MAX_TOLD = 0.6
"""Share of pairs in which a fit tells the mirrored inputs from the plain ones: 3.5 deviations above the chance of 300
pairs, and 1 if all objects look to one side."""
_PENALTY = 0.02
"""Share of variance that an exchange, and a sign, must explain more than the number itself."""
_MIN_DISTINCT = 16
_MIN_DEVIATION = 0.1
"""Least scale of a feature, as a share of the root mean square of all deviations: dark corners say nothing."""
_POOLED, _CONVOLVED, _GRID = 6, 24, 3
_NUM_FILTERS, _NUM_DIRECTIONS, _FILTER, _MAX_CHANNELS = 16, 64, 5, 4


class ReducedImage(NamedTuple):
    """Numbers of an image: it at up to 6, 24 and 12 pixels a side, and what tells left from right as it is."""

    coarse: Tensor
    middle: Tensor
    small: Tensor
    details: Tensor


class ReducedCloud(NamedTuple):
    """Numbers of a cloud: moments, means and extremes."""

    moments: Tensor


class InputReducer:
    """Reducer of images (C, H, W) and clouds (N, D) to few numbers each: hundreds are compared."""

    def __init__(self) -> None:
        self._mean = self._deviation = 0.0

    def reduce(self, inputs: Tensor) -> Reduced:
        """Return what is compared of an image or a cloud; mean and deviation are those of the first image with any."""
        if inputs.ndim == 2:
            return ReducedCloud(_describe_cloud(inputs))
        image = inputs[:_MAX_CHANNELS]
        if not self._deviation:
            self._mean, self._deviation = float(image.mean()), float(image.std())
        stride = max(1, min(image.shape[1:]) // _CONVOLVED)
        details = _convolve(image[None], self._mean, self._deviation, stride=stride)[0]
        coarse, middle, small = (_pool(image, side) for side in (_POOLED, _CONVOLVED, _CONVOLVED // 2))
        return ReducedImage(coarse, middle, small, details)


Reduced = ReducedImage | ReducedCloud


class MirroredSamples(NamedTuple):
    """Reduced inputs of samples, plain and mirrored, and both targets (S, K) in float64."""

    plain_inputs: Sequence[Reduced]
    mirrored_inputs: Sequence[Reduced]
    plain: Tensor
    mirrored: Tensor


class Correction(NamedTuple):
    """Change of mirrored targets after which they follow from their inputs, and shares of variance that are explained.

    `exchanged` are pairs of numbers of the target, `mirrored` those in whose place c - y is right.
    """

    exchanged: tuple[tuple[int, int], ...]
    mirrored: tuple[int, ...]
    plain: float
    given: float
    corrected: float


def find_correction(samples: MirroredSamples) -> Correction | None:
    """Find a correction of the mirrored targets, None if they need none or the samples do not prove one.

    A fit to half of the plain samples has to explain a number in the other half. It does not explain the number that is
    given with the mirrored inputs, and explains the corrected one; the correction is chosen in the first half, and all
    shares are those of the other. Mirrored inputs have to be like plain ones, and a fit to both has to explain the
    corrected targets better than the given ones: a network can learn both sides of an animal, if they differ.
    """
    if not bool(samples.plain.isfinite().all() and samples.mirrored.isfinite().all()):
        return None
    plain_features, mirrored_features = features = _describe_all(samples)
    spread = samples.plain.var(dim=0)
    fit = fit_ridge(_take_fitted(plain_features), _take_fitted(samples.plain))
    predicted = fit(mirrored_features)
    plain = _explain(fit(_take_held_out(plain_features)), _take_held_out(samples.plain), spread)
    given = _explain(_take_held_out(predicted), _take_held_out(samples.mirrored), spread)
    is_varied = torch.tensor([len(column.unique()) >= _MIN_DISTINCT for column in samples.plain.T])
    is_wrong = is_varied & (plain >= _MIN_PLAIN) & (given < plain - _MIN_GAIN)
    if not bool(is_wrong.any()):
        return None
    source, sign = _choose(_take_fitted(predicted), _take_fitted(samples.mirrored), spread, is_wrong)
    corrected = samples.mirrored[:, source] * sign
    corrected += torch.where(sign < 0, _take_fitted(predicted - corrected).mean(dim=0), 0.0)
    restored = _explain(_take_held_out(predicted), _take_held_out(corrected), spread)
    is_better = (restored >= given + _MIN_GAIN) & (restored >= _MIN_CORRECTED)
    is_harmless = restored >= given - _PENALTY  # the other one of a pair may not be explained before or after
    is_pair = source[source] == torch.arange(len(source))
    if not bool((is_pair & torch.where(is_wrong, is_better, is_harmless)).all()):
        return None
    if float((plain - restored)[is_wrong].mean()) > _MAX_LACK or _tell_apart(samples, features) > _MAX_TOLD:
        return None
    both = [_explain_both(samples.plain, targets, features)[is_wrong] for targets in (samples.mirrored, corrected)]
    if float((both[1] - both[0]).mean()) < _MIN_GAIN:
        return None
    pairs = ((place, int(other)) for place, other in enumerate(source) if place < int(other))
    mirrored = tuple(place for place, factor in enumerate(sign) if float(factor) < 0)
    return Correction(tuple(pairs), mirrored, *(float(each[is_wrong].mean()) for each in (plain, given, restored)))


def _take_fitted(values: Tensor) -> Tensor:
    return values[::2]


def _take_held_out(values: Tensor) -> Tensor:
    return values[1::2]


def _explain(predicted: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    """Compute the share of the plain targets' variance that predictions explain, for each number."""
    return 1 - (predicted - target).square().mean(dim=0) / spread.clamp(min=1e-12)


def _choose(predicted: Tensor, target: Tensor, spread: Tensor, is_wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Choose for each wrong number that of the target which the predictions explain best, and its sign.

    What is exchanged with a number that is not wrong is exchanged there, too.
    """
    turned = (_centre(predicted)[:, :, None] + _centre(target)[:, None]).square().mean(dim=0)
    same = (predicted[:, :, None] - target[:, None]).square().mean(dim=0)
    scores = 1 - torch.stack([same, turned]) / spread.clamp(min=1e-12)[:, None]
    scores[1] -= _PENALTY
    scores -= _PENALTY * (1 - torch.eye(len(spread)))
    best = scores.movedim(0, -1).flatten(1).argmax(dim=1)
    source, sign = torch.arange(len(spread)), torch.ones_like(spread)
    for place in is_wrong.nonzero().flatten().tolist():
        other = int(best[place]) // 2
        source[place], sign[place] = other, 1 - 2 * (best[place] % 2)
        if not is_wrong[other]:
            source[other], sign[other] = place, sign[place]
    return source, sign


def _centre(values: Tensor) -> Tensor:
    return values - values.mean(dim=0)


def _tell_apart(samples: MirroredSamples, features: Sequence[Tensor]) -> float:
    """Compute the share of pairs in which a fit to the others tells which inputs are mirrored; chance is 0.5.

    The fit reads differences within pairs, in which most of what samples differ by is gone.
    """
    plain, mirrored = (
        torch.cat([each, *_describe_details(inputs)], dim=1) for each, inputs in zip(features, samples[:2], strict=True)
    )
    gaps, sides = plain - mirrored, torch.ones(len(plain), 1, dtype=plain.dtype)
    shares = [
        (fit_ridge(torch.cat([seen(gaps), -seen(gaps)]), torch.cat([seen(sides), -seen(sides)]))(other(gaps)) > 0)
        for seen, other in ((_take_fitted, _take_held_out), (_take_held_out, _take_fitted))
    ]
    return float(torch.cat(shares).double().mean())


def _explain_both(plain: Tensor, mirrored: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Compute the share that a fit to plain and mirrored samples explains in others of both."""
    rows, targets = torch.cat([*features], dim=1).view(2 * len(plain), -1), torch.stack([plain, mirrored], dim=1)
    rows, targets = (each.view(len(plain), 2, -1) for each in (rows, targets))
    fit = fit_ridge(_take_fitted(rows).flatten(0, 1), _take_fitted(targets).flatten(0, 1))
    return _explain(fit(_take_held_out(rows).flatten(0, 1)), _take_held_out(targets).flatten(0, 1), plain.var(dim=0))


def fit_ridge(features: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit targets (S, K) linearly to features (S, P), with the penalty of the best generalised cross-validation."""
    mean, deviation = features.mean(dim=0), features.std(dim=0)
    scale = deviation.clamp(min=_MIN_DEVIATION * float(deviation.square().mean().sqrt()) + 1e-12)
    middle, size = targets.mean(dim=0), targets.std(dim=0).clamp(min=1e-12)
    rows, wanted = (features - mean) / scale, (targets - middle) / size
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    along = left.T @ wanted
    rest = wanted.square().sum() - along.square().sum()
    least, weights = torch.inf, torch.zeros(rows.shape[1], targets.shape[1], dtype=rows.dtype)
    for penalty in torch.logspace(-4, 1, 11, dtype=rows.dtype) * len(rows):
        kept = values.square() / (values.square() + penalty)
        error = (rest + ((1 - kept)[:, None] * along).square().sum()) / (1 - kept.sum() / len(rows)).square()
        if float(error) < least:
            least, weights = float(error), right.T @ ((kept / values.clamp(min=1e-12))[:, None] * along)
    return lambda others: (others - mean) / scale @ weights * size + middle


# --- features ---------------------------------------------------------------------------------------------------------


def _describe_all(samples: MirroredSamples) -> tuple[Tensor, Tensor]:
    plain, mirrored = map(_describe, samples[:2])
    if isinstance(samples.plain_inputs[0], ReducedImage):
        return plain, mirrored
    deviation = plain.std(dim=0)  # moments have units of their own
    deviation = deviation.clamp(min=1e-6 * float(deviation.max()) + 1e-12)
    return plain / deviation, mirrored / deviation


def _describe(inputs: Sequence[Reduced]) -> Tensor:
    images = [each for each in inputs if isinstance(each, ReducedImage)]
    if not images:
        return torch.stack([each.moments for each in inputs if isinstance(each, ReducedCloud)])
    coarse, middle = (torch.stack([image[place] for image in images]) for place in (0, 1))
    return torch.cat([coarse.flatten(1).double(), _convolve_alike(middle)], dim=1)


def _describe_details(inputs: Sequence[Reduced]) -> list[Tensor]:
    """Describe images at half the size, and as they are at a part of their places: what may tell left from right."""
    images = [each for each in inputs if isinstance(each, ReducedImage)]
    if not images:
        return []
    small, details = (torch.stack([image[place] for image in images]) for place in (2, 3))
    return [_convolve_alike(small), details]


def _pool(image: Tensor, side: int) -> Tensor:
    """Return an image of at most this side."""
    return F.adaptive_avg_pool2d(image, (min(side, image.shape[1]), min(side, image.shape[2])))


def _convolve_alike(images: Tensor) -> Tensor:
    return _convolve(images, float(images.mean()), float(images.std()))


def _convolve(images: Tensor, mean: float, deviation: float, *, stride: int = 1) -> Tensor:
    """Return means of random convolutions on a coarse grid, which tell left from right at any place."""
    weight = _draw_weights(_NUM_FILTERS, images.shape[1], _FILTER, _FILTER)
    weight = weight / max(deviation, 1e-12)
    if min(images.shape[2:]) < _FILTER:
        images = F.pad(images, [max(0, _FILTER - size) for size in images.shape[:1:-1] for _ in range(2)])
    maps = F.conv2d(images, weight, -mean * weight.sum(dim=(1, 2, 3)), stride=stride).relu()  # of (images - mean)
    return F.adaptive_avg_pool2d(maps, _GRID).flatten(1).double()


def _describe_cloud(cloud: Tensor) -> Tensor:
    """Return the moments of a cloud up to the third, and means and extremes along random directions."""
    points = cloud[:, :3].double()
    mean = points.mean(dim=0)
    centred = points - mean
    products = [
        centred[:, list(axes)].prod(dim=1).mean()
        for order in (2, 3)
        for axes in itertools.combinations_with_replacement(range(points.shape[1]), order)
    ]
    along = points @ _draw_weights(points.shape[1], _NUM_DIRECTIONS).double()
    return torch.cat([mean, torch.stack(products), along.relu().mean(dim=0), along.amax(dim=0)])


def _draw_weights(*shape: int) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return weight / weight[0].norm()
