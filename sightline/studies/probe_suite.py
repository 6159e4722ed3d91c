"""A suite of probes: SVM, few-shot and fine-tuning on parts of several runs, in one table beside published figures."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.config import RunConfig
from sightline.engine.build import build, build_data
from sightline.engine.distributed import World, start_world
from sightline.engine.precision import set_backends
from sightline.engine.records import preserve_rng_state
from sightline.errors import CheckpointError, UserError
from sightline.probe.choice import build_probe
from sightline.probe.measure import compare_with_baselines
from sightline.probe.outcome import Probe, assert_fits
from sightline.probe.probed_run import ProbedRun, extract_with_random_baselines, open_probed
from sightline.runs.output_files import assert_writable, write_document, write_file
from sightline.runs.preprocessing_signature import preprocessing_signature
from sightline.runs.trained_weights import evaluated_sha256, resolve_weights
from sightline.studies.fine_tuning import init_override, scratch_overrides
from sightline.studies.probe_scale import check_input_scale
from sightline.studies.probe_table import OWN_PARTS, PARTS, comparison_rows, probe_markdown, probe_rows, protocol_of
from sightline.studies.study_runs import StudyRun, StudySettings, UnfinishedError, train_or_read_metrics
from sightline.training.published_results import ResultRow, foreign_in_words, published_names
from sightline.training.run_configs import read_with_plugins, reread
from sightline.training.train_run import Reporter
from sightline.types import ComponentConfig

__all__ = ["NAME", "ProbeSuite", "SuiteRequest"]

METHODS = ("few_shot", "svm")
"""The one that refuses too few classes or samples comes first: the other takes minutes, and parts are learnt last."""
NAME = "suite"
"""Of the files that hold the table and the document."""
_PARTS = "shapenet_part"


@dataclass(frozen=True)
class SuiteRequest:
    """The runs to probe, and how; `overrides` are those of configs, `arguments` those of the methods."""

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
class _Done:
    """A run's row of the table, and the documents of its probes."""

    row: ResultRow
    probes: Mapping[str, Any]


@dataclass(frozen=True)
class _Parts:
    """How parts are learnt: the cells' setup, the config, why weights do not fit it by run, and the protocol."""

    setup: StudySettings
    config: RunConfig
    misfits: Mapping[Path, str]
    protocol: Mapping[str, Any]


class ProbeSuite:
    """A suite that is planned: its runs are opened, and what is asked for is known to fit. Calling it probes them."""

    def __init__(self, request: SuiteRequest, reporter: Reporter) -> None:
        """Raises UserError for whatever cannot be probed or learnt, before anything is computed."""
        self._request = request
        self._reporter = reporter
        self._probes = _build(request.arguments)
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
        self._parts = None if request.finetune is None else self._parts_by(request.finetune)
        self._done: list[_Done] = []

    def __call__(self) -> int:
        """Probe every run, then fine-tune each on parts where that is asked for; the table is written after each.

        Returns the exit code of the first fine-tuning that did not come to its end, such as 130 after an interrupt.
        """
        for probed in self._opened:
            self._done.append(self._probe(probed))
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
        """Every run that is done, then the published rows on the same data."""
        return [*(each.row for each in self._done), *self._others()]

    # --- probes of frozen features ------------------------------------------------------------------------------------

    def _probe(self, probed: ProbedRun) -> _Done:
        """A run's row as far as its probes go, with the reason where it will have no figure on parts."""
        request, note = self._request, self._reporter.note
        note(f"{probed.run}: features")
        set_backends(determinism=probed.config.train.determinism, cudnn=probed.config.train.cudnn)
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
            chance |= {figure: comparison.chance_of(figure) for figure in comparison.figures}
        return _Done(self._row(probed, metrics, chance), documents)

    def _row(self, probed: ProbedRun, metrics: Mapping[str, float], chance: Mapping[str, float]) -> ResultRow:
        request = self._request
        protocol = protocol_of(probed, which=request.checkpoint, probes=self._probes)
        protocol |= {"arguments": ", ".join(request.arguments)} if request.arguments else {}
        protocol |= {"overrides": ", ".join(request.overrides)} if request.overrides else {}
        misfit = "no --finetune CONFIG was given" if self._parts is None else self._parts.misfits.get(probed.run)
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

    def _fine_tune(self, parts: _Parts) -> None:
        """Learn parts from scratch and from every run that fits, and add the figures to their rows."""
        scratch = self._fine_tuned(parts, None)
        for place, probed in enumerate(self._opened):
            if probed.run in parts.misfits:
                continue
            row = self._done[place].row
            figures = {**row.metrics, **self._fine_tuned(parts, probed), **scratch}
            row = dataclasses.replace(row, metrics=figures, protocol={**row.protocol, **parts.protocol})
            self._done[place] = dataclasses.replace(self._done[place], row=row)
            self._write()

    def _fine_tuned(self, parts: _Parts, probed: ProbedRun | None) -> dict[str, float]:
        """Both instance mIoU on parts of the last weights, from a run or from scratch; finished runs are kept."""
        out = self._place_of(probed)
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

    def _parts_by(self, finetune: Path) -> _Parts:
        """How parts are learnt, and which runs' weights do not fit: known before anything is computed.

        Raises UserError for a config that would not start from a run, or not report what the table holds, and where the
        weights of no run fit.
        """
        read = read_with_plugins(finetune, (), self._request.plugins)
        config = read.config
        for line in read.notes:
            self._reporter.note(f"warning: {line}")
        if config.init is None:
            raise UserError(
                f"--finetune {finetune}: has no init, so nothing would be taken from a run; add "
                "init: {from: RUN, modules: points, may_be_missing: [...]}"
            )
        names = [metric.name for metric in config.metrics]
        if "part_iou" not in names:
            raise UserError(
                f"--finetune {finetune}: metrics {', '.join(names)} report no instance_miou; add {{name: part_iou}}"
            )
        data = build_data(config)
        misfits = {}
        for probed in self._opened:
            source = init_override(probed.checkpoint)
            try:
                with preserve_rng_state():
                    build(reread(finetune, [source]), World(), data=data)
            except CheckpointError as error:
                misfits[probed.run] = str(error).removeprefix("command line: init.from: ")
                self._reporter.note(f"{probed.run}: will not be fine-tuned on parts: {misfits[probed.run]}")
        if len(misfits) == len(self._opened):
            raise UserError(f"--finetune {finetune}: the weights of no run fit its model; the reasons are above")
        protocol = {
            "parts config": f"{finetune}, last weights, same seed",
            "parts data": config.data.name,
            "parts epochs": config.train.epochs,
            "parts clouds per step": config.train.batch_size,
            "parts points": preprocessing_signature(config, data.train.dataset.info)["num_points"],
        }
        return _Parts(StudySettings(finetune, self._request.plugins, self._request.device), config, misfits, protocol)

    def _place_of(self, probed: ProbedRun | None) -> Path:
        """The folder of a fine-tuning: that of other weights, or of the same of another run, is another one."""
        folder = self._request.out / "parts"
        if probed is None:
            return folder / "scratch"
        text = f"{probed.checkpoint}\n{evaluated_sha256(resolve_weights(probed.checkpoint))}"
        return folder / f"{probed.run.resolve().name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    # --- the table ----------------------------------------------------------------------------------------------------

    def _others(self) -> list[ResultRow]:
        """The published rows on our data, and those of parts where parts were learnt."""
        names = {each.row.data for each in self._done} - self._foreign
        names |= {_PARTS} if any(each.row.protocol.get("parts data") == _PARTS for each in self._done) else set()
        return probe_rows(names)

    @cached_property
    def _foreign(self) -> frozenset[str]:
        """The data sets, noted once, that are not those of their names that figures are published on."""
        found = set()
        for probed in self._opened:
            data, reason = probed.data.config.data, None
            if data.name in published_names():
                reason = foreign_in_words(data, probed.data.test.dataset.info)
            if reason is not None and data.name not in found:
                self._reporter.note(f"the data are not the '{data.name}' that figures are published on: {reason}")
                found.add(data.name)
        return frozenset(found)

    def _write(self) -> None:
        rows, others, out = [each.row for each in self._done], self._others(), self._request.out
        write_file(out / f"{NAME}.md", probe_markdown(rows, others))
        document = {
            "runs": [
                {
                    "run": each.row.who,
                    "metrics": dict(each.row.metrics),
                    "chance": dict(each.row.chance),
                    "probes": each.probes,
                    "remarks": list(each.row.remarks),
                    "protocol": dict(each.row.protocol),
                }
                for each in self._done
            ],
            "others": [
                {"who": r.who, "source": r.source, "data": r.data, "protocol": r.protocol, "metrics": r.metrics}
                for r in others
            ],
            "differences": [
                {"run": row.who, "other": r.who, "source": r.source, "differences": list(map(str, found))}
                for row, r, found in comparison_rows(rows, others)
            ],
        }
        write_document(out / f"{NAME}.json", document)


def _build(words: Sequence[str]) -> dict[str, Probe]:
    """Both methods, each with those of the arguments that it takes. Raises UserError for one that none takes."""
    taken = {name: registry.probes.entry(ComponentConfig(name)).arguments for name in METHODS}
    keys = {word: word.partition("=")[0].strip() for word in words}
    for word, key in keys.items():
        if not any(key in arguments for arguments in taken.values()):
            raise UserError(f"probe --suite: found {word!r}; neither {' nor '.join(METHODS)} has such an argument")
    return {name: build_probe(name, [word for word in words if keys[word] in taken[name]]) for name in METHODS}
