"""`sightline probe`: evaluate a run's frozen features against chance and random weights."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

from sightline.commands.prove import ProbeOptions
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.engine.device import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.launcher import launch, resolve_num_processes
from sightline.engine.process_inputs import describe_command
from sightline.runs.run_directory import assert_writable, write_document, write_file
from sightline.verbs.output import print_note, show_table
from sightline.workbench.probe.classifiers import Probe, assert_fits, build_probe, split_words
from sightline.workbench.probe.measure import Comparison, compare_with_baselines
from sightline.workbench.probe.probed_run import (
    CACHE,
    FeatureComparison,
    ProbedRun,
    extract_with_random_baselines,
    open_probed,
)
from sightline.workbench.study.probe_suite import check_input_scale


def probe(options: ProbeOptions) -> int:
    """Extract features once, train a probe on those of the training split, and score it on the test split."""
    if len(options.runs) != 1:
        raise UserError(
            f"probe: takes one run, {len(options.runs)} are given; 'study RUN... --preset probes' takes several"
        )
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
    set_backends(probed.config.train)
    describe = partial(describe_command, "probe", probed.config, method=options.method_name, random=options.random)
    timeout_s = probed.config.distributed.timeout_s
    with start_world(device=options.device, timeout_s=timeout_s, describe=describe) as world:
        probed = check_input_scale(probed, world)
        for line in probed.notes:
            world.rank_zero_only(print_note)(line)
        twins = extract_with_random_baselines(probed, world, num_random=options.random, cache=options.cache)
        report = world.rank_zero_only(_report)
    report(options, method, probed, twins)  # takes minutes in one process; the others do not wait
    return 0


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
