"""`sightline fit-one`: a few samples over-fitted by several optimisers, the cause where that fails, and the ladder."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.config import RunConfig
from sightline.doctor.overfit.fit_attempt import SHARES, FitCurve
from sightline.doctor.overfit.fit_one import FitOptions, FitResult, Kept, result_document
from sightline.doctor.overfit.fit_one import fit_one as fit
from sightline.doctor.overfit.layer_trace import ExpectationResult, LayerTrace, followed_document, trace_fit
from sightline.doctor.overfit.layers import ModelSnapshot
from sightline.doctor.overfit.optimizer_grid import OptimizerResult
from sightline.doctor.overfit.pictures import draw_curves, draw_verdicts
from sightline.doctor.overfit.sample_ladder import parse_rungs, run_ladder, rung_document
from sightline.doctor.overfit.variants import FittedVariant, fit_variants, parse_variants
from sightline.engine.build import build
from sightline.engine.distributed import World, start_world
from sightline.errors import UserError
from sightline.schema import suggest
from sightline.verbs.common import assert_writable, load_config, reread, write_document, write_file
from sightline.verbs.output import print_note, show_findings, show_table

__all__ = ["FitOneOptions", "fit_one"]

NAME = "fit_one"
_STEPS = tuple(f"steps to {share:g}" for share in SHARES)
_COLUMNS = ("optimiser", "numbers", "fitted", "best rate", *_STEPS, "lowest")
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class FitOneOptions:
    """What the command line asked for."""

    config: Path
    overrides: tuple[str, ...] = ()
    samples: int | None = None
    steps: int = 100
    keep: str = ""
    grow: str | None = None
    vary: tuple[str, ...] = ()
    trace: bool = False
    brief: bool = False
    out: Path | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    json: Path | None = None


def fit_one(options: FitOneOptions) -> int:
    """Fit a few samples, or climb, or compare; the exit code."""
    asked = FitOptions(options.samples, options.steps, _kept(options.keep), is_brief=options.brief)
    if options.out is not None:
        assert_writable(options.out / f"{NAME}.json", option="--out")
    if options.grow is not None and (options.vary or options.trace or options.samples is not None):
        raise UserError("--grow climbs by itself; leave --vary, --trace and --samples out")
    if options.vary and options.trace:
        raise UserError("--trace follows one recipe; leave --vary out, and give the variant as key=value")
    config, _ = load_config(options.config, options.overrides, options.plugins)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        if options.vary:
            return _vary(options, asked, world)
        if options.grow is not None:
            return _grow(options, config, asked, world)
        return _fit(options, config, asked, world)


# --- one fit ---------------------------------------------------------------------------------------------------------


def _fit(options: FitOneOptions, config: RunConfig, asked: FitOptions, world: World) -> int:
    built = build(config, world)
    result = fit(built, asked, print_note)
    followed = None
    if options.trace or config.expect:
        followed = trace_fit(built, asked) if result.probe is not None else None
    _show(config.name, config.evaluate.metric, result)
    document = result_document(result)
    failed = 0
    if followed is not None:
        failed = _show_followed(followed, with_layers=options.trace)
        document |= followed_document(followed)
    _write(options, document, draw_verdicts([v for v in (*result.verdicts, *result.further) if v.curves]))
    return 0 if result.is_fitted and not failed else 1


def _show(name: str, metric: str, result: FitResult) -> None:
    """The one cause first, where there is one; then the table, and what each part of the bisection showed."""
    show_findings(result.findings[:1], is_verbose=True)
    if result.verdicts:
        rows = [_row(verdict) for verdict in (*result.verdicts, *result.further)]
        columns = (*_COLUMNS, metric, "end")
        show_table(f"{name}: {len(result.samples.indices)} samples", columns, rows, unbroken="optimiser")
    if result.parts:
        shown = [[part.name, "guilty" if part.is_guilty else "", part.summary] for part in result.parts]
        show_table("where it is lost", ("part", "", "measured"), shown, unbroken="part")
    show_findings(result.findings[1:], is_verbose=True)
    print_note(f"{name}: {'fitted' if result.is_fitted else f'NOT FITTED, {result.cause}'}")


def _row(verdict: OptimizerResult) -> list[Any]:
    best = verdict.best
    steps = [best.steps_to(share) for share in SHARES]
    score = "" if math.isnan(best.score) else f"{best.score:.4g}"
    tried = (verdict.optimizer, verdict.precision, _yes(verdict), f"{best.rate:g}")
    return [*tried, *steps, _lowest(best), score, best.stop]


def _yes(verdict: OptimizerResult) -> str:
    if verdict.is_fitted:
        return "yes"
    return f"not at {verdict.curves[0].rate:g}" if verdict.best.is_fitted else "no"


def _lowest(curve: FitCurve) -> str:
    if math.isnan(curve.lowest):
        return ""
    return "0" if abs(curve.lowest) < _NEGLIGIBLE else f"{curve.lowest:.3g}"


def _show_followed(followed: LayerTrace, *, with_layers: bool) -> int:
    """The layers at the first and the last step where asked for, and every expectation; how many were not met."""
    if with_layers:
        _show_layers(followed.first)
        if followed.last is not None:
            _show_layers(followed.last)
    for each in followed.met:
        print_note(_met(each))
    return sum(not each.is_met for each in followed.met)


def _met(each: ExpectationResult) -> str:
    return f"{'met' if each.is_met else 'NOT MET'}: {each.line}"


def _show_layers(look: ModelSnapshot) -> None:
    columns = ("layer", "class", "shape", "mean", "std", "zeros", "gradient of output", "gradient of weights")
    rows = [
        [
            layer.path + (f" (call {layer.call})" if layer.call > 1 else ""),
            layer.class_name,
            " ".join(map(str, layer.shape)),
            f"{layer.output.mean:.3g}",
            f"{layer.output.std:.3g}",
            f"{layer.output.zeros:.1%}",
            "" if layer.output.grad_norm is None else f"{layer.output.grad_norm:.3g}",
            "" if layer.weights_grad_norm is None else f"{layer.weights_grad_norm:.3g}",
        ]
        for layer in look.layers
        if layer.is_leaf
    ]
    title = f"after {look.step} steps: loss {look.loss:.4g}, gradient {look.grad_norm:.3g}"
    show_table(title, columns, rows, unbroken="layer", droppable=("class",))


# --- the ladder and the variants -------------------------------------------------------------------------------------


def _grow(options: FitOneOptions, config: RunConfig, asked: FitOptions, world: World) -> int:
    assert options.grow is not None
    built = build(config, world)
    rungs = parse_rungs(options.grow, len(built.data.train.indices))
    if config.expect:
        print_note(f"expect: --grow does not look at its {len(config.expect)} entries; fit-one without --grow does")
    climbed, findings = run_ladder(config, world, built, rungs, asked, print_note)
    show_findings(findings[:1], is_verbose=True)
    rows = [[r.samples, "passed" if r.is_passed else "FAILED", r.rule, r.measured] for r in climbed]
    show_table(f"{config.name}: from {rungs[0]} to {rungs[-1]}", ("samples", "", "rule", "measured"), rows)
    show_findings(findings[1:], is_verbose=True)
    is_up = len(climbed) == len(rungs) and all(rung.is_passed for rung in climbed)
    document = {
        "fitted": is_up,
        "cause": findings[0].cause if findings else None,
        "grow": [rung_document(rung) for rung in climbed],
        "findings": [finding.to_dict() for finding in findings],
    }
    _write(options, document, None)
    return 0 if is_up else 1


def _vary(options: FitOneOptions, asked: FitOptions, world: World) -> int:
    chosen = parse_variants(options.vary)
    configs = [reread(options.config, [*options.overrides, *each]) for each in chosen]
    own_rate = any(text.startswith("optimizer") for text in options.vary)
    asked = dataclasses.replace(asked, is_brief=True, only_own_rate=own_rate)
    builders = [functools.partial(build, config, world) for config in configs]
    variants = fit_variants(list(zip(chosen, builders, strict=True)), asked, print_note)
    for variant in variants:
        for finding in variant.result.findings[:1]:
            print_note(f"{variant.name}: {finding.summary} [{finding.cause}]")
        for met in variant.followed.met if variant.followed is not None else ():
            print_note(f"{variant.name}: {_met(met)}")
    columns = ("variant", "parameters", "first loss", "fitted", "rate", *_STEPS, "lowest")
    show_table(f"{configs[0].name}: variants", columns, map(_variant_row, variants), unbroken="variant")
    curves = {v.name: v.result.verdicts[0].trusted_curve for v in variants if v.result.verdicts}
    _write(options, {"vary": [_variant_document(each) for each in variants]}, draw_curves(curves) if curves else None)
    return 0 if all(variant.is_fitted for variant in variants) else 1


def _variant_row(variant: FittedVariant) -> Sequence[Any]:
    if not variant.result.verdicts:
        return [variant.name, f"{variant.parameters:,}", "", "no", *[""] * 5]
    best = variant.result.verdicts[0].trusted_curve
    steps = [best.steps_to(share) for share in SHARES]
    first = f"{best.losses[0]:.4g}" if best.losses else ""
    is_fitted = "yes" if variant.result.is_fitted else "no"
    return [variant.name, f"{variant.parameters:,}", first, is_fitted, f"{best.rate:g}", *steps, _lowest(best)]


def _variant_document(variant: FittedVariant) -> Mapping[str, Any]:
    named = {"overrides": list(variant.overrides), "parameters": variant.parameters}
    followed = {} if variant.followed is None else {"expect": followed_document(variant.followed)["expect"]}
    return {**named, **result_document(variant.result), **followed}


def _kept(text: str) -> frozenset[str]:
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    known = typing.get_args(Kept)
    for word in sorted(words - set(known)):
        raise UserError(f"--keep {word}: not a valid choice{suggest(word, known)}")
    return words


def _write(options: FitOneOptions, document: Mapping[str, Any], picture: str | None) -> None:
    write_document(options.json, document)
    if options.out is not None:
        write_document(options.out / f"{NAME}.json", document)
        if picture is not None:
            write_file(options.out / f"{NAME}.svg", picture)
        print_note(f"written: {options.out / NAME}.json" + ("" if picture is None else f", {options.out / NAME}.svg"))
