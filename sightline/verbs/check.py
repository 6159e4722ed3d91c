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
from sightline.config.overrides import parse_variants
from sightline.contract.errors import UserError
from sightline.contract.schema import suggest
from sightline.engine.build import build
from sightline.engine.distributed import World, start_world
from sightline.parts.quantisation.parametrised import weight_sizes
from sightline.runs.run_directory import assert_writable, write_document, write_file
from sightline.training.train_run import reread
from sightline.verbs.output import load_config, print_note, show_findings, show_progress, show_table
from sightline.workbench.check.examination import RunExamination, describe_examination
from sightline.workbench.check.suite import check_path
from sightline.workbench.fit.attempt import SHARES, FitCurve
from sightline.workbench.fit.fit_one import FitOptions, FitResult, Kept, draw_curves, fit_variants
from sightline.workbench.fit.fit_one import fit_one as fit
from sightline.workbench.fit.layer_trace import (
    ExpectationResult,
    LayerTrace,
    ModelSnapshot,
    followed_document,
    trace_fit,
)


def check(options: CheckOptions) -> int:
    """Run all checks and show their findings; exit code 1 if any is an error (with `strict`, a warning)."""
    config = load_config(options.config, options.overrides, options.plugins)
    examination = RunExamination()
    with show_progress("check", lambda: examination.doing):
        findings = check_path(options.config, config, device=options.device, deep=options.deep, examination=examination)
    document = examination.to_dict()
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
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


def fit_one(options: FitOneOptions) -> int:
    """Fit a few samples, or variants (`--vary`); return the exit code."""
    fit_options = FitOptions(options.samples, options.steps, _parse_keep(options.keep), options.seconds)
    if options.out is not None:
        assert_writable(options.out / f"{NAME}.json", option="--out")
    if options.vary and options.trace:
        raise UserError("--trace works on one config; leave out --vary, and give the variant as key=value")
    config = load_config(options.config, options.overrides, options.plugins)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        if options.vary:
            return _vary(options, fit_options, world)
        return _fit(options, config, fit_options, world)


# --- one fit ---------------------------------------------------------------------------------------------------------


def _fit(options: FitOneOptions, config: RunConfig, fit_options: FitOptions, world: World) -> int:
    built = build(config, world)
    result = fit(built, fit_options, print_note)
    trace = trace_fit(built, fit_options) if (options.trace or config.expect) and result.bounds is not None else None
    _show(config.name, config.evaluate.metric, result)
    document, failed = result.to_dict(), 0
    if trace is not None:
        failed = _show_trace(trace, with_layers=options.trace)
        document |= followed_document(trace)
    curves = {f"{curve.optimizer} {curve.rate:g}": curve for curve in result.attempts if curve.losses}
    _write(options, document, draw_curves(curves) if curves else None)
    return 0 if result.is_fitted and not failed else 1


def _show(name: str, metric: str, result: FitResult) -> None:
    """Print the likeliest cause first if there is one, then the table, and what is left to say."""
    show_findings(result.findings[:1], is_verbose=True)
    if result.attempts:
        columns = ("optimiser", "rate", "fitted", *_STEPS, "lowest", metric, "end")
        rows = [_attempt_row(curve) for curve in result.attempts]
        show_table(f"{name}: {len(result.samples.indices)} samples", columns, rows, unbroken="optimiser")
    show_findings(result.findings[1:], is_verbose=True)
    for line in result.verdict:
        print_note(line)
    print_note(f"{name}: {'fitted' if result.is_fitted else f'NOT FITTED, {result.cause}'}{_compare(result)}")


def _attempt_row(curve: FitCurve) -> list[Any]:
    score = "" if math.isnan(curve.score) else f"{curve.score:.4g}"
    steps = [curve.steps_to(share) for share in SHARES]
    is_fitted = "yes" if curve.is_fitted else "no"
    return [curve.optimizer, f"{curve.rate:g}", is_fitted, *steps, _lowest_loss(curve), score, curve.stop]


def _lowest_loss(curve: FitCurve) -> str:
    return f"{min(curve.losses):.4g}" if curve.losses else ""


def _compare(result: FitResult) -> str:
    """State the lowest loss beside that of constants and the lowest of any outputs."""
    bounds, best = result.bounds, result.best
    if bounds is None or bounds.floor is None or best is None or not best.losses:
        return ""
    others = f"the best constants {bounds.constant:.4g}, the best outputs {bounds.floor:.4g}"
    return f"; lowest loss {_lowest_loss(best)}, {others}"


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


# --- the variants ----------------------------------------------------------------------------------------------------


def _vary(options: FitOneOptions, fit_options: FitOptions, world: World) -> int:
    overrides = parse_variants(options.vary)
    configs = {" ".join(extra): reread(options.config, [*options.overrides, *extra]) for extra in overrides}
    varies_optimizer = any(text.startswith("optimizer") for text in options.vary)
    fit_options = dataclasses.replace(fit_options, only_own_rate=varies_optimizer)
    builders = [(name, functools.partial(build, config, world)) for name, config in configs.items()]
    rows, documents, passed = [], [], []
    curves: dict[str, FitCurve] = {}
    for name, extra, (built, result) in zip(
        configs, overrides, fit_variants(builders, fit_options, print_note), strict=True
    ):
        for finding in () if result.is_fitted else result.findings[:1]:
            print_note(f"{name}: {finding.summary} [{finding.cause}]")
        trace = trace_fit(built, fit_options) if built.config.expect and result.bounds is not None else None
        for expectation in trace.met if trace is not None else ():
            print_note(f"{name}: {_expectation_line(expectation)}")
        size = sum(weight_sizes(built.job.model).values())
        rows.append(_variant_row(name, size, result))
        followed = {} if trace is None else {"expect": followed_document(trace)["expect"]}
        documents.append({"overrides": list(extra), "parameters": size, **result.to_dict(), **followed})
        curves |= {name: result.best} if result.best is not None else {}
        passed.append(result.is_fitted and (trace is None or all(each.is_met for each in trace.met)))
    columns = ("variant", "parameters", "first loss", "fitted", "rate", *_STEPS, "lowest")
    show_table(f"{next(iter(configs.values())).name}: variants", columns, rows, unbroken="variant")
    _write(options, {"vary": documents}, draw_curves(curves) if curves else None)
    return 0 if all(passed) else 1


def _variant_row(name: str, size: int, result: FitResult) -> Sequence[Any]:
    best, is_fitted = result.best, "yes" if result.is_fitted else "no"
    if best is None:
        return [name, f"{size:,}", "", is_fitted, *[""] * 5]
    first = f"{best.losses[0]:.4g}" if best.losses else ""
    steps = [best.steps_to(share) for share in SHARES]
    return [name, f"{size:,}", first, is_fitted, f"{best.rate:g}", *steps, _lowest_loss(best)]


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
