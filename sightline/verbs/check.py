"""`sightline check` and `fit-one`: all findings on a run or before it; a fit of a few samples, and why it fails."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.commands.prove import CheckOptions, FitOneOptions
from sightline.config import RunConfig
from sightline.contract.errors import UserError
from sightline.contract.schema import suggest
from sightline.engine.build import build
from sightline.engine.distributed import World, start_world
from sightline.runs.run_directory import assert_writable, write_document, write_file
from sightline.training.train_run import reread
from sightline.verbs.output import load_config, print_note, show_findings, show_progress, show_table
from sightline.workbench.check.core.examination import Examination, describe_examination
from sightline.workbench.check.suite import check_path
from sightline.workbench.fit.fit_attempt import SHARES, FitCurve
from sightline.workbench.fit.fit_one import FitOptions, FitResult, Kept, draw_curves, draw_verdicts, result_document
from sightline.workbench.fit.fit_one import fit_one as fit
from sightline.workbench.fit.layer_trace import (
    ExpectationResult,
    LayerTrace,
    ModelSnapshot,
    followed_document,
    trace_fit,
)
from sightline.workbench.fit.optimizer_grid import OptimizerResult
from sightline.workbench.fit.sample_ladder import (
    FittedVariant,
    fit_variants,
    parse_rungs,
    parse_variants,
    run_ladder,
    rung_document,
)


def check(options: CheckOptions) -> int:
    """Run all checks and show their findings; exit code 1 if any is an error (with `strict`, a warning)."""
    config = load_config(options.config, options.overrides, options.plugins)
    examination = Examination()
    with show_progress("check", lambda: examination.doing):
        findings = check_path(options.config, config, device=options.device, deep=options.deep, examination=examination)
    document = examination.to_dict()
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
    for finding in findings:
        if isinstance(table := finding.evidence.get("table"), Mapping) and {"title", "columns", "rows"} <= set(table):
            show_table(table["title"], table["columns"], table["rows"], unbroken="first")
    show_findings(findings, is_verbose=options.verbose)
    print_note("\n".join(describe_examination(document, is_verbose=options.verbose)))
    print_note(f"{config.name}: {errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    counts = {"errors": errors, "warnings": warnings}
    write_document(
        options.json, {"findings": [finding.to_dict() for finding in findings], **counts, "examination": document}
    )
    return 1 if errors or (options.strict and warnings) else 0


# --- fit-one ---------------------------------------------------------------------------------------------------------

NAME = "fit_one"
_STEPS = tuple(f"steps to {share:g}" for share in SHARES)
_COLUMNS = ("optimiser", "numbers", "fitted", "best rate", *_STEPS, "lowest")
_NEGLIGIBLE = 1e-6


def fit_one(options: FitOneOptions) -> int:
    """Fit a few samples, ever more samples (`--grow`), or variants (`--vary`); return the exit code."""
    fit_options = FitOptions(options.samples, options.steps, _parse_keep(options.keep), is_brief=options.brief)
    if options.out is not None:
        assert_writable(options.out / f"{NAME}.json", option="--out")
    if options.grow is not None and (options.vary or options.trace or options.samples is not None):
        raise UserError("--grow chooses the numbers of samples itself; leave out --vary, --trace and --samples")
    if options.vary and options.trace:
        raise UserError("--trace works on one config; leave out --vary, and give the variant as key=value")
    config = load_config(options.config, options.overrides, options.plugins)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        if options.vary:
            return _vary(options, fit_options, world)
        if options.grow is not None:
            return _grow(options, config, fit_options, world)
        return _fit(options, config, fit_options, world)


# --- one fit ---------------------------------------------------------------------------------------------------------


def _fit(options: FitOneOptions, config: RunConfig, fit_options: FitOptions, world: World) -> int:
    built = build(config, world)
    result = fit(built, fit_options, print_note)
    trace = None
    if options.trace or config.expect:
        trace = trace_fit(built, fit_options) if result.probe is not None else None
    _show(config.name, config.evaluate.metric, result)
    document = result_document(result)
    failed = 0
    if trace is not None:
        failed = _show_trace(trace, with_layers=options.trace)
        document |= followed_document(trace)
    _write(options, document, draw_verdicts([v for v in (*result.verdicts, *result.further) if v.curves]))
    return 0 if result.is_fitted and not failed else 1


def _show(name: str, metric: str, result: FitResult) -> None:
    """Print the cause first if there is one, then the table, and the result of each part of the bisection."""
    show_findings(result.findings[:1], is_verbose=True)
    if result.verdicts:
        rows = [_optimizer_row(verdict) for verdict in (*result.verdicts, *result.further)]
        columns = (*_COLUMNS, metric, "end")
        show_table(f"{name}: {len(result.samples.indices)} samples", columns, rows, unbroken="optimiser")
    if result.parts:
        shown = [[part.name, "guilty" if part.is_guilty else "", part.summary] for part in result.parts]
        show_table("where it is lost", ("part", "", "measured"), shown, unbroken="part")
    show_findings(result.findings[1:], is_verbose=True)
    print_note(f"{name}: {'fitted' if result.is_fitted else f'NOT FITTED, {result.cause}'}")


def _optimizer_row(verdict: OptimizerResult) -> list[Any]:
    best = verdict.best
    steps = [best.steps_to(share) for share in SHARES]
    score = "" if math.isnan(best.score) else f"{best.score:.4g}"
    tried = (verdict.optimizer, verdict.precision, _fitted_cell(verdict), f"{best.rate:g}")
    return [*tried, *steps, _lowest_loss(best), score, best.stop]


def _fitted_cell(verdict: OptimizerResult) -> str:
    if verdict.is_fitted:
        return "yes"
    return f"not at {verdict.curves[0].rate:g}" if verdict.best.is_fitted else "no"


def _lowest_loss(curve: FitCurve) -> str:
    if math.isnan(curve.lowest):
        return ""
    return "0" if abs(curve.lowest) < _NEGLIGIBLE else f"{curve.lowest:.3g}"


def _show_trace(trace: LayerTrace, *, with_layers: bool) -> int:
    """Print the layers at the first and last step if requested, and every expectation; return how many were not met."""
    if with_layers:
        _show_layers(trace.first)
        if trace.last is not None:
            _show_layers(trace.last)
    for expectation in trace.met:
        print_note(_expectation_line(expectation))
    return sum(not expectation.is_met for expectation in trace.met)


def _expectation_line(expectation: ExpectationResult) -> str:
    return f"{'met' if expectation.is_met else 'NOT MET'}: {expectation.line}"


def _show_layers(snapshot: ModelSnapshot) -> None:
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
        for layer in snapshot.layers
        if layer.is_leaf
    ]
    title = f"after {snapshot.step} steps: loss {snapshot.loss:.4g}, gradient {snapshot.grad_norm:.3g}"
    show_table(title, columns, rows, unbroken="layer", droppable=("class",))


# --- the ladder and the variants -------------------------------------------------------------------------------------


def _grow(options: FitOneOptions, config: RunConfig, fit_options: FitOptions, world: World) -> int:
    assert options.grow is not None
    built = build(config, world)
    rungs = parse_rungs(options.grow, len(built.data.train.indices))
    if config.expect:
        print_note(f"expect: --grow does not check its {len(config.expect)} entries; fit-one without --grow does")
    results, findings = run_ladder(config, world, built, rungs, fit_options, print_note)
    show_findings(findings[:1], is_verbose=True)
    rows = [[r.samples, "passed" if r.is_passed else "FAILED", r.rule, r.measured] for r in results]
    show_table(f"{config.name}: from {rungs[0]} to {rungs[-1]}", ("samples", "", "rule", "measured"), rows)
    show_findings(findings[1:], is_verbose=True)
    is_passed = len(results) == len(rungs) and all(rung.is_passed for rung in results)
    document = {
        "fitted": is_passed,
        "cause": findings[0].cause if findings else None,
        "grow": [rung_document(rung) for rung in results],
        "findings": [finding.to_dict() for finding in findings],
    }
    _write(options, document, None)
    return 0 if is_passed else 1


def _vary(options: FitOneOptions, fit_options: FitOptions, world: World) -> int:
    variant_overrides = parse_variants(options.vary)
    configs = [reread(options.config, [*options.overrides, *extra]) for extra in variant_overrides]
    varies_optimizer = any(text.startswith("optimizer") for text in options.vary)
    fit_options = dataclasses.replace(fit_options, is_brief=True, only_own_rate=varies_optimizer)
    builders = [functools.partial(build, config, world) for config in configs]
    variants = fit_variants(list(zip(variant_overrides, builders, strict=True)), fit_options, print_note)
    for variant in variants:
        for finding in variant.result.findings[:1]:
            print_note(f"{variant.name}: {finding.summary} [{finding.cause}]")
        for expectation in variant.followed.met if variant.followed is not None else ():
            print_note(f"{variant.name}: {_expectation_line(expectation)}")
    columns = ("variant", "parameters", "first loss", "fitted", "rate", *_STEPS, "lowest")
    show_table(f"{configs[0].name}: variants", columns, map(_variant_row, variants), unbroken="variant")
    curves = {v.name: v.result.verdicts[0].trusted_curve for v in variants if v.result.verdicts}
    _write(
        options, {"vary": [_variant_document(variant) for variant in variants]}, draw_curves(curves) if curves else None
    )
    return 0 if all(variant.is_fitted for variant in variants) else 1


def _variant_row(variant: FittedVariant) -> Sequence[Any]:
    if not variant.result.verdicts:
        return [variant.name, f"{variant.parameters:,}", "", "no", *[""] * 5]
    best = variant.result.verdicts[0].trusted_curve
    steps = [best.steps_to(share) for share in SHARES]
    first = f"{best.losses[0]:.4g}" if best.losses else ""
    is_fitted = "yes" if variant.result.is_fitted else "no"
    return [variant.name, f"{variant.parameters:,}", first, is_fitted, f"{best.rate:g}", *steps, _lowest_loss(best)]


def _variant_document(variant: FittedVariant) -> Mapping[str, Any]:
    named = {"overrides": list(variant.overrides), "parameters": variant.parameters}
    followed = {} if variant.followed is None else {"expect": followed_document(variant.followed)["expect"]}
    return {**named, **result_document(variant.result), **followed}


def _parse_keep(text: str) -> frozenset[str]:
    chosen = frozenset(word.strip() for word in text.split(",") if word.strip())
    valid_names = typing.get_args(Kept)
    for word in sorted(chosen - set(valid_names)):
        raise UserError(f"--keep {word}: not a valid choice{suggest(word, valid_names)}")
    return chosen


def _write(options: FitOneOptions, document: Mapping[str, Any], picture: str | None) -> None:
    write_document(options.json, document)
    if options.out is not None:
        write_document(options.out / f"{NAME}.json", document)
        if picture is not None:
            write_file(options.out / f"{NAME}.svg", picture)
        print_note(f"written: {options.out / NAME}.json" + ("" if picture is None else f", {options.out / NAME}.svg"))
