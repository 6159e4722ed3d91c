"""`sightline probe`: evaluate a run's frozen features against chance and random weights; a suite of several runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sightline.commands.prove import ProbeOptions
from sightline.engine.device import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.launcher import launch, resolve_num_processes
from sightline.errors import UserError
from sightline.plugins import load_plugins
from sightline.probe.classifiers import Probe, assert_fits, build_probe, split_words
from sightline.probe.measure import Comparison, compare_with_baselines
from sightline.probe.probed_run import CACHE, FeatureComparison, ProbedRun, extract_with_random_baselines, open_probed
from sightline.runs.run_directory import assert_writable, load_document, write_document, write_file
from sightline.studies.probe_suite import NAME, ProbeSuite, SuiteRequest, check_input_scale
from sightline.verbs.output import print_note, show_table
from sightline.verbs.train import TerminalReporter


def probe(options: ProbeOptions) -> int:
    """Extract features once, train a probe on those of the training split, and score it on the test split."""
    if options.is_suite:
        return suite(options)
    if options.finetune is not None:
        raise UserError("--finetune: belongs to --suite, which is not given")
    if len(options.runs) != 1:
        raise UserError(f"probe: takes one run, {len(options.runs)} are given; --suite takes several")
    overrides, arguments = split_words(options.words)
    load_plugins(options.plugins)  # one of them may hold the method
    method = build_probe(options.method_name, arguments)
    probed = open_probed(
        options.runs[0], checkpoint=options.checkpoint, data=options.data, overrides=overrides, plugins=options.plugins
    )
    assert_fits(method, len(probed.data.train.indices))
    if options.out is not None:
        assert_writable(options.out / f"{options.method_name}.json", option="--out")
    num_processes = resolve_num_processes(options.processes)
    if num_processes > 1:
        return launch(options.command_line(), num_processes)
    set_backends(determinism=probed.config.train.determinism, cudnn=probed.config.train.cudnn)
    with start_world(device=options.device, timeout_s=probed.config.distributed.timeout_s) as world:
        probed = check_input_scale(probed, world)
        for line in probed.notes:
            world.rank_zero_only(print_note)(line)
        twins = extract_with_random_baselines(probed, world, num_random=options.random, cache=options.cache)
        report = world.rank_zero_only(_report)
    report(options, method, probed, twins)  # takes minutes in one process; the others do not wait
    return 0


def suite(options: ProbeOptions) -> int:
    """Probe every run, fine-tune each on part segmentation if a config is given, and write one table.

    Returns 0, or the exit code of the first unfinished fine-tuning, such as 130 after an interrupt.
    """
    out = _assert_for_suite(options)
    overrides, arguments = split_words(options.words)
    request = SuiteRequest(
        options.runs,
        out,
        tuple(overrides),
        tuple(arguments),
        data=options.data,
        checkpoint=options.checkpoint,
        num_random=options.random,
        cache=options.cache,
        finetune=options.finetune,
        plugins=options.plugins,
        device=options.device,
    )
    planned = ProbeSuite(request, TerminalReporter())
    code = planned()
    if code == 0:
        for row in planned.rows:
            figures = {name: value for name, value in row.metrics.items() if not name.endswith("_std")}
            rows = [[name, value, row.metrics.get(f"{name}_std")] for name, value in figures.items()]
            show_table(f"{row.who}, {row.data} ({row.source})", ("metric", "value", "std"), rows)
        print_note(f"table, protocols and their differences: {out / NAME}.md, {out / NAME}.json")
        write_document(options.json, load_document(out / f"{NAME}.json"))
    return code


def _assert_for_suite(options: ProbeOptions) -> Path:
    """Return the folder of the suite. Raises UserError for options that do not go with it."""
    if not options.runs:
        raise UserError("probe --suite: no run directory is given; sightline probe --suite RUN... --out DIR")
    if (options.processes or 1) > 1:
        raise UserError("probe --suite: runs in one process; to extract features by several: probe RUN --processes N")
    if options.method is not None:
        raise UserError(
            f"probe --suite: found --method {options.method}; the suite runs svm and few-shot, so leave it out, or "
            "probe one run without --suite"
        )
    if options.out is None:
        raise UserError("probe --suite: writes suite.md and suite.json; give their folder with --out DIR")
    if len({run.resolve() for run in options.runs}) < len(options.runs):
        raise UserError("probe --suite: a run is given twice")
    return options.out


def _report(options: ProbeOptions, method: Probe, probed: ProbedRun, twins: FeatureComparison) -> None:
    """Train the probes on the features, print their metrics and write them to files."""
    comparison = compare_with_baselines(method, twins, probed.data.num_classes)
    show(probed, comparison)
    document = {"method": options.method_name, "overrides": list(options.words), **comparison.document(probed)}
    write_document(options.json, document)
    if options.out is not None:
        write_document(options.out / f"{options.method_name}.json", document)
    _save_episodes(probed.run / CACHE if options.cache is None else options.cache, comparison)


def _save_episodes(folder: Path, comparison: Comparison) -> None:
    """Write few-shot episodes next to the features that they index, in a file named by the hash of its content.

    A read-only folder is not an error but a note: `--json` contains the episodes, too.
    """
    episodes = comparison.trained.details.get("few_shot")
    if episodes is None:
        return
    text = json.dumps(episodes, indent=1) + "\n"
    path = folder / f"episodes_{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    try:
        write_file(path, text)
    except (OSError, UserError):
        print_note(
            f"episodes: not saved, {folder} cannot be written; --json FILE contains them, --cache DIR is another folder"
        )
    else:
        print_note(f"episodes: {path}; episodes={path} repeats them")


def show(probed: ProbedRun, comparison: Comparison) -> None:
    """Print the method's tables, each metric with its baselines, and the protocol as notes."""
    for table in comparison.trained.tables:
        show_table(table.title, table.columns, table.rows)
    data, features = probed.data, comparison.statistics
    seeds = ", ".join(map(str, comparison.random))
    print_note(
        f"features: {features['width']:.0f} wide, mean norm {features['mean_norm']:.4g}, deviation of a dimension "
        f"{features['deviation_median']:.3g} (median), {features['dead_share']:.1%} never change; random weights (seed "
        f"{seeds}): mean norm {_mean_norm(comparison):.4g}"
    )
    for line in (*comparison.trained.protocol, *comparison.trained.warnings):
        print_note(line)
    for seed, outcome in comparison.random.items():
        for line in outcome.warnings:
            print_note(f"random weights (seed {seed}): {line}")
    metrics = comparison.metrics
    rows = [
        [
            name,
            comparison.trained.metrics[name],
            comparison.trained.metrics.get(f"{name}_std"),
            metrics[f"{name}_random"],
            metrics.get(f"{name}_random_std"),
            comparison.get_chance(name),
        ]
        for name in comparison.figures
    ]
    sizes = f"{len(data.train.indices)} to train on, {len(data.test.indices)} to test"
    title = f"{probed.run}: {data.config.data.name}, {sizes}"
    show_table(title, ("metric", "value", "std", f"random (seed {seeds})", "std", "chance"), rows)
    print_note(f"always predicting the largest class of the training split: {comparison.chance['largest_class']:.4f}")


def _mean_norm(comparison: Comparison) -> float:
    norms = [statistics["mean_norm"] for statistics in comparison.random_statistics.values()]
    return sum(norms) / len(norms)
