"""Fits of the same samples by variants of a recipe: which option helps, and if a small network suffices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sightline.config.overrides import split_values
from sightline.doctor.overfit.fit_one import FitOptions, FitResult, fit_one
from sightline.doctor.overfit.layer_trace import LayerTrace, trace_fit
from sightline.engine.build import TrainingSetup
from sightline.errors import UserError
from sightline.layers.quantisation.parametrised import weight_sizes

__all__ = ["FittedVariant", "fit_variants", "parse_variants"]


@dataclass(frozen=True)
class FittedVariant:
    """Recipe with overrides and the result of its fit; `followed` is set if its config has expectations."""

    overrides: tuple[str, ...]
    parameters: int
    result: FitResult
    followed: LayerTrace | None = None

    @property
    def is_fitted(self) -> bool:
        """True if the variant fitted the samples and met the expectations of its config."""
        return self.result.is_fitted and (
            self.followed is None or all(expectation.is_met for expectation in self.followed.met)
        )

    @property
    def name(self) -> str:
        return " ".join(self.overrides)


def parse_variants(varied: Sequence[str]) -> list[tuple[str, ...]]:
    """Parse `key=value,value` options to the cross product of overrides. Commas in brackets belong to a value.

    Raises UserError for an option without values.
    """
    overrides_by_option: list[list[str]] = []
    for text in varied:
        key, equals, values = text.partition("=")
        split = split_values(values)
        if not equals or not key or not all(split):
            raise UserError(f"--vary {text}: give key=value,value, as --vary model.shortcuts=true,false")
        overrides_by_option.append([f"{key}={value}" for value in split])
    keys = [text.partition("=")[0] for text in varied]
    if len(set(keys)) < len(keys):
        raise UserError(f"--vary {varied[-1]}: the key is varied twice; name all its values at once")
    return [tuple(overrides) for overrides in itertools.product(*overrides_by_option)]


def fit_variants(
    variants: Iterable[tuple[tuple[str, ...], Callable[[], TrainingSetup]]],
    asked: FitOptions,
    note: Callable[[str], None],
) -> list[FittedVariant]:
    """Fit every variant with its own optimiser, from the same seed and on the same samples.

    Raises UserError if a variant trains on other samples than the first one.
    """
    fitted: list[FittedVariant] = []
    for overrides, build in variants:
        note(f"variant {' '.join(overrides)}")
        built = build()
        result = fit_one(built, asked, note)
        if fitted and result.samples.indices != fitted[0].result.samples.indices:
            if len(result.samples.indices) != len(fitted[0].result.samples.indices):
                raise UserError("--vary: variants need different numbers of samples; give --samples")
            raise UserError(f"--vary: {' '.join(overrides)} changes which samples are fitted; vary something else")
        parameters = sum(weight_sizes(built.job.model).values())
        followed = trace_fit(built, asked) if built.config.expect and result.probe is not None else None
        fitted.append(FittedVariant(overrides, parameters, result, followed))
    return fitted
