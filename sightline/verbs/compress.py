"""`sightline compress`: search the bits of a run's layers, fine-tune, pack, and report."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from sightline.commands.fields import Command
from sightline.commands.run import BudgetOptions, CompressOptions, FineTuneOptions, PackOptions, ProtectionOptions
from sightline.config import read_config
from sightline.config.reader import parse_component
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.engine.device import set_backends
from sightline.engine.distributed import World, start_world
from sightline.engine.run_loading import OpenRun, open_run
from sightline.runs.run_directory import assert_writable, write_document
from sightline.runs.trained_weights import PACKED_FILE
from sightline.training.progress import wants_live
from sightline.verbs.output import print_note, show_evaluation, show_table
from sightline.verbs.train import TerminalReporter
from sightline.workbench.compress.packing import trained_policy
from sightline.workbench.compress.policy import FP16, FP32, WeightFormat, policy_to_dict, read_policy
from sightline.workbench.compress.policy_simulator import BudgetOn
from sightline.workbench.compress.run_problem import CompressionOptions, RunProblem, make_simulator, untraced_problem
from sightline.workbench.compress.search.base import Search, SearchProgress, SearchResult
from sightline.workbench.study.compression import (
    WORK,
    Compression,
    FineTuning,
    assert_no_run,
    assert_tunable,
    lock_folder,
    run_searches,
)
from sightline.workbench.study.compression_report import (
    NAME,
    CompressionReport,
    compression_markdown,
    search_rows,
)
from sightline.workbench.study.study_runs import UnfinishedError

POLICY = "policy.json"
REPORTED_RATIO = 0.1
"""Budget of a report that is given none."""
RECORD = "evaluations.jsonl"
EVERY_S = 10.0
"""Seconds between two lines of progress if standard error is not a terminal."""


def _assert_without(options: CompressOptions, *, arguments: bool = False, overrides: bool = False) -> None:
    """Raise UserError for `words` that a step would ignore; `model.*` is allowed, as it changes the run itself."""
    ignored = [*(options.arguments if arguments else ())]
    ignored += [word for word in options.overrides if overrides and not word.startswith("model.")]
    if ignored:
        raise UserError(f"compress: found {ignored[0]!r}, which this step does not use; leave it out")


def _open(options: CompressOptions, world: World) -> OpenRun:
    """Open the run. Raises UserError unless exactly one is given."""
    if world.size > 1:
        raise UserError("compress: runs in one process; start it without a launcher")
    if len(options.runs) != 1:
        raise UserError(f"compress: takes one run directory, {len(options.runs)} are given")
    run = open_run(options.runs[0], checkpoint=options.checkpoint, plugins=options.plugins, world=world)
    for line in run.notes:
        print_note(f"warning: {line}")
    if model_overrides := [word for word in options.overrides if word.startswith("model.")]:
        config = read_config(run.path / "config.yaml", model_overrides)
        run = open_run(run.files or run.path, config=config, checkpoint=options.checkpoint, world=world)
    set_backends(run.config.train)
    return run


def _parse_budget(options: CompressOptions, *, counted: BudgetOn = "file") -> CompressionOptions:
    """Convert to CompressionOptions. Raises UserError naming the option if a value is invalid."""
    counted = options.on or counted  # type: ignore[assignment]
    choices = (("on", counted, get_args(BudgetOn)), ("kind", options.kind, ("codebook", "linear")))
    for option, word, valid in choices:
        if word not in valid:
            raise UserError(f"--{option} {word}: not a valid choice; options: {', '.join(valid)}")
    if (options.ratio is None) == (options.num_bytes is None):
        raise UserError("compress: give either --ratio or --bytes")
    if options.ratio is not None and not 0 < options.ratio <= 1:
        raise UserError(f"--ratio {options.ratio}: give a number above 0, at most 1")
    if options.activations is not None and not 2 <= options.activations <= 8:
        raise UserError(f"--activations {options.activations}: give 2 to 8 bits")
    if options.protect_bits not in (*range(1, 9), 16, 32):
        raise UserError(f"--protect-bits {options.protect_bits}: give 1 to 8, 16, or 32")
    protect: Any = {"first": options.protect_ends, "last": options.protect_ends, "names": options.protect}
    protect["bits"] = options.protect_bits
    return CompressionOptions(
        ratio=options.ratio,
        num_bytes=options.num_bytes,
        budget_on=counted,
        bits=_parse_bits(options.bits, min_bits=2 if options.kind == "linear" else 1),
        kind=options.kind,  # type: ignore[arg-type]
        per_channel=options.per_channel,
        protect=protect,
        calibration=options.calibration,
        activations=options.activations,
        seed=options.seed,
    )


def _parse_fine_tuning(options: CompressOptions) -> FineTuning:
    """Convert to FineTuning. Raises UserError for numbers that would train nothing."""
    if not 0 < options.rate <= 100:
        raise UserError(f"--rate {options.rate}: a factor of the run's learning rate, above 0, at most 100")
    if options.epochs == 0:
        raise UserError("--epochs 0: trains nothing; 'compress RUN --epochs 0' packs without fine-tuning")
    return FineTuning(
        options.epochs,
        options.rate,
        is_distilled=options.is_distilled,
        overrides=options.overrides,
        plugins=options.plugins,
        device=options.device,
    )


def _parse_optional_fine_tuning(options: CompressOptions) -> FineTuning | None:
    """Convert to FineTuning, or None for --epochs 0. Raises UserError for another option that needs a fine-tuning."""
    if options.epochs != 0 or options.stop_after == "finetune":
        return _parse_fine_tuning(options)
    _assert_unused(options, FineTuneOptions, "is about fine-tuning, and --epochs 0 has none", except_for="--epochs")
    _assert_without(options, overrides=True)
    return None


def compress(options: CompressOptions) -> int:
    """Search, fine-tune and pack, up to `--stop-after`; return 0, or the exit code of a stopped fine-tuning."""
    if options.report is not None:
        for flag, value in (("--stop-after", options.stop_after), ("--policy", options.policy)):
            if value is not None:
                raise UserError(f"{flag}: has no use in a report; leave it out")
    if options.seeds > 1 and options.report != "steps":
        raise UserError("--seeds: is for the rows of --report steps; leave it out")
    if options.stop_after == "size":
        return _show_sizes(options)
    if options.stop_after is not None and options.json is not None:
        raise UserError(f"--json: has no use with --stop-after {options.stop_after}, before the figures; leave it out")
    if options.out is None:
        raise UserError("compress: writes a run directory; give its folder with --out DIR")
    if options.report is not None:
        return (_compare_searches if options.report == "searches" else _compare_steps)(options, options.out)
    if options.ratio is not None or options.num_bytes is not None:
        if options.policy is not None:
            raise UserError("--policy: is used instead of a search; leave out --ratio and --bytes, the budget of one")
        return _search_and_pack(options, options.out)
    return _quantise_and_pack(options, options.out)


@dataclass
class _Work:
    """Compression in progress: `policy`, `finetuned` and `packing` are what stages leave to later ones."""

    options: CompressOptions
    out: Path
    run: OpenRun
    job: Compression
    fine_tuning: FineTuning | None
    search: tuple[CompressionOptions, str, Search] | None = None
    policy: Mapping[str, WeightFormat] = field(default_factory=dict)
    finetuned: Path | None = None
    packing: dict[str, Any] = field(default_factory=dict)


def _search(work: _Work) -> str:
    """Search the policy, unless one is given."""
    if work.search is None:
        return ""
    compression, name, method = work.search
    options, folder = work.options, work.out / WORK
    provenance: dict[str, Any] = {"method": (name, *options.arguments), "overrides": options.overrides}
    provenance |= {"tuning": options.echo(FineTuneOptions)}
    result, problem = work.job.search(compression, name, method, given=provenance, report=_ProgressReport(name))
    _show_searches([result], problem)
    work.policy = problem.with_quantised_inputs(result.policy)
    budget_bytes = problem.problem.budget_bytes
    about = {"search": search_rows([result])[0], "budget_bytes": budget_bytes, **problem.costs(work.policy)}
    work.packing = {"about": about, "at_most": budget_bytes if compression.budget_on == "file" else None}
    return f"found: {folder / POLICY}; the command without --stop-after goes on from it"


def _finetune(work: _Work) -> str:
    """Fine-tune the run with quantised weights, if that is asked."""
    if work.fine_tuning is not None:
        work.finetuned = work.job.finetune(work.policy, work.fine_tuning)
    return f"fine-tuned: {work.finetuned}; the command without --stop-after packs it"


def _pack(work: _Work) -> str:
    """Pack the run, and print its figures and sizes."""
    options, file = work.options, work.out / PACKED_FILE
    document = work.job.pack(work.policy, finetuned=work.finetuned, num_batches=options.batch_norm, **work.packing)
    show_evaluation(document, title=f"{file} on {document['data']['split']}", dataset=work.run.data.test.dataset)
    sizes = document["ratios"]
    print_note(
        f"{file}: {document['file_bytes']:,} bytes of {document['float_bytes']:,} in float32: "
        f"{sizes['file']:.4f} (codes alone {sizes['weights']:.4f}, with codebooks {sizes['codebook']:.4f})"
    )
    print_note(
        "a codebook makes the file small, not the arithmetic fast: the model runs at the speed of the float model"
    )
    print_note(f"run directory: {work.out}")
    write_document(options.json, document)
    return ""


STAGES: tuple[tuple[str, Callable[[_Work], str]], ...] = (("search", _search), ("finetune", _finetune), ("pack", _pack))
"""Stages of a compression in their order: name for `--stop-after`, and the work, which returns a note for its end."""


def _run_stages(work: _Work) -> int:
    """Run the stages up to `--stop-after` in the locked folder; return 0, or the code of a stopped fine-tuning."""
    with work.job.lock():
        for name, stage in STAGES:
            try:
                note = stage(work)
            except UnfinishedError as error:
                return _print_stopped(error)
            if work.options.stop_after == name:
                print_note(note)
                break
    return 0


def _search_and_pack(options: CompressOptions, out: Path) -> int:
    compression = _parse_budget(options)
    load_plugins(options.plugins)  # one of them may hold the search
    ((name, built),) = _build_searches([options.method], options.arguments, seed=options.seed).items()
    fine_tuning = _parse_optional_fine_tuning(options)
    with start_world(device=options.device) as world:
        run = _open(options, world)
        job = Compression(run, out, TerminalReporter())
        if fine_tuning is not None:
            assert_tunable(run, fine_tuning)
        untraced_problem(make_simulator(run), compression)
        return _run_stages(_Work(options, out, run, job, fine_tuning, search=(compression, name, built)))


def _quantise_and_pack(options: CompressOptions, out: Path) -> int:
    """Quantise by a policy, or pack a run that was trained with quantised weights; nothing is searched."""
    if options.stop_after == "search":
        raise UserError("--stop-after search: needs the budget of a search; give --ratio or --bytes, and no --policy")
    _assert_without(options, arguments=True)
    for group in (BudgetOptions, ProtectionOptions):
        _assert_unused(options, group, "is about a search, and none is made")
    fine_tuning = None if options.policy is None else _parse_optional_fine_tuning(options)
    with start_world(device=options.device) as world:
        run = _open(options, world)
        if options.policy is not None:
            policy = _read_policy(options.policy, run)
        elif run.config.compress is None:
            raise UserError("compress: give either --ratio or --bytes, the budget of a search, or a --policy FILE")
        else:
            is_done = f"{run.path} was trained with quantised weights already"
            _assert_unused(options, FineTuneOptions, is_done)
            _assert_without(options, overrides=True)
            if options.stop_after is not None:
                raise UserError(f"--stop-after {options.stop_after}: {is_done}; leave it out, to pack them")
            policy = trained_policy(run.config)
        job = Compression(run, out, TerminalReporter())
        return _run_stages(_Work(options, out, run, job, fine_tuning, policy=policy))


def _assert_unused(options: CompressOptions, group: type[Command], reason: str, *, except_for: str = "") -> None:
    """Raise UserError for an option of a group that has no use here."""
    for flag in options.list_flags(group):
        if flag != except_for:
            raise UserError(f"{flag}: {reason}; leave it out")


def _compare_searches(options: CompressOptions, out: Path) -> int:
    """Search by one or several methods, and write the best policy to policy.json."""
    for group in (FineTuneOptions, PackOptions):
        _assert_unused(options, group, "is about what follows a search, and a report of searches ends there")
    load_plugins(options.plugins)  # one of them may hold a search
    names = registry.searches.names() if options.method == "all" else options.method.split(",")
    _assert_without(options, overrides=True)
    built = _build_searches(names, options.arguments, seed=options.seed)
    compression = _parse_budget(options)
    assert_no_run(out)
    assert_writable(out / POLICY, option="--out")
    with start_world(device=options.device) as world, contextlib.ExitStack() as stack:
        run = _open(options, world)
        untraced_problem(make_simulator(run), compression)
        stack.enter_context(lock_folder(out))
        problem, results = RunProblem(run, compression), []
        for name, method in built.items():
            try:
                (result,), _ = run_searches(problem, {name: method}, out / RECORD, report=_ProgressReport(name))
            except UserError as error:
                if len(built) == 1:
                    raise
                print_note(f"search '{name}' left out: {error}")
                continue
            write_document(out / f"{name}.{POLICY}", policy_to_dict(problem.with_quantised_inputs(result.policy)))
            results.append(result)
        if not results:
            raise UserError("compress --report searches: no method could be run on this run")
        best = min(results, key=lambda result: (result.loss, result.bytes))
        write_document(out / POLICY, policy_to_dict(problem.with_quantised_inputs(best.policy)))
        _show_searches(results, problem)
    document = {"budget_bytes": problem.problem.budget_bytes, "best": best.method, "searches": search_rows(results)}
    write_document(out / "search.json", document)
    write_document(options.json, document)
    print_note(f"written: {out / POLICY}, found by '{best.method}'; {out}/search.json")
    return 0


def _show_sizes(options: CompressOptions) -> int:
    """Print the bytes of packed files without writing them."""
    if options.out is not None:
        raise UserError("--out: has no use with --stop-after size, which writes nothing; leave it out")
    for group in (BudgetOptions, ProtectionOptions, FineTuneOptions, PackOptions):
        _assert_unused(options, group, "has no use with --stop-after size, which writes nothing")
    _assert_without(options, arguments=True, overrides=True)
    with start_world(device="cpu") as world:
        run = _open(options, world)
        chosen = {} if options.policy is None else _read_policy(options.policy, run)
        simulated = make_simulator(run, chosen)
    if options.policy is None:
        policies = {"float32": dict.fromkeys(simulated.names, FP32), "fp16": dict.fromkeys(simulated.names, FP16)}
        for bits in range(8, 0, -1):
            policies[f"{bits} bits"] = dict.fromkeys(simulated.names, WeightFormat("codebook", bits))
    else:
        policies = {str(options.policy): chosen}
    sizes = {name: simulated.sizes(bits_by_layer) for name, bits_by_layer in policies.items()}
    rows = [(name, row.file_bytes, *row.ratios) for name, row in sizes.items()]
    title = f"{simulated.base_bytes():,} bytes in float32; {len(simulated.names)} layers can be quantised"
    show_table(title, ("policy", "bytes of the file", "codes", "with codebooks", "file"), rows)
    write_document(
        options.json, {name: {"bytes": row.file_bytes, **row.ratios._asdict()} for name, row in sizes.items()}
    )
    return 0


def _compare_steps(options: CompressOptions, out: Path) -> int:
    """Compute the missing rows and print the table; return 0, or the exit code of a fine-tuning that was stopped."""
    _assert_unused(options, ProtectionOptions, "has no use in a report of steps")
    if options.is_distilled is not None:
        raise UserError("--distil: a report of steps has a row of each; leave it out")
    if options.ratio is None and options.num_bytes is None:
        options = dataclasses.replace(options, ratio=REPORTED_RATIO)
    compression, fine_tuning = _parse_budget(options, counted="weights"), _parse_fine_tuning(options)
    assert_no_run(out)
    with start_world(device=options.device) as world, contextlib.ExitStack() as stack:
        run = _open(options, world)
        study = CompressionReport(
            run,
            out,
            compression,
            fine_tuning,
            method=(options.method, *options.arguments),
            num_batches=options.batch_norm,
        )
        stack.enter_context(lock_folder(out))
        try:
            document = study(TerminalReporter(), num_seeds=options.seeds, report=_ProgressReport(options.method))
        except UnfinishedError as error:
            return _print_stopped(error)
    sys.stdout.write(compression_markdown(document))
    print_note(f"written: {out / NAME}.json, {out / NAME}.md")
    write_document(options.json, document)
    return 0


def _print_stopped(error: UnfinishedError) -> int:
    """Print why a fine-tuning is not finished, and return its exit code."""
    if error.code == 1:
        print_note("fine-tuning was not started: see the errors of the checks; 'checks.skip=[CODE]' leaves one out")
    else:
        print_note("fine-tuning was stopped; repeat the command to resume it")
    return error.code


def _read_policy(path: Path, run: OpenRun) -> dict[str, WeightFormat]:
    """Read a policy file; as in a config, parameters that it does not name are not quantised.

    Raises UserError for a run that cannot be quantised, ConfigError for a policy of another model.
    """
    make_simulator(run)
    return read_policy(path, [name for name, _ in run.model.named_parameters()])


def _parse_bits(text: str, *, min_bits: int) -> tuple[int, ...]:
    """Parse bits such as 2,4 or 1-8 into sorted numbers from `min_bits` on. Raises UserError for another text."""
    first, dash, last = text.partition("-")
    try:
        bits = sorted({*range(int(first), int(last) + 1)} if dash else {int(part) for part in text.split(",")})
    except ValueError:
        bits = []
    if not bits or bits[0] < 1 or bits[-1] > 8:
        raise UserError(f"--bits {text}: give whole numbers from 1 to 8, as 2,4 or 1-8")
    if bits[-1] < min_bits:
        raise UserError(f"--bits {text}: linear weights take 2 bits at least")
    return tuple(number for number in bits if number >= min_bits)


def _build_searches(names: Sequence[str], arguments: Sequence[str], *, seed: int) -> dict[str, Search]:
    """Build the searches of these names; with several, each gets only the arguments that it has."""
    built = {}
    for name in names:
        argument_names = registry.searches.entry(parse_component(registry.searches, name, ())).arguments
        values = [value for value in arguments if len(names) == 1 or value.partition("=")[0].strip() in argument_names]
        if "seed" in argument_names and not any(value.startswith("seed=") for value in values):
            values.append(f"seed={seed}")
        component = parse_component(registry.searches, name, values)
        built[component.name] = registry.searches.build(component, facts={})
    return built


class _ProgressReport:
    """Reporter of a search's progress: evaluations and time left, first after the float model's evaluation."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._is_live = wants_live(sys.stderr, os.environ)
        self._printed_s = -math.inf

    def __call__(self, progress: SearchProgress) -> None:
        now, is_last = time.monotonic(), progress.num_asked >= progress.at_most
        if now - self._printed_s < (0.1 if self._is_live else EVERY_S) and not is_last:
            return
        self._printed_s = now
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        text = f"search {self._method}: {progress.num_asked} of at most {progress.at_most} evaluations, "
        text += f"at most {minutes}:{seconds:02d} left"
        if self._is_live:
            sys.stderr.write(f"\r{text}\x1b[K" + ("\n" if is_last else ""))
            sys.stderr.flush()
        else:
            print_note(text)


def _show_searches(results: Sequence[SearchResult], problem: RunProblem) -> None:
    """Print a row per search, the budget, and the searches that beat ddpg, the search of HAQ."""
    columns = ("method", "loss", "bytes", "evaluations", "new evaluations", "seconds", "overhead seconds")
    rows = search_rows(results)
    budget, on = problem.problem.budget_bytes, problem.asked.budget_on
    title = f"loss on {problem.subject}; budget {budget:,} bytes ({on}, {budget / problem.base_bytes:.4f} of float32)"
    show_table(title, columns, [[row[name] for name in columns] for row in rows])
    if problem.unused:
        print_note(
            f"{len(problem.unused)} of {len(problem.names)} layers do not affect the loss and get the fewest bits: "
            f"{', '.join(problem.unused)}"
        )
    names = [row["method"] for row in rows]
    if "ddpg" in names[1:]:
        print_note(f"ddpg, the search of HAQ, was beaten by: {', '.join(names[: names.index('ddpg')])}")
