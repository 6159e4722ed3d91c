"""Suite of probes: SVM, few-shot and part segmentation of several runs, in one table with published results.

Table of probed runs and published results, with all differences between their protocols.

Check of a probe's input scale against that of training, through `encode` instead of a task.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.errors import CheckpointError, UserError
from sightline.contract.types import Batch, ComponentConfig
from sightline.draw.page import PageTable
from sightline.engine.build import build, build_data
from sightline.engine.device import Precision, set_backends, to_device
from sightline.engine.distributed import World, start_world
from sightline.instrument.random_state import preserve_random_state
from sightline.runs.checkpoint import evaluated_sha256, resolve_weights
from sightline.runs.preprocessing_signature import preprocessing_signature
from sightline.runs.run_directory import assert_writable, write_document, write_file
from sightline.runs.weights import find_neighbour_graph, get_argument
from sightline.training.published_results import (
    Difference,
    ResultRow,
    describe_checkpoint,
    describe_foreign_data,
    format_figure,
    format_protocol_value,
    pretraining_protocol,
    protocol_differences,
    published_names,
    published_rows,
)
from sightline.training.train_run import Reporter, read_with_plugins, reread
from sightline.workbench.check.checks.weights_scale import layer_scales, other_scale, sampled_batch
from sightline.workbench.probe.classifiers import Probe, assert_fits, build_probe
from sightline.workbench.probe.features import get_encode, share_errors
from sightline.workbench.probe.few_shot import FewShot
from sightline.workbench.probe.measure import compare_with_baselines
from sightline.workbench.probe.probed_run import ProbedRun, extract_with_random_baselines, open_probed
from sightline.workbench.probe.svm import SVM
from sightline.workbench.study.study_runs import (
    StudyRun,
    StudySettings,
    UnfinishedError,
    init_override,
    scratch_overrides,
    train_or_read_metrics,
)

PARTS = "part_instance_miou_all_parts"
"""Metric of fine-tuning on parts, as published: the prediction may be any part of any category."""
OWN_PARTS = "part_instance_miou"
"""Metric of fine-tuning on parts, with predictions restricted to the parts of the object's category."""

_WORDS: Mapping[str, str] = {
    "probe_svm_accuracy": "SVM",
    "by_hand_accuracy": "random forest, by hand",
    PARTS: "parts, instance mIoU",
    OWN_PARTS: "parts, instance mIoU among own parts",
}
"""Headings of metrics; those of few-shot are made from their setting."""
_SUFFIXES: Mapping[str, str] = {
    "_random": ", random weights",
    "_scratch": ", from scratch",
    "_standardised": ", standardised",
    "_test_queries": ", queries of the test part",
}

_ORDER = ("probe_svm", "fewshot", "by_hand", "part")

_ABOUT = (
    "Accuracies in percent. Few-shot is the mean +- deviation over runs of episodes; figures of random weights are "
    "means over the networks, and where there are several +- the deviation over them."
)


def probe_rows(names: Iterable[str]) -> list[ResultRow]:
    """Return the published rows on these data sets that have a column in the table."""
    return [row for row in published_rows(names) if any(column_heading(name) is not None for name in row.metrics)]


def column_heading(metric: str) -> str | None:
    """Return the heading of a metric in the table, or None if it has no column."""
    for suffix, ending in _SUFFIXES.items():
        if metric.endswith(suffix):
            inner = column_heading(metric.removesuffix(suffix))
            return None if inner is None else inner + ending
    setting = re.fullmatch(r"fewshot_(\d+)w(\d+)s", metric)
    return f"{setting[1]}-way {setting[2]}-shot" if setting else _WORDS.get(metric)


def _rank(metric: str) -> int:
    """Return the sort key of a metric's column, which groups columns by method."""
    return next((index for index, method in enumerate(_ORDER) if metric.startswith(method)), len(_ORDER))


def probe_protocol(probed: ProbedRun, *, which: str, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """Build the protocol of training and probing a run, with the entry names of published rows."""
    training_config, data = probed.files.config, probed.data.config.data
    graph = find_neighbour_graph(probed.config.model, probed.data.num_points)
    variant = get_argument("data", data, "variant")
    return {
        **pretraining_protocol(training_config, probed.files.inputs),
        "points in the probe": probed.data.num_points,
        "neighbours in the probe": None if graph is None else graph.neighbours,
        "C": next((probe.choice for probe in probes.values() if isinstance(probe, SVM)), None),
        "checkpoint": describe_checkpoint(which, is_test_selected=probed.is_test_selected),
        "few-shot queries": next(
            (probe.queries_description for probe in probes.values() if isinstance(probe, FewShot)), None
        ),
        "few-shot runs": next(
            (probe.runs for probe in probes.values() if isinstance(probe, FewShot) and probe.file is None), None
        ),
        "variant": variant,
        "background": None if variant is None else get_argument("data", data, "background"),
    }


def probe_markdown(ours: Sequence[ResultRow], others: Sequence[ResultRow]) -> str:
    """Format table, protocols, remarks and, for every published row, the differences of our runs as Markdown."""
    rows = [*ours, *others]
    shown = sorted({name: None for row in rows for name in row.metrics}, key=_rank)
    headings = {name: heading for name in shown if (heading := column_heading(name)) is not None}
    lines = ["# Probes of frozen features", "", _ABOUT, ""]
    figures = [[row.who, row.data, *(format_figure(row.metrics, n) for n in headings), row.source] for row in rows]
    lines += PageTable(["", "data", *headings.values(), "source"], figures).to_markdown()
    facts = list(dict.fromkeys(name for row in rows for name in row.protocol))
    lines += ["", "## Protocols", ""]
    protocols = [[row.who, row.data, *(format_protocol_value(row.protocol.get(n)) for n in facts)] for row in rows]
    lines += PageTable(["", "data", *facts], protocols).to_markdown()
    chances = [f"{row.who}, {row.data}: {_chance_in_words(row)}" for row in rows if row.chance]
    lines += ["", "## What guessing gets", "", *(f"- {line}" for line in chances)] if chances else []
    remarks = [f"- {row.who}, {row.data}: {remark}" for row in rows for remark in row.remarks]
    lines += ["", "## Remarks", "", *remarks] if remarks else []
    lines += ["", "## Differences between the protocols", ""]
    lines += [
        f"- {row.who} against {published.who} ({published.source}): {'; '.join(map(str, differences)) or 'none found'}"
        for row, published, differences in comparison_rows(ours, others)
    ] or ["None of these data sets has published figures here."]
    return "\n".join(lines) + "\n"


def comparison_rows(
    ours: Sequence[ResultRow], others: Sequence[ResultRow]
) -> Iterator[tuple[ResultRow, ResultRow, list[Difference]]]:
    """Iterate over pairs of our and published rows, on the same data or both on parts, with their differences."""
    for published in others:
        for row in ours:
            if row.data == published.data or (PARTS in published.metrics and PARTS in row.metrics):
                yield row, published, protocol_differences(row, published)


def _chance_in_words(row: ResultRow) -> str:
    levels = {column_heading(name): value for name, value in row.chance.items()}
    return ", ".join(f"{heading} {100 * value:.2f}" for heading, value in levels.items() if heading is not None)


def check_input_scale(probed: ProbedRun, world: World) -> ProbedRun:
    """Add a warning to the run if the inputs of its first batch norms differ in scale from their running statistics.

    Uses sixteen clouds of the training split. Source: as `feature_scale`.
    """
    part, model = probed.data.train, probed.network(world)
    precision = Precision(probed.config.train.precision)
    available_keys = AvailableKeys("the data set", part.reader.keys)

    def run(network: nn.Module, batch: Batch) -> Any:
        encode = bind(get_encode(network), available_keys, owner=f"{type(network).__name__}.encode")
        return encode.function(**encode.select(batch))

    with share_errors(world):
        batch = to_device(
            sampled_batch(part, seed=probed.config.seed), world.device, float_dtype=precision.parameter_dtype
        )
        with precision.autocast(world.device):
            scales = layer_scales(model, batch, run)
    finding = other_scale(scales, source=str(probed.run))
    if finding is None:
        return probed
    line = f"warning: {finding.summary} ({finding.measured}; {finding.expected}): {finding.action}"
    return dataclasses.replace(probed, notes=(*probed.notes, line))


METHODS = ("few_shot", "svm")
"""Probes in order: few-shot, which refuses too few classes or samples, comes first; the SVM takes minutes."""
NAME = "suite"
"""Name of the files of table and document, without extension."""
_PARTS = "shapenet_part"


@dataclass(frozen=True)
class SuiteRequest:
    """Runs to probe, and options; `overrides` are those of configs, `arguments` those of the methods."""

    runs: tuple[Path, ...]
    out: Path
    overrides: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    data: Path | None = None
    checkpoint: str = "last"
    num_random: int = 1
    cache: Path | None = None
    finetune: Path | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"


@dataclass(frozen=True)
class _ProbedRow:
    """Result of a probed run: its row of the table, and the documents of its probes."""

    row: ResultRow
    probes: Mapping[str, Any]


@dataclass(frozen=True)
class _PartSettings:
    """Fine-tuning on part segmentation: settings, config, reasons of runs whose weights do not fit, and protocol."""

    setup: StudySettings
    config: RunConfig
    misfits: Mapping[Path, str]
    protocol: Mapping[str, Any]


class ProbeSuite:
    """Planned suite: its runs are opened and its options checked. A call probes the runs."""

    def __init__(self, request: SuiteRequest, reporter: Reporter) -> None:
        """Raise UserError for runs or configs that cannot be probed or fine-tuned, before anything is computed."""
        self._request = request
        self._reporter = reporter
        self._probes = _build_probes(request.arguments)
        self._opened = [
            open_probed(
                run,
                checkpoint=request.checkpoint,
                data=request.data,
                overrides=request.overrides,
                plugins=request.plugins,
            )
            for run in request.runs
        ]
        for probed in self._opened:
            for probe in self._probes.values():
                assert_fits(probe, len(probed.data.train.indices))
        assert_writable(request.out / f"{NAME}.md", option="--out")
        self._parts = None if request.finetune is None else self._plan_parts(request.finetune)
        self._done: list[_ProbedRow] = []

    def __call__(self) -> int:
        """Probe every run, then fine-tune each on parts if requested, and write the table after each.

        Returns 0, or the exit code of the first unfinished fine-tuning, such as 130 after an interrupt.
        """
        for probed in self._opened:
            self._done.append(self._probe_run(probed))
            self._write()
        if self._parts is None:
            return 0
        try:
            self._fine_tune(self._parts)
        except UnfinishedError as error:
            return error.code
        return 0

    @property
    def rows(self) -> list[ResultRow]:
        """Rows of the finished runs, then the published rows on the same data."""
        return [*(done.row for done in self._done), *self._published_rows()]

    # --- probes of frozen features ------------------------------------------------------------------------------------

    def _probe_run(self, probed: ProbedRun) -> _ProbedRow:
        """Probe one run; its row has the reason if it will not be fine-tuned on parts."""
        request, note = self._request, self._reporter.note
        note(f"{probed.run}: features")
        set_backends(probed.config.train)
        with start_world(device=request.device, timeout_s=probed.config.distributed.timeout_s) as world:
            probed = check_input_scale(probed, world)
            twins = extract_with_random_baselines(probed, world, num_random=request.num_random, cache=request.cache)
        documents: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        chance: dict[str, float] = {}
        for name, probe in self._probes.items():
            note(f"{probed.run}: {name}")
            comparison = compare_with_baselines(probe, twins, probed.data.num_classes)
            documents[name] = comparison.document(probed)
            metrics |= comparison.metrics
            chance |= {figure: comparison.get_chance(figure) for figure in comparison.figures}
        return _ProbedRow(self._make_row(probed, metrics, chance), documents)

    def _make_row(self, probed: ProbedRun, metrics: Mapping[str, float], chance: Mapping[str, float]) -> ResultRow:
        request = self._request
        protocol = probe_protocol(probed, which=request.checkpoint, probes=self._probes)
        protocol |= {"arguments": ", ".join(request.arguments)} if request.arguments else {}
        protocol |= {"overrides": ", ".join(request.overrides)} if request.overrides else {}
        misfit = "no finetune=CONFIG was given" if self._parts is None else self._parts.misfits.get(probed.run)
        return ResultRow(
            who=str(probed.run),
            source="this run",
            data=probed.data.config.data.name,
            protocol=protocol,
            metrics=metrics,
            chance=chance,
            remarks=(*probed.notes, *([] if misfit is None else [f"not fine-tuned on parts: {misfit}"])),
        )

    # --- fine-tuning on parts -----------------------------------------------------------------------------------------

    def _fine_tune(self, parts: _PartSettings) -> None:
        """Fine-tune on parts from scratch and from every run that fits, and add the metrics to their rows."""
        scratch = self._train_parts(parts, None)
        for index, probed in enumerate(self._opened):
            if probed.run in parts.misfits:
                continue
            row = self._done[index].row
            figures = {**row.metrics, **self._train_parts(parts, probed), **scratch}
            row = dataclasses.replace(row, metrics=figures, protocol={**row.protocol, **parts.protocol})
            self._done[index] = dataclasses.replace(self._done[index], row=row)
            self._write()

    def _train_parts(self, parts: _PartSettings, probed: ProbedRun | None) -> dict[str, float]:
        """Train on parts from a run or from scratch, and return both instance mIoU; finished runs are reused."""
        out = self._part_folder(probed)
        if probed is None:
            cell = StudyRun(out, tuple(scratch_overrides(parts.config)))
        else:
            cell = StudyRun(out, (init_override(probed.checkpoint),), probed.checkpoint)
        heading = f"parts: {'from scratch' if probed is None else probed.run} -> {out}"
        try:
            final = train_or_read_metrics(cell, parts.setup, self._reporter, heading=heading)
        except UnfinishedError as error:
            self._reporter.note(
                f"probes of {len(self._done)} runs are done, the table is as far; {out}: fine-tuning ended with exit "
                f"code {error.code}; the same command goes on with it"
            )
            raise
        suffix = "_scratch" if probed is None else ""
        names = {PARTS: "instance_miou_all_parts", OWN_PARTS: "instance_miou"}
        return {f"{name}{suffix}": float(final[figure]) for name, figure in names.items()}

    def _plan_parts(self, finetune: Path) -> _PartSettings:
        """Plan the fine-tuning on parts, and find the runs whose weights do not fit, before anything is computed.

        Raises UserError for a config without init or without the metric of the table, and if the weights of no run fit.
        """
        read = read_with_plugins(finetune, (), self._request.plugins)
        config = read.config
        for line in read.notes:
            self._reporter.note(f"warning: {line}")
        if config.init is None:
            raise UserError(
                f"finetune={finetune}: has no init, so no weights would be loaded from a run; add "
                "init: {from: RUN, modules: points, may_be_missing: [...]}"
            )
        names = [metric.name for metric in config.metrics]
        if "part_iou" not in names:
            raise UserError(
                f"finetune={finetune}: metrics {', '.join(names)} report no instance_miou; add {{name: part_iou}}"
            )
        data = build_data(config)
        misfits = {}
        for probed in self._opened:
            source = init_override(probed.checkpoint)
            try:
                with preserve_random_state():
                    build(reread(finetune, [source]), World(), data=data)
            except CheckpointError as error:
                misfits[probed.run] = str(error).removeprefix("command line: init.from: ")
                self._reporter.note(f"{probed.run}: will not be fine-tuned on parts: {misfits[probed.run]}")
        if len(misfits) == len(self._opened):
            raise UserError(f"finetune={finetune}: the weights of no run fit its model; the reasons are above")
        protocol = {
            "parts config": f"{finetune}, last weights, same seed",
            "parts data": config.data.name,
            "parts epochs": config.train.epochs,
            "parts clouds per step": config.train.batch_size,
            "parts points": preprocessing_signature(config, data.train.dataset.info)["num_points"],
        }
        return _PartSettings(
            StudySettings(finetune, self._request.plugins, self._request.device), config, misfits, protocol
        )

    def _part_folder(self, probed: ProbedRun | None) -> Path:
        """Return the folder of a fine-tuning, which is unique for each run and its weights."""
        folder = self._request.out / "parts"
        if probed is None:
            return folder / "scratch"
        text = f"{probed.checkpoint}\n{evaluated_sha256(resolve_weights(probed.checkpoint))}"
        return folder / f"{probed.run.resolve().name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    # --- the table ----------------------------------------------------------------------------------------------------

    def _published_rows(self) -> list[ResultRow]:
        """Return the published rows on our data, and those on parts if runs were fine-tuned on parts."""
        names = {done.row.data for done in self._done} - self._foreign
        names |= {_PARTS} if any(done.row.protocol.get("parts data") == _PARTS for done in self._done) else set()
        return probe_rows(names)

    @cached_property
    def _foreign(self) -> frozenset[str]:
        """Names of data sets that differ from the published ones of these names; reported once (cached)."""
        names = set()
        for probed in self._opened:
            data, reason = probed.data.config.data, None
            if data.name in published_names():
                reason = describe_foreign_data(data, probed.data.test.dataset.info)
            if reason is not None and data.name not in names:
                self._reporter.note(f"the data differ from the '{data.name}' of the published results: {reason}")
                names.add(data.name)
        return frozenset(names)

    def _write(self) -> None:
        rows, others, out = [done.row for done in self._done], self._published_rows(), self._request.out
        write_file(out / f"{NAME}.md", probe_markdown(rows, others))
        document = {
            "runs": [
                {
                    "run": done.row.who,
                    "metrics": dict(done.row.metrics),
                    "chance": dict(done.row.chance),
                    "probes": done.probes,
                    "remarks": list(done.row.remarks),
                    "protocol": dict(done.row.protocol),
                }
                for done in self._done
            ],
            "others": [
                {"who": r.who, "source": r.source, "data": r.data, "protocol": r.protocol, "metrics": r.metrics}
                for r in others
            ],
            "differences": [
                {"run": row.who, "other": r.who, "source": r.source, "differences": list(map(str, differences))}
                for row, r, differences in comparison_rows(rows, others)
            ],
        }
        write_document(out / f"{NAME}.json", document)


def _build_probes(words: Sequence[str]) -> dict[str, Probe]:
    """Build both methods, each with the arguments that it has. Raises UserError for one that neither has."""
    arguments_by_method = {name: registry.probes.entry(ComponentConfig(name)).arguments for name in METHODS}
    keys = {word: word.partition("=")[0].strip() for word in words}
    for word, key in keys.items():
        if not any(key in arguments for arguments in arguments_by_method.values()):
            raise UserError(f"probes: found {word!r}; neither {' nor '.join(METHODS)} has such an argument")
    return {
        name: build_probe(name, [word for word in words if keys[word] in arguments_by_method[name]]) for name in METHODS
    }
