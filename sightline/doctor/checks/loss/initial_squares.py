"""A first mean square that does not follow from the sizes of outputs and targets."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.squares import SquaredErrorLoss

__all__ = ["expected_mean_square", "initial_squares"]

_LEAST = 0.5
_MOST = 2.0


@check("G20", "initial-squares", "preflight", severity="warning")
def initial_squares(context: Context) -> list[Finding]:
    """The output of a fresh model does not depend on the target: E(o - t)^2 = E o^2 + E t^2 - 2 E o E t, nearly.

    And its outputs are no larger than the targets: else the first loss is far above that of predicting 0.
    """
    if context.config.init is not None or context.built.job.step > 0:
        return []
    found = []
    for name, squares in context.squared_losses.items():
        if squares.zero > 0:
            found += _of(context, name, squares)
    return found


def expected_mean_square(squares: SquaredErrorLoss) -> float:
    """The first mean square, by the sizes of outputs and targets alone."""
    total = float(squares.weight.sum())
    size = float((squares.weight * squares.output.square()).sum()) / squares.count
    middle = float((squares.weight * squares.output).sum()) / total
    return size + squares.zero - 2 * middle * squares.middle * squares.factor


def _of(context: Context, name: str, squares: SquaredErrorLoss) -> list[Finding]:
    measured, expected = squares.mean(squares.output), expected_mean_square(squares)
    size = measured / squares.zero
    shown = f"{measured:.4e} = {size:.4g} times {squares.zero:.4e}, the loss of predicting 0"
    if measured < _LEAST * expected:
        return [
            _warning(
                context,
                name,
                f"the untrained model is far nearer to the targets of '{name}' than the size of its outputs allows",
                shown,
                f"{expected:.4e} = E o^2 + E t^2 - 2 E o E t, within a tenth for outputs independent of the target",
                ("data.label_leak", "model.structure"),
                "look for the target among the inputs",
            )
        ]
    if size > _MOST:
        return [
            _warning(
                context,
                name,
                f"the untrained model predicts values far larger than the targets of '{name}'",
                shown,
                f"at most {_MOST:g} times; 1.0 to 1.1 for heat maps",
                ("model.init", "data.target_encoding", "data.normalisation"),
                "start the last layer smaller, as the paper does, or bring the targets to size 1",
            )
        ]
    return []


def _warning(
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
