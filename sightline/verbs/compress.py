"""`sightline compress`: search the bits of a run's layers, fine-tune, pack, and report."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sightline import registry
from sightline.compress.comparison import search_rows
from sightline.compress.drawing import bits_svg, pareto_svg
from sightline.compress.policy import FP16, FP32, WeightFormat, policy_from_dict, policy_to_dict, read_policy
from sightline.compress.policy_simulator import BudgetOn
from sightline.compress.run_problem import CompressionOptions, RunProblem, make_simulator, untraced_problem
from sightline.compress.search.base import Search, SearchProgress, SearchResult
from sightline.config import read_config
from sightline.config.component_arguments import parse_component
from sightline.engine.distributed import start_world
from sightline.engine.precision import set_backends
from sightline.engine.progress import wants_live
from sightline.engine.run_loading import OpenRun, open_run
from sightline.errors import UserError
from sightline.plugins import load_plugins
from sightline.runs.trained_weights import PACKED_FILE
from sightline.schema import suggest
from sightline.studies.compression import (
    WORK,
    Compression,
    FineTuning,
    assert_no_run,
    assert_tunable,
    lock_folder,
    run_searches,
)
from sightline.studies.compression_report import NAME, CompressionReport, compression_markdown
from sightline.studies.study_runs import UnfinishedError
from sightline.verbs.common import assert_writable, write_document, write_file
from sightline.verbs.output import print_note, show_evaluation, show_table
from sightline.verbs.train import TerminalReporter

__all__ = [
    "Budget",
    "CompressTarget",
    "FineTuneOptions",
    "apply",
    "compress",
    "finetune",
    "pack",
    "report",
    "search",
    "size",
]

POLICY = "policy.json"
MAX_DRAWN_RATIO = 1.2
"""Largest size of a drawn policy, relative to the budget; larger ones mostly quantise a single layer."""
RECORD = "evaluations.jsonl"
STEPS = ("run", "search", "apply", "finetune", "pack", "size", "report")
EVERY_S = 10.0
"""Seconds between two lines of progress if standard error is not a terminal."""


@dataclass(frozen=True)
class CompressTarget:
    """Run to compress; `words` are overrides of its fine-tuning (with a dot) and arguments of the search."""

    runs: tuple[Path, ...]
    words: tuple[str, ...]
    checkpoint: str
    plugins: tuple[Path, ...]
    device: str

    @property
    def overrides(self) -> tuple[str, ...]:
        return tuple(word for word in self.words if "." in word.partition("=")[0])

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(word for word in self.words if word not in self.overrides)

    def assert_without(self, *, arguments: bool = False, overrides: bool = False) -> None:
        """Raise UserError for `words` that a step would ignore; `model.*` is allowed, as it changes the run itself."""
        ignored = [*(self.arguments if arguments else ())]
        ignored += [word for word in self.overrides if overrides and not word.startswith("model.")]
        if ignored:
            raise UserError(f"compress: found {ignored[0]!r}, which this step does not use; leave it out")

    def open(self, world: Any) -> OpenRun:
        """Open the run. Raises UserError unless exactly one is given."""
        if world.size > 1:
            raise UserError("compress: runs in one process; start it without a launcher")
        for path in self.runs if len(self.runs) > 1 else ():
            if not path.exists():
                raise UserError(f"compress: '{path}' is neither a step nor a run directory{suggest(str(path), STEPS)}")
        if len(self.runs) != 1:
            raise UserError(f"compress: takes one run directory, {len(self.runs)} are given")
        run = open_run(self.runs[0], checkpoint=self.checkpoint, plugins=self.plugins, world=world)
        for line in run.notes:
            print_note(f"warning: {line}")
        if model_overrides := [word for word in self.overrides if word.startswith("model.")]:
            config = read_config(run.path / "config.yaml", model_overrides)
            run = open_run(self.runs[0], config=config, checkpoint=self.checkpoint, world=world)
        set_backends(determinism=run.config.train.determinism, cudnn=run.config.train.cudnn)
        return run


@dataclass(frozen=True)
class Budget:
    """Budget and search space of a compression, as given on the command line."""

    ratio: float | None
    num_bytes: int | None
    on: str
    bits: str
    kind: str
    per_channel: bool
    calibration: int
    seed: int
    protect: tuple[str, ...] | None = None
    protect_ends: int = 0
    protect_bits: int = 8
    activations: int | None = None

    def validate(self) -> CompressionOptions:
        """Convert to CompressionOptions. Raises UserError naming the option if a value is invalid."""
        for option, word, valid in (("on", self.on, get_args(BudgetOn)), ("kind", self.kind, ("codebook", "linear"))):
            if word not in valid:
                raise UserError(f"--{option} {word}: not a valid choice; options: {', '.join(valid)}")
        if (self.ratio is None) == (self.num_bytes is None):
            raise UserError("compress: give either --ratio or --bytes")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UserError(f"--ratio {self.ratio}: give a number above 0, at most 1")
        if self.activations is not None and not 2 <= self.activations <= 8:
            raise UserError(f"--activations {self.activations}: give 2 to 8 bits")
        if self.protect_bits not in (*range(1, 9), 16, 32):
            raise UserError(f"--protect-bits {self.protect_bits}: give 1 to 8, 16, or 32")
        protect: Any = {"first": self.protect_ends, "last": self.protect_ends, "names": self.protect or ()}
        protect["bits"] = self.protect_bits
        return CompressionOptions(
            ratio=self.ratio,
            num_bytes=self.num_bytes,
            budget_on=self.on,  # type: ignore[arg-type]
            bits=_parse_bits(self.bits, min_bits=2 if self.kind == "linear" else 1),
            kind=self.kind,  # type: ignore[arg-type]
            per_channel=self.per_channel,
            protect=protect,
            calibration=self.calibration,
            activations=self.activations,
            seed=self.seed,
        )


@dataclass(frozen=True)
class FineTuneOptions:
    """Options of fine-tuning the quantised run."""

    epochs: int | None
    rate: float
    is_distilled: bool | None = None

    def to_fine_tuning(self, subject: CompressTarget) -> FineTuning:
        """Convert to FineTuning. Raises UserError for numbers that would train nothing."""
        if not 0 < self.rate <= 100:
            raise UserError(f"--rate {self.rate}: a factor of the run's learning rate, above 0, at most 100")
        if self.epochs == 0:
            raise UserError("--epochs 0: trains nothing; 'compress apply' packs without fine-tuning")
        return FineTuning(
            self.epochs,
            self.rate,
            is_distilled=self.is_distilled,
            overrides=subject.overrides,
            plugins=subject.plugins,
            device=subject.device,
        )


def compress(
    subject: CompressTarget,
    budget: Budget,
    tuning: FineTuneOptions,
    *,
    method: str,
    num_batches: int,
    out: Path,
    json: Path | None,
) -> int:
    """Search, fine-tune and pack; return 0, or the exit code of a fine-tuning that was stopped."""
    compression = budget.validate()
    load_plugins(subject.plugins)  # one of them may hold the search
    ((name, built),) = _build_searches([method], subject.arguments, seed=budget.seed).items()
    fine_tuning = tuning.to_fine_tuning(subject) if tuning.epochs != 0 else None
    with start_world(device=subject.device) as world, contextlib.ExitStack() as stack:
        run = subject.open(world)
        job = Compression(run, out, TerminalReporter())
        if fine_tuning is not None:
            assert_tunable(run, fine_tuning)
        untraced_problem(make_simulator(run), compression)
        stack.enter_context(job.lock())
        provenance: dict[str, Any] = {"method": (name, *subject.arguments), "overrides": subject.overrides}
        provenance |= {"tuning": dataclasses.asdict(tuning)}
        result, problem = job.search(compression, name, built, given=provenance, report=_ProgressReport(name))
        _show_searches([result], problem)
        policy = problem.with_quantised_inputs(result.policy)
        finetuned = None
        if fine_tuning is not None:
            try:
                finetuned = job.finetune(policy, fine_tuning)
            except UnfinishedError as error:
                return _print_stopped(error)
        max_file_bytes = problem.problem.budget_bytes if compression.budget_on == "file" else None
        write_file(out / WORK / "bits.svg", bits_svg(policy, problem.layers))
        more_entries = {"search": search_rows([result])[0], "budget_bytes": problem.problem.budget_bytes}
        more_entries |= problem.costs(policy)
        document = job.pack(
            policy, finetuned=finetuned, about=more_entries, num_batches=num_batches, at_most=max_file_bytes
        )
        _finish(out, run, document, json)
    return 0


def search(subject: CompressTarget, budget: Budget, *, methods: str, out: Path, json: Path | None) -> int:
    """Search by one or several methods, and write the best policy to policy.json."""
    load_plugins(subject.plugins)  # one of them may hold a search
    names = registry.searches.names() if methods == "all" else methods.split(",")
    subject.assert_without(overrides=True)
    built = _build_searches(names, subject.arguments, seed=budget.seed)
    compression = budget.validate()
    assert_no_run(out)
    assert_writable(out / POLICY, option="--out")
    with start_world(device=subject.device) as world, contextlib.ExitStack() as stack:
        run = subject.open(world)
        untraced_problem(make_simulator(run), compression)
        stack.enter_context(lock_folder(out))
        problem, results = RunProblem(run, compression), []
        for name, method in built.items():
            try:
                (result,), evaluations = run_searches(
                    problem, {name: method}, out / RECORD, report=_ProgressReport(name)
                )
            except UserError as error:
                if len(built) == 1:
                    raise
                print_note(f"search '{name}' left out: {error}")
                continue
            write_document(out / f"{name}.{POLICY}", policy_to_dict(problem.with_quantised_inputs(result.policy)))
            results.append(result)
        if not results:
            raise UserError("compress search: no method could be run on this run")
        best = min(results, key=lambda result: (result.loss, result.bytes))
        write_document(out / POLICY, policy_to_dict(problem.with_quantised_inputs(best.policy)))
        _show_searches(results, problem)
        points = {result.method: [(result.bytes, result.loss)] for result in results}
        evaluated = [(problem.problem.bytes_of(tried.policy), tried.loss) for tried in evaluations.all]
        drawn = [point for point in evaluated if point[0] <= MAX_DRAWN_RATIO * problem.problem.budget_bytes]
        write_file(out / "search.svg", pareto_svg({"evaluated": drawn, **points}, counted=problem.asked.budget_on))
        write_file(out / "bits.svg", bits_svg(best.policy, problem.layers))
    document = {"budget_bytes": problem.problem.budget_bytes, "best": best.method, "searches": search_rows(results)}
    write_document(out / "search.json", document)
    write_document(json, document)
    print_note(f"written: {out / POLICY}, found by '{best.method}'; {out}/search.svg, {out}/bits.svg")
    return 0


def apply(subject: CompressTarget, policy: Path, *, num_batches: int, out: Path, json: Path | None) -> int:
    """Quantise a run by a policy file, pack it and evaluate it."""
    subject.assert_without(arguments=True, overrides=True)
    with start_world(device=subject.device) as world:
        run = subject.open(world)
        chosen = _read_policy(policy, run)
        job = Compression(run, out, TerminalReporter())
        with job.lock():
            _finish(out, run, job.pack(chosen, finetuned=None, about={}, num_batches=num_batches), json)
    return 0


def finetune(subject: CompressTarget, policy: Path, tuning: FineTuneOptions, *, out: Path) -> int:
    """Train with quantised weights; return the exit code of the training."""
    subject.assert_without(arguments=True)
    fine_tuning = tuning.to_fine_tuning(subject)
    with start_world(device=subject.device) as world:
        run = subject.open(world)
        chosen = _read_policy(policy, run)
    try:
        path = Compression(run, out, TerminalReporter(), work=out).finetune(chosen, fine_tuning)
    except UnfinishedError as error:
        return _print_stopped(error)
    print_note(f"fine-tuned: {path}; to pack it: sightline compress pack {path} --out DIR")
    return 0


def pack(subject: CompressTarget, *, num_batches: int, out: Path, json: Path | None) -> int:
    """Pack a run with quantised weights."""
    subject.assert_without(arguments=True, overrides=True)
    with start_world(device=subject.device) as world:
        run = subject.open(world)
        if run.config.compress is None:
            raise UserError(f"{run.path}: was not trained with quantised weights; 'compress apply' quantises it")
        policy = policy_from_dict(run.config.compress.policy, list(run.config.compress.policy), origin=str(run.path))
        job = Compression(run, out, TerminalReporter())
        with job.lock():
            _finish(out, run, job.pack(policy, finetuned=run.path, about={}, num_batches=num_batches), json)
    return 0


def size(subject: CompressTarget, policy: Path | None, *, json: Path | None) -> int:
    """Print the bytes of packed files without writing them."""
    subject.assert_without(arguments=True, overrides=True)
    with start_world(device="cpu") as world:
        run = subject.open(world)
        chosen = {} if policy is None else _read_policy(policy, run)
        simulated = make_simulator(run, chosen)
    if policy is None:
        policies = {"float32": dict.fromkeys(simulated.names, FP32), "fp16": dict.fromkeys(simulated.names, FP16)}
        for bits in range(8, 0, -1):
            policies[f"{bits} bits"] = dict.fromkeys(simulated.names, WeightFormat("codebook", bits))
    else:
        policies = {str(policy): chosen}
    sizes = {name: simulated.sizes(bits_by_layer) for name, bits_by_layer in policies.items()}
    rows = [(name, row.file_bytes, *row.ratios) for name, row in sizes.items()]
    title = f"{simulated.base_bytes():,} bytes in float32; {len(simulated.names)} layers can be quantised"
    show_table(title, ("policy", "bytes of the file", "codes", "with codebooks", "file"), rows)
    write_document(json, {name: {"bytes": row.file_bytes, **row.ratios._asdict()} for name, row in sizes.items()})
    return 0


def report(
    subject: CompressTarget,
    budget: Budget,
    tuning: FineTuneOptions,
    *,
    method: str,
    num_batches: int,
    num_seeds: int,
    out: Path,
    json: Path | None,
) -> int:
    """Compute the missing rows and print the table; return 0, or the exit code of a fine-tuning that was stopped."""
    compression, fine_tuning = budget.validate(), tuning.to_fine_tuning(subject)
    assert_no_run(out)
    with start_world(device=subject.device) as world, contextlib.ExitStack() as stack:
        run = subject.open(world)
        study = CompressionReport(
            run, out, compression, fine_tuning, method=(method, *subject.arguments), num_batches=num_batches
        )
        stack.enter_context(lock_folder(out))
        try:
            document = study(TerminalReporter(), num_seeds=num_seeds, report=_ProgressReport(method))
        except UnfinishedError as error:
            return _print_stopped(error)
    sys.stdout.write(compression_markdown(document))
    print_note(f"written: {out / NAME}.json, {out / NAME}.md")
    write_document(json, document)
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


def _finish(out: Path, run: OpenRun, document: Mapping[str, Any], json: Path | None) -> None:
    """Print the figures and sizes of a packed run."""
    show_evaluation(
        document, title=f"{out / PACKED_FILE} on {document['data']['split']}", dataset=run.data.test.dataset
    )
    sizes = document["ratios"]
    print_note(
        f"{out / PACKED_FILE}: {document['file_bytes']:,} bytes of {document['float_bytes']:,} in float32: "
        f"{sizes['file']:.4f} (codes alone {sizes['weights']:.4f}, with codebooks {sizes['codebook']:.4f})"
    )
    print_note(
        "a codebook makes the file small, not the arithmetic fast: the model runs at the speed of the float model"
    )
    print_note(f"run directory: {out}")
    write_document(json, document)
