"""`sightline probe --suite`: SVM, few-shot and fine-tuning on parts of several runs, in one table beside others'."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.config import RunConfig
from sightline.engine.build import build, build_data
from sightline.engine.distributed import World, start_world
from sightline.engine.precision import set_backends
from sightline.engine.records import kept_random_state
from sightline.errors import CheckpointError, UserError
from sightline.probe.measure import Comparison, compare
from sightline.probe.outcome import Probe, assert_fits
from sightline.probe.runs import Probed, Twins, open_run, twins_of
from sightline.probe.suite import OWN_PARTS, PARTS, Row, compared, markdown_of, protocol_of, published_rows
from sightline.runs import checkpoint
from sightline.runs.lineage import evaluated_sha256
from sightline.runs.stages import stage_of
from sightline.studies import launching
from sightline.types import Component
from sightline.verbs.common import assert_writable, config_of, load_document, reread, write_document, write_file
from sightline.verbs.fine_tuning import assert_same_source, from_scratch, from_source
from sightline.verbs.output import note, show_table
from sightline.verbs.probe_options import Options, build_probe, parted
from sightline.verbs.probe_scale import with_scale
from sightline.verbs.train import Terminal

__all__ = ["suite"]

METHODS = ("few_shot", "svm")
"""The one that refuses too few classes or samples comes first: the other takes minutes, and parts are learnt last."""
NAME = "suite"
_PARTS = "shapenet_part"


@dataclass(frozen=True)
class _Done:
    """A run's row of the table, and what its probes said."""

    row: Row
    probes: Mapping[str, Any]


@dataclass(frozen=True)
class _Parts:
    """How parts are learnt: the config, why weights do not fit it by run, and what the table says of it."""

    config: RunConfig
    misfits: Mapping[Path, str]
    protocol: Mapping[str, Any]


class _UnfinishedError(Exception):
    """Fine-tuning on parts did not come to its end; `code` is its exit code."""

    def __init__(self, out: Path, code: int) -> None:
        super().__init__(f"{out}: fine-tuning ended with exit code {code}; the same command goes on with it")
        self.code = code


def suite(options: Options) -> int:
    """Probe every run, fine-tune each on parts where a config says how, and write one table; the exit code.

    That of the first fine-tuning that did not come to its end, such as 130 after an interrupt.
    """
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
        raise UserError("probe --suite: writes suite.md and suite.json; say where with --out DIR")
    if len({run.resolve() for run in options.runs}) < len(options.runs):
        raise UserError("probe --suite: a run is given twice")
    overrides, arguments = parted(options.words)
    probes = _build(arguments)
    opened = [
        open_run(run, checkpoint=options.which, data=options.data, overrides=overrides, plugins=options.plugins)
        for run in options.runs
    ]
    for probed in opened:
        for probe in probes.values():
            assert_fits(probe, len(probed.data.train.indices))
    assert_writable(options.out / f"{NAME}.md", option="--out")
    parts = None if options.finetune is None else _parts_of(options, opened)
    done: list[_Done] = []
    for probed in opened:
        done.append(_row(options, probed, probes, arguments, parts))
        _write(done, options.out)
    code = 0 if parts is None else _fine_tune(options, opened, done, parts)
    if code == 0:
        _show(done, options)
    return code


def _row(
    options: Options, probed: Probed, probes: Mapping[str, Probe], arguments: Sequence[str], parts: _Parts | None
) -> _Done:
    """A run's row as far as its probes go, and why it will have no figure on parts, where it will have none."""
    probed, documents, metrics, chance = _probe(probed, probes, options)
    overrides, _ = parted(options.words)
    more = {"arguments": ", ".join(arguments)} if arguments else {}
    more |= {"overrides": ", ".join(overrides)} if overrides else {}
    misfit = "no --finetune CONFIG was given" if parts is None else parts.misfits.get(probed.run)
    row = Row(
        who=str(probed.run),
        source="this run",
        data=probed.data.config.data.name,
        protocol=protocol_of(probed, which=options.which, probes=probes) | more,
        metrics=metrics,
        chance=chance,
        remarks=(*probed.notes, *([] if misfit is None else [f"not fine-tuned on parts: {misfit}"])),
    )
    return _Done(row, documents)


def _fine_tune(options: Options, opened: Sequence[Probed], done: list[_Done], parts: _Parts) -> int:
    """Learn parts from scratch and from every run that fits, and add the figures to their rows; the exit code."""
    assert options.out is not None, "checked before anything ran"
    try:
        scratch = _fine_tuned(options, parts, None)
        for place, probed in enumerate(opened):
            if probed.run in parts.misfits:
                continue
            row = done[place].row
            figures = {**row.metrics, **_fine_tuned(options, parts, probed), **scratch}
            done[place] = dataclasses.replace(
                done[place], row=dataclasses.replace(row, metrics=figures, protocol={**row.protocol, **parts.protocol})
            )
            _write(done, options.out)
    except _UnfinishedError as error:
        note(f"probes of {len(done)} runs are done, the table is as far; {error}")
        return error.code
    return 0


def _build(words: Sequence[str]) -> dict[str, Probe]:
    """Both methods, each with those of the arguments that it takes. Raises UserError for one that none takes."""
    taken = {name: registry.probes.entry(Component(name)).arguments for name in METHODS}
    keys = {word: word.partition("=")[0].strip() for word in words}
    for word, key in keys.items():
        if not any(key in arguments for arguments in taken.values()):
            raise UserError(f"probe --suite: found {word!r}; neither {' nor '.join(METHODS)} has such an argument")
    return {name: build_probe(name, [word for word in words if keys[word] in taken[name]]) for name in METHODS}


def _probe(
    probed: Probed, probes: Mapping[str, Probe], options: Options
) -> tuple[Probed, dict[str, Any], dict[str, float], dict[str, float]]:
    """The run with what was noted of it, what each method says, all figures, and what guessing gets of each."""
    note(f"{probed.run}: features")
    set_backends(determinism=probed.config.train.determinism, cudnn=probed.config.train.cudnn)
    with start_world(device=options.device, timeout_s=probed.config.distributed.timeout_s) as world:
        probed = with_scale(probed, world)
        twins: Twins = twins_of(probed, world, num_random=options.num_random, cache=options.cache)
    documents: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    chance: dict[str, float] = {}
    for name, probe in probes.items():
        note(f"{probed.run}: {name}")
        comparison: Comparison = compare(probe, twins, probed.data.num_classes)
        documents[name] = comparison.document(probed)
        metrics |= comparison.metrics
        chance |= {figure: comparison.chance_of(figure) for figure in comparison.figures}
    return probed, documents, metrics, chance


def _fine_tuned(options: Options, parts: _Parts, probed: Probed | None) -> dict[str, float]:
    """Both instance mIoU on parts of the last weights, from a run or from scratch; finished runs are kept."""
    assert options.finetune is not None, "only called with a config"
    out = _place_of(options, probed)
    given = from_scratch(parts.config) if probed is None else [from_source(probed.checkpoint)]
    if probed is not None:
        assert_same_source(out, probed.checkpoint)
    note(f"parts: {'from scratch' if probed is None else probed.run} -> {out}")
    request = launching.TrainRequest(
        config=options.finetune,
        overrides=tuple(given),
        out=out,
        resume="auto",
        plugins=options.plugins,
        device=options.device,
    )
    code = launching.train(request, Terminal())
    if code:
        raise _UnfinishedError(out, code)
    final = load_document(out / "final.json")["metrics"]
    suffix = "_scratch" if probed is None else ""
    names = {PARTS: "instance_miou_all_parts", OWN_PARTS: "instance_miou"}
    return {f"{name}{suffix}": float(final[figure]) for name, figure in names.items()}


def _parts_of(options: Options, opened: Sequence[Probed]) -> _Parts:
    """How parts are learnt, and which runs' weights do not fit: known before anything is computed.

    Raises UserError for a config that would not start from a run, or not report what the table holds, and where the
    weights of no run fit.
    """
    assert options.finetune is not None, "only called with a config"
    config, _ = config_of(options.finetune, (), options.plugins)
    if config.init is None:
        raise UserError(
            f"--finetune {options.finetune}: has no init, so nothing would be taken from a run; add "
            "init: {from: RUN, modules: points, may_be_missing: [...]}"
        )
    names = [metric.name for metric in config.metrics]
    if "part_iou" not in names:
        raise UserError(
            f"--finetune {options.finetune}: metrics {', '.join(names)} report no instance_miou; add {{name: part_iou}}"
        )
    data = build_data(config)
    misfits = {}
    for probed in opened:
        source = from_source(probed.checkpoint)
        try:
            with kept_random_state():
                build(reread(options.finetune, [source]), World(), data=data)
        except CheckpointError as error:
            misfits[probed.run] = str(error).removeprefix("command line: init.from: ")
            note(f"{probed.run}: will not be fine-tuned on parts: {misfits[probed.run]}")
    if len(misfits) == len(opened):
        raise UserError(f"--finetune {options.finetune}: the weights of no run fit its model; of each it is told above")
    protocol = {
        "parts config": f"{options.finetune}, last weights, same seed",
        "parts data": config.data.name,
        "parts epochs": config.train.epochs,
        "parts clouds per step": config.train.batch_size,
        "parts points": stage_of(config, data.train.dataset.info)["num_points"],
    }
    return _Parts(config, misfits, protocol)


def _place_of(options: Options, probed: Probed | None) -> Path:
    """Where fine-tuning goes: other weights, or the same of another run, have another folder, and never old figures."""
    assert options.out is not None, "checked before anything ran"
    if probed is None:
        return options.out / "parts" / "scratch"
    text = f"{probed.checkpoint}\n{evaluated_sha256(checkpoint.find(probed.checkpoint))}"
    return options.out / "parts" / f"{probed.run.resolve().name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _others(done: Sequence[_Done]) -> list[Row]:
    """The published rows on our data, and those of parts where parts were learnt."""
    names = {each.row.data for each in done}
    names |= {_PARTS} if any(each.row.protocol.get("parts data") == _PARTS for each in done) else set()
    return published_rows(sorted(names))


def _write(done: Sequence[_Done], out: Path) -> None:
    rows, others = [each.row for each in done], _others(done)
    write_file(out / f"{NAME}.md", markdown_of(rows, others))
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
            for each in done
        ],
        "others": [
            {"who": r.who, "source": r.source, "data": r.data, "protocol": r.protocol, "metrics": r.metrics}
            for r in others
        ],
        "differences": [
            {"run": row.who, "other": r.who, "source": r.source, "differences": found}
            for row, r, found in compared(rows, others)
        ],
    }
    write_document(out / f"{NAME}.json", document)


def _show(done: Sequence[_Done], options: Options) -> None:
    """Every figure of every run, and of the others on the same data."""
    for each in (*(each.row for each in done), *_others(done)):
        figures = {name: value for name, value in each.metrics.items() if not name.endswith("_std")}
        rows = [[name, value, each.metrics.get(f"{name}_std")] for name, value in figures.items()]
        show_table(f"{each.who}, {each.data} ({each.source})", ("metric", "value", "std"), rows)
    assert options.out is not None, "checked before anything ran"
    note(f"table, protocols and their differences: {options.out / NAME}.md, {options.out / NAME}.json")
    write_document(options.json, load_document(options.out / f"{NAME}.json"))
