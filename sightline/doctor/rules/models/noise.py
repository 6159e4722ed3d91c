"""Rule: a KL penalty on learnt noise must use the variance, not another power of the scale."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.doctor.evidence.models.noise import ScalePull
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_EXACT, _APART = 1e-4, 10.0
"""Error of a fit up to which it is exact, and times as large that of a square at least."""
_SQUARE = 2.0
_POWERS = {0.5: "the square root of its scale", 1.0: "its scale", 4.0: "the fourth power of its scale"}


@rule(
    "loss-form",
    "warning",
    "loss.form model.structure",
    holds="a divergence of normal noise from its prior grows with the square of the noise's scale, its variance",
    do="take exp(2 * log_scale) for the variance of noise of scale exp(log_scale), and exp(log_variance / 2) for the "
    "scale of a log_variance; or use torch.distributions.kl_divergence",
)
def variance_of_noise(scale_pulls: list[ScalePull]) -> Iterator[Fault]:
    """Find a penalty that is a divergence but for the power of the scale that it takes for the variance."""
    for pull in scale_pulls:
        error = pull.errors[pull.power]
        if pull.power == _SQUARE or not pull.least or error > _EXACT or pull.errors[_SQUARE] < _APART * error:
            continue
        words = _POWERS[pull.power]
        name = f" of '{pull.layer}'" if pull.layer else ""
        yield Fault(
            f"the divergence (KL) of the noise{name} takes {words} for its variance",
            measured=f"at scales from {pull.smallest:.3g} to {pull.largest:.3g} the slope of the penalty over their "
            f"logarithm is a·scale^{pull.power:g} - b to {error:.1g} of its range (with the square to "
            f"{pull.errors[_SQUARE]:.1g}); it is 0 at a scale of {pull.least:.3g}",
            where=FindingLocation(layer=pull.layer or None),
        )
