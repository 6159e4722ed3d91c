"""A first mean squared error that does not follow from the sizes of outputs and targets."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.squares import SquaredErrorLoss

__all__ = ["expected_mean_square", "initial_squares"]

_MIN_SHARE = 0.5
_MAX_RATIO = 2.0


@check("G20", "initial-squares", "preflight", severity="warning")
def initial_squares(context: Context) -> list[Finding]:
    """The first mean squared error is E o^2 + E t^2 - 2 E o E t, nearly: fresh outputs do not depend on the targets.

    Finds: A first mean squared error that does not follow from the sizes of outputs and targets.

    It is also at most twice the loss of predicting 0: fresh outputs are not much larger than the targets.
    """
    if context.config.init is not None or context.built.job.step > 0:
        return []
    findings = []
    for name, squares in context.squared_losses.items():
        if squares.zero > 0:
            findings += _size_findings(context, name, squares)
    return findings


def expected_mean_square(squares: SquaredErrorLoss) -> float:
    """Compute the first mean squared error from the sizes of outputs and targets, as if they were independent."""
    total = float(squares.weight.sum())
    size = float((squares.weight * squares.output.square()).sum()) / squares.count
    mean_output = float((squares.weight * squares.output).sum()) / total
    return size + squares.zero - 2 * mean_output * squares.middle * squares.factor


def _size_findings(context: Context, name: str, squares: SquaredErrorLoss) -> list[Finding]:
    measured, expected = squares.mean(squares.output), expected_mean_square(squares)
    size = measured / squares.zero
    description = f"{measured:.4e} = {size:.4g} times {squares.zero:.4e}, the loss of predicting 0"
    if measured < _MIN_SHARE * expected:
        return [
            _finding_warning(
                context,
                name,
                f"the untrained model is far nearer to the targets of '{name}' than the size of its outputs allows",
                description,
                f"{expected:.4e} = E o^2 + E t^2 - 2 E o E t, within a tenth for outputs independent of the target",
                ("data.label_leak", "model.structure"),
                "look for the target among the inputs",
            )
        ]
    if size > _MAX_RATIO:
        return [
            _finding_warning(
                context,
                name,
                f"the untrained model predicts values far larger than the targets of '{name}'",
                description,
                f"at most {_MAX_RATIO:g} times; 1.0 to 1.1 for heat maps",
                ("model.init", "data.target_encoding", "data.normalisation"),
                "start the last layer smaller, as the paper does, or bring the targets to size 1",
            )
        ]
    return []


def _finding_warning(
    context: Context, name: str, summary: str, measured: str, expected: str, causes: tuple[str, ...], action: str
) -> Finding:
    return initial_squares.finding(
        context,
        summary,
        causes=causes,
        at=context.loss_path(name),
        measured=measured,
        expected=expected,
        action=action,
    )
