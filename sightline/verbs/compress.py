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
    held,
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
SHOWN = 1.2
"""Of the budget: larger policies, most of them with one quantised layer, are not drawn."""
RECORD = "evaluations.jsonl"
STEPS = ("run", "search", "apply", "finetune", "pack", "size", "report")
EVERY_S = 10.0
"""Between two lines of a search's progress where standard error is not a terminal."""


@dataclass(frozen=True)
class CompressTarget:
    """The run to compress; `words` are overrides of its fine-tuning, with a dot, and arguments of the search."""

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
        """Raises UserError for words that a step would ignore; those of the model change the run itself."""
        ignored = [*(self.arguments if arguments else ())]
        ignored += [word for word in self.overrides if overrides and not word.startswith("model.")]
        if ignored:
            raise UserError(f"compress: found {ignored[0]!r}, which this step does not use; leave it out")

    def open(self, world: Any) -> OpenRun:
        """The run. Raises UserError where not exactly one is given."""
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
        if of_model := [word for word in self.overrides if word.startswith("model.")]:
            config = read_config(run.path / "config.yaml", of_model)
            run = open_run(self.runs[0], config=config, checkpoint=self.checkpoint, world=world)
        set_backends(determinism=run.config.train.determinism, cudnn=run.config.train.cudnn)
        return run


@dataclass(frozen=True)
class Budget:
    """What may be used, and what a search may choose, in the words of the command line."""

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
        """Raises UserError, naming the option, for a word that is not valid."""
        for option, word, valid in (("on", self.on, get_args(BudgetOn)), ("kind", self.kind, ("codebook", "linear"))):
            if word not in valid:
                raise UserError(f"--{option} {word}: not a valid choice; options: {', '.join(valid)}")
        if (self.ratio is None) == (self.num_bytes is None):
            raise UserError("compress: give --ratio or --bytes, one of them")
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
            bits=_bits_of(self.bits, least=2 if self.kind == "linear" else 1),
            kind=self.kind,  # type: ignore[arg-type]
            per_channel=self.per_channel,
            protect=protect,
            calibration=self.calibration,
            activations=self.activations,
            seed=self.seed,
        )


@dataclass(frozen=True)
class FineTuneOptions:
    """How the quantised run is trained further."""

    epochs: int | None
    rate: float
    is_distilled: bool | None = None

    def of(self, subject: CompressTarget) -> FineTuning:
        """Raises UserError for numbers that train nothing."""
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
    """Search, fine-tune and pack; the exit code of a fine-tuning that was stopped."""
    asked = budget.validate()
    load_plugins(subject.plugins)  # one of them may hold the search
    ((name, built),) = _methods([method], subject.arguments, seed=budget.seed).items()
    how = tuning.of(subject) if tuning.epochs != 0 else None
    with start_world(device=subject.device) as world, contextlib.ExitStack() as stack:
        run = subject.open(world)
        job = Compression(run, out, TerminalReporter())
        if how is not None:
            assert_tunable(run, how)
        untraced_problem(make_simulator(run), asked)
        stack.enter_context(job.held())
        given: dict[str, Any] = {"method": (name, *subject.arguments), "overrides": subject.overrides}
        given |= {"tuning": dataclasses.asdict(tuning)}
        found, problem = job.search(asked, name, built, given=given, report=_Report(name))
        _show_found([found], problem)
        policy = problem.with_quantised_inputs(found.policy)
        finetuned = None
        if how is not None:
            try:
                finetuned = job.finetune(policy, how)
            except UnfinishedError as error:
                return _stopped(error)
        at_most = problem.problem.budget_bytes if asked.budget_on == "file" else None
        write_file(out / WORK / "bits.svg", bits_svg(policy, problem.layers))
        about = {"search": search_rows([found])[0], "budget_bytes": problem.problem.budget_bytes}
        about |= problem.costs(policy)
        document = job.pack(policy, finetuned=finetuned, about=about, num_batches=num_batches, at_most=at_most)
        _finish(out, run, document, json)
    return 0


def search(subject: CompressTarget, budget: Budget, *, methods: str, out: Path, json: Path | None) -> int:
    """Search by one or several methods; the best policy goes to policy.json."""
    load_plugins(subject.plugins)  # one of them may hold a search
    names = registry.searches.names() if methods == "all" else methods.split(",")
    subject.assert_without(overrides=True)
    built = _methods(names, subject.arguments, seed=budget.seed)
    asked = budget.validate()
    assert_no_run(out)
    assert_writable(out / POLICY, option="--out")
    with start_world(device=subject.device) as world, contextlib.ExitStack() as stack:
        run = subject.open(world)
        untraced_problem(make_simulator(run), asked)
        stack.enter_context(held(out))
        problem, found = RunProblem(run, asked), []
        for name, one in built.items():
            try:
                (result,), evaluations = run_searches(problem, {name: one}, out / RECORD, report=_Report(name))
            except UserError as error:
                if len(built) == 1:
                    raise
                print_note(f"search '{name}' left out: {error}")
                continue
            write_document(out / f"{name}.{POLICY}", policy_to_dict(problem.with_quantised_inputs(result.policy)))
            found.append(result)
        if not found:
            raise UserError("compress search: no method could be run on this run")
        best = min(found, key=lambda each: (each.loss, each.bytes))
        write_document(out / POLICY, policy_to_dict(problem.with_quantised_inputs(best.policy)))
        _show_found(found, problem)
        points = {each.method: [(each.bytes, each.loss)] for each in found}
        every = [(problem.problem.bytes_of(each.policy), each.loss) for each in evaluations.all]
        near = [point for point in every if point[0] <= SHOWN * problem.problem.budget_bytes]
        write_file(out / "search.svg", pareto_svg({"evaluated": near, **points}, counted=problem.asked.budget_on))
        write_file(out / "bits.svg", bits_svg(best.policy, problem.layers))
    document = {"budget_bytes": problem.problem.budget_bytes, "best": best.method, "searches": search_rows(found)}
    write_document(out / "search.json", document)
    write_document(json, document)
    print_note(f"written: {out / POLICY}, found by '{best.method}'; {out}/search.svg, {out}/bits.svg")
    return 0


def apply(subject: CompressTarget, policy: Path, *, num_batches: int, out: Path, json: Path | None) -> int:
    """Quantise, pack and evaluate."""
    subject.assert_without(arguments=True, overrides=True)
    with start_world(device=subject.device) as world:
        run = subject.open(world)
        chosen = _policy_of_file(policy, run)
        job = Compression(run, out, TerminalReporter())
        with job.held():
            _finish(out, run, job.pack(chosen, finetuned=None, about={}, num_batches=num_batches), json)
    return 0


def finetune(subject: CompressTarget, policy: Path, tuning: FineTuneOptions, *, out: Path) -> int:
    """Train with quantised weights; the exit code of the training."""
    subject.assert_without(arguments=True)
    how = tuning.of(subject)
    with start_world(device=subject.device) as world:
        run = subject.open(world)
        chosen = _policy_of_file(policy, run)
    try:
        path = Compression(run, out, TerminalReporter(), work=out).finetune(chosen, how)
    except UnfinishedError as error:
        return _stopped(error)
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
        with job.held():
            _finish(out, run, job.pack(policy, finetuned=run.path, about={}, num_batches=num_batches), json)
    return 0


def size(subject: CompressTarget, policy: Path | None, *, json: Path | None) -> int:
    """Print the bytes of packed files without writing them."""
    subject.assert_without(arguments=True, overrides=True)
    with start_world(device="cpu") as world:
        run = subject.open(world)
        chosen = {} if policy is None else _policy_of_file(policy, run)
        simulated = make_simulator(run, chosen)
    if policy is None:
        policies = {"float32": dict.fromkeys(simulated.names, FP32), "fp16": dict.fromkeys(simulated.names, FP16)}
        for bits in range(8, 0, -1):
            policies[f"{bits} bits"] = dict.fromkeys(simulated.names, WeightFormat("codebook", bits))
    else:
        policies = {str(policy): chosen}
    sizes = {name: simulated.sizes(each) for name, each in policies.items()}
    rows = [(name, each.file_bytes, *each.ratios) for name, each in sizes.items()]
    title = f"{simulated.base_bytes():,} bytes in float32; {len(simulated.names)} layers can be quantised"
    show_table(title, ("policy", "bytes of the file", "codes", "with codebooks", "file"), rows)
    write_document(json, {name: {"bytes": each.file_bytes, **each.ratios._asdict()} for name, each in sizes.items()})
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
    """Compute the rows that are not done, and print the table; the exit code of a fine-tuning that was stopped."""
    asked, how = budget.validate(), tuning.of(subject)
    assert_no_run(out)
    with start_world(device=subject.device) as world, contextlib.ExitStack() as stack:
        run = subject.open(world)
        study = CompressionReport(run, out, asked, how, method=(method, *subject.arguments), num_batches=num_batches)
        stack.enter_context(held(out))
        try:
            document = study(TerminalReporter(), num_seeds=num_seeds, report=_Report(method))
        except UnfinishedError as error:
            return _stopped(error)
    sys.stdout.write(compression_markdown(document))
    print_note(f"written: {out / NAME}.json, {out / NAME}.md")
    write_document(json, document)
    return 0


def _stopped(error: UnfinishedError) -> int:
    """Print why a fine-tuning is not finished; its exit code."""
    if error.code == 1:
        print_note("fine-tuning was not started: see the errors of the checks; 'checks.skip=[CODE]' leaves one out")
    else:
        print_note("fine-tuning was stopped; repeat the command to resume it")
    return error.code


def _policy_of_file(path: Path, run: OpenRun) -> dict[str, WeightFormat]:
    """The policy of a file, which means what it means in a config: parameters that it does not name are as without it.

    Raises UserError for a run that cannot be quantised, ConfigError for a policy of another model.
    """
    make_simulator(run)
    return read_policy(path, [name for name, _ in run.model.named_parameters()])


def _bits_of(text: str, *, least: int) -> tuple[int, ...]:
    """The numbers of 2,4 or 1-8. Raises UserError for another text."""
    first, dash, last = text.partition("-")
    try:
        bits = sorted({*range(int(first), int(last) + 1)} if dash else {int(part) for part in text.split(",")})
    except ValueError:
        bits = []
    if not bits or bits[0] < 1 or bits[-1] > 8:
        raise UserError(f"--bits {text}: give whole numbers from 1 to 8, as 2,4 or 1-8")
    if bits[-1] < least:
        raise UserError(f"--bits {text}: linear weights take 2 bits at least")
    return tuple(each for each in bits if each >= least)


def _methods(names: Sequence[str], arguments: Sequence[str], *, seed: int) -> dict[str, Search]:
    """The searches of these names; of several each takes the arguments that it has."""
    built = {}
    for name in names:
        taken = registry.searches.entry(parse_component(registry.searches, name, ())).arguments
        words = [each for each in arguments if len(names) == 1 or each.partition("=")[0].strip() in taken]
        if "seed" in taken and not any(each.startswith("seed=") for each in words):
            words.append(f"seed={seed}")
        component = parse_component(registry.searches, name, words)
        built[component.name] = registry.searches.build(component, facts={})
    return built


class _Report:
    """Prints how far a search is: its evaluations and the time left, first after the float model's evaluation."""

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


def _show_found(found: Sequence[SearchResult], problem: RunProblem) -> None:
    """A row per search, and the budget; where the agent of HAQ lost to another search, that is printed."""
    columns = ("method", "loss", "bytes", "evaluations", "new evaluations", "seconds", "overhead seconds")
    rows = search_rows(found)
    budget, on = problem.problem.budget_bytes, problem.asked.budget_on
    title = f"loss on {problem.subject}; budget {budget:,} bytes ({on}, {budget / problem.base_bytes:.4f} of float32)"
    show_table(title, columns, [[row[name] for name in columns] for row in rows])
    if problem.unused:
        print_note(
            f"{len(problem.unused)} of {len(problem.names)} layers change nothing of the loss and get the fewest bits: "
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
    print_note("a codebook makes the file small, not the arithmetic fast: the model runs as the float one does")
    print_note(f"run directory: {out}")
    write_document(json, document)
