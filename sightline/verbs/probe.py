"""`sightline probe`: what a run's frozen features are worth, beside chance and random weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sightline.engine.distributed import start_world
from sightline.engine.launch import launch, processes_to_start
from sightline.engine.precision import set_backends
from sightline.errors import UserError
from sightline.probe.measure import Comparison, compare
from sightline.probe.outcome import assert_fits
from sightline.probe.runs import CACHE, Probed, open_run, twins_of
from sightline.verbs.common import assert_writable, write_document, write_file
from sightline.verbs.output import note, show_table
from sightline.verbs.probe_options import Options, build_probe, parted
from sightline.verbs.probe_scale import with_scale

__all__ = ["probe"]


def probe(options: Options) -> int:
    """Extract features once, learn from those of the training part, score on those of the test part."""
    if options.finetune is not None:
        raise UserError("--finetune: is a part of --suite, which is not given")
    if len(options.runs) != 1:
        raise UserError(f"probe: takes one run, {len(options.runs)} are given; --suite takes several")
    overrides, arguments = parted(options.words)
    method = build_probe(options.chosen, arguments)
    probed = open_run(
        options.runs[0], checkpoint=options.which, data=options.data, overrides=overrides, plugins=options.plugins
    )
    assert_fits(method, len(probed.data.train.indices))
    if options.out is not None:
        assert_writable(options.out / f"{options.chosen}.json", option="--out")
    num_processes = processes_to_start(options.processes)
    if num_processes > 1:
        return launch(options.arguments(), num_processes)
    set_backends(determinism=probed.config.train.determinism, cudnn=probed.config.train.cudnn)
    with start_world(device=options.device, timeout_s=probed.config.distributed.timeout_s) as world:
        probed = with_scale(probed, world)
        if world.is_first:
            for line in probed.notes:
                note(line)
        twins = twins_of(probed, world, num_random=options.num_random, cache=options.cache)
        is_first = world.is_first
    if not is_first:
        return 0
    comparison = compare(method, twins, probed.data.num_classes)
    show(probed, comparison)
    document = {"method": options.chosen, "overrides": list(options.words), **comparison.document(probed)}
    write_document(options.json, document)
    if options.out is not None:
        write_document(options.out / f"{options.chosen}.json", document)
    _keep_episodes(probed.run / CACHE if options.cache is None else options.cache, comparison)
    return 0


def _keep_episodes(folder: Path, comparison: Comparison) -> None:
    """Few-shot's episodes beside the features that they are places of, under a name of their content.

    A folder that takes no writes keeps none, which is told: the figures are there, and `--json` holds episodes too.
    """
    episodes = comparison.trained.details.get("few_shot")
    if episodes is None:
        return
    text = json.dumps(episodes, indent=1) + "\n"
    path = folder / f"episodes_{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    try:
        write_file(path, text)
    except (OSError, UserError):
        note(f"episodes: not kept, {folder} takes no writes; --json FILE holds them, --cache DIR is another folder")
    else:
        note(f"episodes: {path}; episodes={path} repeats them")


def show(probed: Probed, comparison: Comparison) -> None:
    """Tables on standard output: the method's own, then each figure beside its baselines; the protocol as notes."""
    for table in comparison.trained.tables:
        show_table(table.title, table.columns, table.rows)
    data, features = probed.data, comparison.statistics
    seeds = ", ".join(map(str, comparison.random))
    note(
        f"features: {features['width']:.0f} wide, mean norm {features['mean_norm']:.4g}, deviation of a dimension "
        f"{features['deviation_median']:.3g} (median), {features['dead_share']:.1%} never change; random weights (seed "
        f"{seeds}): mean norm {_mean_norm(comparison):.4g}"
    )
    for line in (*comparison.trained.protocol, *comparison.trained.warnings):
        note(line)
    for seed, outcome in comparison.random.items():
        for line in outcome.warnings:
            note(f"random weights (seed {seed}): {line}")
    metrics = comparison.metrics
    rows = [
        [
            name,
            comparison.trained.metrics[name],
            comparison.trained.metrics.get(f"{name}_std"),
            metrics[f"{name}_random"],
            metrics.get(f"{name}_random_std"),
            comparison.chance_of(name),
        ]
        for name in comparison.figures
    ]
    sizes = f"{len(data.train.indices)} to learn from, {len(data.test.indices)} to test"
    title = f"{probed.run}: {data.config.data.name}, {sizes}"
    show_table(title, ("metric", "value", "std", f"random (seed {seeds})", "std", "chance"), rows)
    note(f"always the largest class of training: {comparison.chance['largest_class']:.4f}")


def _mean_norm(comparison: Comparison) -> float:
    norms = [each["mean_norm"] for each in comparison.random_statistics.values()]
    return sum(norms) / len(norms)
