"""`sightline compress`: search the bits of a run's layers, fine-tune, pack, and report."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from sightline.commands.compress import (
    BudgetOptions,
    CompressReportOptions,
    CompressRunOptions,
    CompressSearchOptions,
    CompressSizeOptions,
    FineTuneOptions,
    ProtectionOptions,
)
from sightline.commands.fields import Command
from sightline.compression.policy import FP16, FP32, Policy, WeightFormat, policy_to_dict, read_policy, trained_policy
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.draw.progress_line import wants_live
from sightline.engine.device.numerics import set_backends
from sightline.engine.distributed import World, start_world
from sightline.engine.run_loading import OpenRun, open_run
from sightline.runs.output_files import assert_writable, write_document
from sightline.runs.run_files import assert_no_run
from sightline.runs.trained_weights import PACKED_FILE
from sightline.verbs.output import print_note, show_evaluation, show_table
from sightline.verbs.train import TerminalReporter
from sightline.workbench.compress.finetuning import FineTuning, assert_tunable
from sightline.workbench.compress.report import NAME, CompressionReport, compression_markdown
from sightline.workbench.compress.run_problem import RunProblem, make_simulator, untraced_problem
from sightline.workbench.compress.search.base import Search, SearchProgress, SearchResult, build_searches, search_rows
from sightline.workbench.compress.stages import POLICY, WORK, Compression, lock_folder, search_recorded
from sightline.workbench.compress.target import CompressionTarget
from sightline.workbench.series.loop import Entry, Results, StoppedError, run_series

REPORTED_RATIO = 0.1
"""Budget of a report that is given none."""
EVERY_S = 10.0
"""Seconds between two lines of progress if standard error is not a terminal."""


CompressOptions: TypeAlias = CompressRunOptions | CompressSearchOptions | CompressReportOptions | CompressSizeOptions


# --- the commands ----------------------------------------------------------------------------------------------------


def run(options: CompressRunOptions) -> int:
    """Search, fine-tune and pack, up to `--stop-after`; return 0, or the exit code of a stopped fine-tuning."""
    request, fine_tuning = None, None
    if options.stop_after is not None and options.json is not None:
        raise UserError(f"--json: has no use with --stop-after {options.stop_after}, before the figures; leave it out")
    if options.ratio is not None or options.num_bytes is not None:
        if options.policy is not None:
            raise UserError("--policy: is used instead of a search; leave out --ratio and --bytes, the budget of one")
        target = _parse_target(options)
        load_plugins(options.plugins)  # one of them may hold the search
        ((name, method),) = build_searches([options.method], options.arguments, seed=options.seed).items()
        request = target, name, method
    else:
        if options.stop_after == "search":
            raise UserError(
                "--stop-after search: needs the budget of a search; give --ratio or --bytes, and no --policy"
            )
        for group in (BudgetOptions, ProtectionOptions):
            _assert_unused(options, group, "is about a search, and none is made")
        _assert_no_words(options.arguments)
    if request is not None or options.policy is not None:
        fine_tuning = _parse_optional_fine_tuning(options)
    with start_world(device=options.device) as world:
        opened = _open(options, world)
        policy = _get_policy(options, opened) if request is None else {}
        job = Compression(opened, options.out, TerminalReporter())
        if fine_tuning is not None:
            assert_tunable(opened, fine_tuning)
        if request is not None:
            untraced_problem(make_simulator(opened), request[0])
        try:
            _run_stages(options, job, opened, policy, request, fine_tuning)
        except StoppedError as error:
            print_note("fine-tuning was stopped; repeat the command to resume it")
            return error.code
        return 0


def _run_stages(
    options: CompressRunOptions,
    job: Compression,
    opened: OpenRun,
    policy: Policy,
    request: tuple[CompressionTarget, str, Search] | None,
    fine_tuning: FineTuning | None,
) -> None:
    """Search, fine-tune and pack in the locked folder, as far as the options say."""
    with job.lock():
        packing: dict[str, Any] = {}
        if request is not None:
            policy, packing = _search_policy(options, job, *request)
        if options.stop_after == "search":
            policy_file = options.out / WORK / POLICY
            return print_note(f"found: {policy_file}; the command without --stop-after goes on from it")
        finetuned = None if fine_tuning is None else job.finetune(policy, fine_tuning)
        if options.stop_after == "finetune":
            return print_note(f"fine-tuned: {finetuned}; the command without --stop-after packs it")
        document = job.pack(policy, finetuned=finetuned, num_batches=options.batch_norm, **packing)
    file, sizes = options.out / PACKED_FILE, document["ratios"]
    show_evaluation(document, title=f"{file} on {document['data']['split']}", dataset=opened.data.test.dataset)
    print_note(
        f"{file}: {document['file_bytes']:,} bytes of {document['float_bytes']:,} in float32: "
        f"{sizes['file']:.4f} (codes alone {sizes['weights']:.4f}, with codebooks {sizes['codebook']:.4f})"
    )
    print_note(
        "a codebook makes the file small, not the arithmetic fast: the model runs at the speed of the float model"
    )
    print_note(f"run directory: {options.out}")
    return write_document(options.json, document)


def _search_policy(
    options: CompressRunOptions, job: Compression, target: CompressionTarget, name: str, method: Search
) -> tuple[Policy, dict[str, Any]]:
    """Search the policy, and print the result; return it with what packing is told of it."""
    provenance: dict[str, Any] = {"method": (name, *options.arguments), "overrides": options.overrides}
    provenance |= {"tuning": options.echo(FineTuneOptions)}
    result, problem = job.search(target, name, method, other_options=provenance, report=_ProgressReport(name))
    _show_searches([result], problem)
    budget = problem.search_problem.budget_bytes
    about = {"search": search_rows([result])[0], "budget_bytes": budget, **problem.costs(result.policy)}
    return result.policy, {"about": about, "at_most": budget if target.on == "file" else None}


def search(options: CompressSearchOptions) -> int:
    """Search by one or several methods, and write the best policy to policy.json."""
    load_plugins(options.plugins)  # one of them may hold a search
    names = registry.searches.names() if options.method == "all" else options.method.split(",")
    _assert_no_words(options.overrides, but="model.")
    built = build_searches(names, options.arguments, seed=options.seed)
    target, out = _parse_target(options), options.out
    assert_no_run(out)
    assert_writable(out / POLICY, option="--out")
    with start_world(device=options.device) as world:
        opened = _open(options, world)
        untraced_problem(make_simulator(opened), target)
        with lock_folder(out):
            problem, entries = RunProblem(opened, target), []
            for name, method in built.items():
                file, progress = f"{name}.{POLICY}", _ProgressReport(name)
                work = partial(search_recorded, problem, name, method, folder=out, file=file, report=progress)
                entries.append(Entry(name, f"search {name}", out / file, work))

            def assert_any(results: Results[str]) -> Results[str]:
                if len(results.failed) == len(entries):
                    raise next(iter(results.failed.values()))
                return results

            results, code = run_series(entries, assert_any, TerminalReporter())
            finished = list(results.finished.values())
            best = min(finished, key=lambda result: (result.loss, result.bytes))
            write_document(out / POLICY, policy_to_dict(best.policy))
            _show_searches(finished, problem)
    document = {
        "budget_bytes": problem.search_problem.budget_bytes,
        "best": best.method,
        "searches": search_rows(finished),
    }
    write_document(out / "search.json", document)
    write_document(options.json, document)
    print_note(f"written: {out / POLICY}, found by '{best.method}'; {out}/search.json")
    are_refusals_expected = options.method == "all" and all(
        isinstance(error, UserError) for error in results.failed.values()
    )
    return 0 if are_refusals_expected else code


def report(options: CompressReportOptions) -> int:
    """Compute the missing rows and print the table; return 0, or the exit code of a fine-tuning that was stopped."""
    target = _parse_target(options, ratio=REPORTED_RATIO)
    fine_tuning = _parse_fine_tuning(options)
    assert_no_run(options.out)
    with start_world(device=options.device) as world:
        opened = _open(options, world)
        table = CompressionReport(
            opened,
            options.out,
            target,
            fine_tuning,
            method=(options.method, *options.arguments),
            num_batches=options.batch_norm,
        )
        with lock_folder(options.out):
            progress = _ProgressReport(options.method)
            document, code = table(TerminalReporter(), num_seeds=options.seeds, report=progress)
        sys.stdout.write(compression_markdown(document))
        print_note(f"written: {options.out / NAME}.json, {options.out / NAME}.md")
        write_document(options.json, document)
    return code


def size(options: CompressSizeOptions) -> int:
    """Print the bytes of packed files without writing them."""
    _assert_no_words(options.overrides, but="model.")
    with start_world(device="cpu") as world:
        opened = _open(options, world)
        chosen: Policy = {} if options.policy is None else _read_policy(options.policy, opened)
        simulated = make_simulator(opened, chosen)
    formats = [FP32, FP16, *(WeightFormat("codebook", bits) for bits in range(8, 0, -1))]
    titles = ["float32", "fp16", *(f"{bits} bits" for bits in range(8, 0, -1))]
    policies: dict[str, Policy] = {
        title: dict.fromkeys(simulated.names, weight_format)
        for title, weight_format in zip(titles, formats, strict=True)
    }
    if options.policy is not None:
        policies = {str(options.policy): chosen}
    sizes = {name: simulated.sizes(policy) for name, policy in policies.items()}
    rows = [(name, row.file_bytes, *row.ratios) for name, row in sizes.items()]
    title = f"{simulated.base_bytes():,} bytes in float32; {len(simulated.names)} layers can be quantised"
    show_table(title, ("policy", "bytes of the file", "codes", "with codebooks", "file"), rows)
    write_document(
        options.json, {name: {"bytes": row.file_bytes, **row.ratios._asdict()} for name, row in sizes.items()}
    )
    return 0


# --- options ---------------------------------------------------------------------------------------------------------


def _open(options: CompressOptions, world: World) -> OpenRun:
    """Open the run, with the words that change its model. Raises UserError unless exactly one is given."""
    if world.size > 1:
        raise UserError("compress: runs in one process; start it without a launcher")
    if len(options.runs) != 1:
        raise UserError(f"compress: takes one run directory, {len(options.runs)} are given")
    opened = open_run(options.runs[0], checkpoint=options.checkpoint, plugins=options.plugins, world=world)
    for line in opened.notes:
        print_note(f"warning: {line}")
    if model_overrides := [word for word in options.overrides if word.startswith("model.")]:
        config = read_config(opened.path / "config.yaml", model_overrides)
        opened = open_run(opened.files or opened.path, config=config, checkpoint=options.checkpoint, world=world)
    set_backends(opened.config.train)
    return opened


def _parse_target(options: BudgetOptions, *, ratio: float | None = None) -> CompressionTarget:
    """Convert to CompressionTarget; `ratio` is the budget of none. Raises UserError naming an invalid option."""
    if options.ratio is not None or options.num_bytes is not None:
        ratio = options.ratio
    if (ratio is None) == (options.num_bytes is None):
        raise UserError("compress: give either --ratio or --bytes")
    if ratio is not None and not 0 < ratio <= 1:
        raise UserError(f"--ratio {ratio}: give a number above 0, at most 1")
    values = options.echo(BudgetOptions)
    if isinstance(options, ProtectionOptions):
        values |= options.echo(ProtectionOptions)
        if options.protect_bits not in (*range(1, 9), 16, 32):
            raise UserError(f"--protect-bits {options.protect_bits}: give 1 to 8, 16, or 32")
    values |= {"ratio": ratio, "bits": _parse_bits(options.bits, min_bits=2 if options.kind == "linear" else 1)}
    return CompressionTarget(**{key: value for key, value in values.items() if key != "method"})


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


def _parse_fine_tuning(
    options: CompressRunOptions | CompressReportOptions, *, is_distilled: bool | None = None
) -> FineTuning:
    """Convert to FineTuning. Raises UserError for numbers that would train nothing."""
    if not 0 < options.rate <= 100:
        raise UserError(f"--rate {options.rate}: a factor of the run's learning rate, above 0, at most 100")
    if options.epochs == 0:
        raise UserError("--epochs 0: trains nothing; without --stop-after finetune, it packs without fine-tuning")
    return FineTuning(
        options.epochs,
        options.rate,
        is_distilled=is_distilled,
        overrides=options.overrides,
        plugins=options.plugins,
        device=options.device,
    )


def _parse_optional_fine_tuning(options: CompressRunOptions) -> FineTuning | None:
    """Convert to FineTuning, or None for --epochs 0. Raises UserError for another option that needs a fine-tuning."""
    if options.epochs != 0 or options.stop_after == "finetune":
        return _parse_fine_tuning(options, is_distilled=options.is_distilled)
    _assert_unused(options, FineTuneOptions, "is about fine-tuning, and --epochs 0 has none", except_for="--epochs")
    _assert_no_words(options.overrides, but="model.")
    return None


def _get_policy(options: CompressRunOptions, opened: OpenRun) -> Policy:
    """Read the policy of a file, or that of a run which was trained with one and is only packed."""
    if options.policy is not None:
        return _read_policy(options.policy, opened)
    if opened.config.compress is None:
        raise UserError("compress: give either --ratio or --bytes, the budget of a search, or a --policy FILE")
    is_done = f"{opened.path} was trained with quantised weights already"
    _assert_unused(options, FineTuneOptions, is_done)
    _assert_no_words(options.overrides, but="model.")
    if options.stop_after is not None:
        raise UserError(f"--stop-after {options.stop_after}: {is_done}; leave it out, to pack them")
    return trained_policy(opened.config)


def _read_policy(path: Path, opened: OpenRun) -> Policy:
    """Read a policy file; as in a config, parameters that it does not name are not quantised.

    Raises UserError for a run that cannot be quantised, ConfigError for a policy of another model.
    """
    make_simulator(opened)
    return read_policy(path, [name for name, _ in opened.model.named_parameters()])


def _assert_unused(options: Command, group: type[Command], reason: str, *, except_for: str = "") -> None:
    """Raise UserError for an option of a group that has no use here."""
    for flag in options.list_flags(group):
        if flag != except_for:
            raise UserError(f"{flag}: {reason}; leave it out")


def _assert_no_words(words: Sequence[str], *, but: str = "") -> None:
    """Raise UserError for words that a step would ignore, but those that begin with `but`."""
    for word in words:
        if not but or not word.startswith(but):
            raise UserError(f"compress: found {word!r}, which this step does not use; leave it out")


# --- output ----------------------------------------------------------------------------------------------------------


class _ProgressReport:
    """Reporter of a search's progress: evaluations and time left, first after the float model's evaluation."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._is_live = wants_live(sys.stderr, os.environ)
        self._printed_s = -math.inf

    def __call__(self, progress: SearchProgress) -> None:
        now, is_last = time.monotonic(), progress.num_evaluated >= progress.at_most
        if now - self._printed_s < (0.1 if self._is_live else EVERY_S) and not is_last:
            return
        self._printed_s = now
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        text = f"search {self._method}: {progress.num_evaluated} of at most {progress.at_most} evaluations, "
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
    budget, on = problem.search_problem.budget_bytes, problem.target.on
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
