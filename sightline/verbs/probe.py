"""`sightline evaluate --probe`: evaluate the frozen features of runs against chance and random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from sightline.commands.run import EvaluateOptions
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.engine.device.numerics import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.launcher import launch, resolve_num_processes
from sightline.engine.process_inputs import describe_command
from sightline.runs.output_files import write_document
from sightline.verbs.output import print_note, show_table
from sightline.workbench.probe.features import FeatureSplit
from sightline.workbench.probe.measure import Comparison, compare_with_random
from sightline.workbench.probe.methods import Probe, assert_fits, build_probes, split_words
from sightline.workbench.probe.probed_run import ProbedRun, extract_with_random, open_probed

Extracted = tuple[ProbedRun, FeatureSplit, FeatureSplit]
"""Run with its features, and those of random weights."""


def probe(options: EvaluateOptions) -> int:
    """Extract features of each run once, train probes on those of its training split, and score on the test split."""
    if not options.runs:
        raise UserError("evaluate: no run directory is given; sightline evaluate RUN --probe METHOD [KEY=VALUE]...")
    unused = set(options.list_flags(EvaluateOptions)) & {"--save-predictions", "--ensemble", "--out", "--against"}
    if unused:
        raise UserError(f"{min(unused)}: has no use with --probe; leave it out")
    overrides, arguments = split_words(options.overrides)
    load_plugins(options.plugins)  # one of them may hold the method
    probes = build_probes(str(options.probe).split(","), arguments)
    runs = [
        open_probed(run, checkpoint=options.checkpoint, data=options.data, overrides=overrides, plugins=options.plugins)
        for run in options.runs
    ]
    for probed in runs:
        for method in probes.values():
            assert_fits(method, len(probed.data.train.indices))
    num_processes = resolve_num_processes(options.processes)
    if num_processes > 1:
        return launch(options.command_line(), num_processes)
    set_backends(runs[0].config.train)
    describe = partial(describe_command, "evaluate", *(probed.config for probed in runs), probe=options.probe)
    timeout_s = runs[0].config.distributed.timeout_s
    with start_world(device=options.device, timeout_s=timeout_s, describe=describe) as world:
        extracted: list[Extracted] = []
        note = world.rank_zero_only(print_note)
        for probed in runs:
            for line in probed.notes:
                note(line)
            extracted.append((probed, *extract_with_random(probed, world, note=note)))
        report = world.rank_zero_only(_report)
    report(options, probes, extracted)  # takes minutes in one process; the others do not wait
    return 0


def _report(options: EvaluateOptions, probes: Mapping[str, Probe], extracted: Sequence[Extracted]) -> None:
    """Train the probes on the features, print their metrics and write them to a file."""
    documents, words = [], {"overrides": list(options.overrides)}
    for probed, trained, random in extracted:
        comparison = compare_with_random(probes, probed, trained, random)
        _show(comparison)
        documents.append(words | comparison.to_dict())
    write_document(options.json, {"runs": documents})


def _show(comparison: Comparison) -> None:
    """Print the methods' tables, the protocols as notes, and each metric with its baselines."""
    for outcome in comparison.trained.values():
        show_table(outcome.table.title, outcome.table.columns, outcome.table.rows)
    for line in comparison.list_notes():
        print_note(line)
    metrics, probed, data = comparison.metrics, comparison.probed, comparison.probed.data
    rows = [(name, metrics[name], metrics.get(f"{name}_std"), *beside) for name, beside in comparison.baselines.items()]
    sizes = f"{len(data.train.indices)} to train on, {len(data.test.indices)} to test"
    columns = ("metric", "value", "std", f"random (seed {probed.config.seed + 1})", "chance")
    show_table(f"{probed.run}: {data.config.data.name}, {sizes}", columns, rows)
    print_note(f"always predicting the largest class of the training split: {comparison.guessing['largest_class']:.4f}")
