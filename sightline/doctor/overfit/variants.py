"""The same samples fitted by variants of a recipe: which switch helps, and whether a small network does as well."""

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
    """A recipe under some overrides, and how it fitted the samples; `followed` where its config expects anything."""

    overrides: tuple[str, ...]
    parameters: int
    result: FitResult
    followed: LayerTrace | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether it fitted the samples, and met what its config expects on the way."""
        return self.result.is_fitted and (self.followed is None or all(each.is_met for each in self.followed.met))

    @property
    def name(self) -> str:
        return " ".join(self.overrides)


def parse_variants(varied: Sequence[str]) -> list[tuple[str, ...]]:
    """The cross product of `key=value,value`, as overrides. Commas within brackets belong to a value.

    Raises UserError for one that names no values.
    """
    each: list[list[str]] = []
    for text in varied:
        key, equals, values = text.partition("=")
        found = split_values(values)
        if not equals or not key or not all(found):
            raise UserError(f"--vary {text}: give key=value,value, as --vary model.shortcuts=true,false")
        each.append([f"{key}={value}" for value in found])
    keys = [text.partition("=")[0] for text in varied]
    if len(set(keys)) < len(keys):
        raise UserError(f"--vary {varied[-1]}: the key is varied twice; name all its values at once")
    return [tuple(chosen) for chosen in itertools.product(*each)]


def fit_variants(
    variants: Iterable[tuple[tuple[str, ...], Callable[[], TrainingSetup]]],
    asked: FitOptions,
    note: Callable[[str], None],
) -> list[FittedVariant]:
    """Fit every variant with its own optimiser, from the same seed and on the same samples.

    Raises UserError where a variant trains on other samples than the first one.
    """
    found: list[FittedVariant] = []
    for overrides, build in variants:
        note(f"variant {' '.join(overrides)}")
        built = build()
        result = fit_one(built, asked, note)
        if found and result.samples.indices != found[0].result.samples.indices:
            if len(result.samples.indices) != len(found[0].result.samples.indices):
                raise UserError("--vary: variants need different numbers of samples; give --samples")
            raise UserError(f"--vary: {' '.join(overrides)} changes which samples are fitted; vary something else")
        parameters = sum(weight_sizes(built.job.model).values())
        followed = trace_fit(built, asked) if built.config.expect and result.probe is not None else None
        found.append(FittedVariant(overrides, parameters, result, followed))
    return found
