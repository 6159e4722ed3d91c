"""Table of a run's compression, from the float model to mixed bits, fine-tuned and distilled; resumable."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sightline.compression.policy import Policy, WeightFormat, policy_from_dict, policy_to_dict
from sightline.config.plain_values import to_plain
from sightline.contract.errors import ConfigError, UserError
from sightline.draw.page import PageTable
from sightline.engine.run_loading import OpenRun
from sightline.runs.output_files import write_document, write_file
from sightline.runs.run_documents import load_document
from sightline.runs.trained_weights import PACKED_FILE, is_packed
from sightline.training.train_result import Reporter
from sightline.workbench.compress.finetuning import FINE_TUNED, FineTuning, assert_tunable, can_distil
from sightline.workbench.compress.packing import SUMMARY
from sightline.workbench.compress.run_problem import (
    RunProblem,
    json_digest,
    make_simulator,
    untraced_problem,
    weights_sha256,
)
from sightline.workbench.compress.search.base import ProgressCallback, Search, build_searches
from sightline.workbench.compress.stages import (
    POLICY,
    REQUEST_FILE,
    WORK,
    Compression,
    assert_same_request,
    search_recorded,
)
from sightline.workbench.compress.target import CompressionTarget
from sightline.workbench.series.loop import Entry, Results, describe_failure, run_series
from sightline.workbench.series.seed_statistics import summarise

NAME = "compression"
"""Name of the table's files, without extension."""
MIX_BITS = 4
"""Bits of the row `mix`, which has no budget."""


class _RowSpec(NamedTuple):
    """Specification of a row: name, kind of policy, and whether it is fine-tuned and distilled."""

    name: str
    policy: str | None
    is_tuned: bool = False
    is_distilled: bool = False


def report_row(
    name: str, metrics: Sequence[Mapping[str, float | None]], *, file_bytes: int, ratios: Mapping[str, float]
) -> dict[str, Any]:
    """Return a row: mean and sample deviation (`_std`, NaN for one seed) of each metric, and sizes.

    `metrics` are those of each seed; null in files, for numbers that are not finite, becomes NaN.
    """
    row: dict[str, Any] = {"name": name, "seeds": len(metrics), "file_bytes": file_bytes, "ratios": dict(ratios)}
    for metric in metrics[0]:
        summary = summarise(math.nan if (value := figures[metric]) is None else float(value) for figures in metrics)
        row |= {metric: summary["mean"], f"{metric}_std": summary["std"]}
    return row


@dataclass
class CompressionReport:
    """Table of compression steps of `run`, whose rows are computed in turn below `out` and can be resumed.

    Rows: the float model; the float model trained as long as the others; mix, all layers at 4 bits but the first and
    the last at 8; a searched policy at `target`; the same with protected layers, each also fine-tuned and distilled.
    Every row with quantised weights is a packed run below `out`, and its metrics are those of that file. Finished rows
    are reused for another ratio or number of bytes; the searched rows of each budget have folders of their own.
    """

    run: OpenRun
    out: Path
    target: CompressionTarget
    tuning: FineTuning
    _: KW_ONLY
    method: Sequence[str]
    num_batches: int

    def __post_init__(self) -> None:
        self._ends = replace(self.target, protect_ends=1)
        self._share = f"{self.target.ratio:g} preserve" if self.target.ratio else f"{self.target.num_bytes:,} bytes"
        self._policies: dict[str, Policy] = {}
        assert_tunable(self.run, self.tuning)
        self._build_method("preserve_mix", self.target.seed)
        self._simulated = make_simulator(self.run)
        self.left_out = self._find_left_out()

    def _specs(self) -> list[_RowSpec]:
        """List the rows below the float one, also those of `left_out`."""
        tuned = [("", False, False), (" + fine-tuning", True, False), (" + fine-tuning + distillation", True, True)]
        mixes = [("mix", "mix"), (f"{self._share}, mix", "preserve_mix")]
        mixed, searched = ([_RowSpec(f"{name}{more}", kind, *how) for more, *how in tuned] for name, kind in mixes)
        return [_RowSpec("float, trained as long", None, True), *mixed, _RowSpec(self._share, "preserve"), *searched]

    def __call__(
        self, reporter: Reporter, *, num_seeds: int = 1, report: ProgressCallback = None
    ) -> tuple[dict[str, Any], int]:
        """Compute the missing rows, and write the table after each; return its document, and an exit code.

        A row that fails is left out with its reason, and the others are computed.
        """
        self._assert_same()
        for name, reason in self.left_out.items():
            reporter.note(f"row '{name}' left out: {reason}")
        specs = [spec for spec in self._specs() if spec.name not in self.left_out]
        seeds = range(self.target.seed, self.target.seed + num_seeds)
        for kind, seed in itertools.product(dict.fromkeys(spec.policy for spec in specs if spec.policy), seeds):
            self._policies[f"{kind}, seed {seed}"] = self._make_policy(kind, seed, report)
        full_size = {"weights": 1.0, "codebook": 1.0, "file": 1.0}
        float_row: dict[str, Any] = {"file_bytes": self._simulated.base_bytes(), "ratios": full_size}
        metrics = dict(self.run.evaluator()(self.run.model, self.run.world).metrics)
        document: dict[str, Any] = {
            "run": str(self.run.path),
            "checkpoint": str(self.run.checkpoint_path.resolve()),
            "data": self.run.config.data.name,
            "metrics": list(metrics),
            "search": list(self.method),
            "budget_on": self.target.on,
            "ratio": self.target.ratio,
            "epochs": self.tuning.epochs,
            "policies": {name: policy_to_dict(policy) for name, policy in self._policies.items()},
        }

        def write(results: Results[tuple[str, int]]) -> dict[str, Any]:
            failed = {f"{name}, seed {seed}": describe_failure(error) for (name, seed), error in results.failed.items()}
            document["left_out"] = self.left_out | failed
            document["rows"] = rows = [report_row("float", [metrics], **float_row)]
            for spec in specs:
                if done := [result for (name, _), result in results.finished.items() if name == spec.name]:
                    sizes = {key: done[0].get(key, value) for key, value in float_row.items()}
                    rows.append(report_row(spec.name, [summary["metrics"] for summary in done], **sizes))
            write_document(self.out / f"{NAME}.json", document)
            write_file(self.out / f"{NAME}.md", compression_markdown(document))
            return document

        entries = []
        for spec, seed in itertools.product(specs, seeds):
            folder = self.out / "rows" / f"{_file_name(spec.name)}_seed_{seed}"
            work = partial(self._row, spec, seed, folder, reporter)
            entries.append(Entry((spec.name, seed), f"row '{spec.name}', seed {seed}", folder, work))
        return run_series(entries, write, reporter)

    def _find_left_out(self) -> dict[str, str]:
        """Return the rows that cannot be computed, with reasons. Raises ConfigError if no searched row can be."""
        reasons: dict[str, str] = {}
        untraced_problem(self._simulated, self.target)
        try:
            untraced_problem(self._simulated, self._ends)
        except ConfigError as error:
            reasons |= {spec.name: str(error) for spec in self._specs() if spec.policy == "preserve_mix"}
        if not can_distil(self.run.config):
            text = "the run has no loss of logits and labels, which distillation could join"
            reasons |= {spec.name: text for spec in self._specs() if spec.is_distilled}
        return reasons

    def _assert_same(self) -> None:
        """Raise UserError if rows were computed with other options (except the budget) or other weights."""
        tuning = {key: str(value) for key, value in dataclasses.asdict(self.tuning).items()}
        options = {**dataclasses.asdict(self.target), "method": self.method, "num_batches": self.num_batches}
        request = {"weights": weights_sha256(self.run), **options, "tuning": tuning}
        rows = self.out / "rows"
        is_begun = any(any(rows.glob(name)) for name in (f"*/{PACKED_FILE}", f"*/{WORK}/{FINE_TUNED}/config.yaml"))
        assert_same_request(self.out / REQUEST_FILE, request, is_begun=is_begun, may_differ=("ratio", "num_bytes"))

    def _row(self, spec: _RowSpec, seed: int, folder: Path, reporter: Reporter) -> Mapping[str, Any]:
        """Compute a row with a seed, or read it; return its metrics and sizes."""
        job = Compression(self.run, folder, reporter, may_be_done=True)
        tuning = replace(self.tuning, is_distilled=spec.is_distilled, seed=seed)
        if spec.policy is None:
            return load_document(job.finetune(None, tuning) / "final.json")
        policy = self._policies[f"{spec.policy}, seed {seed}"]
        if is_packed(folder) and (folder / "final.json").exists():
            return load_document(folder / SUMMARY) | load_document(folder / "final.json")
        finetuned = job.finetune(policy, tuning) if spec.is_tuned else None
        return job.pack(policy, finetuned=finetuned, about={"row": spec.name}, num_batches=self.num_batches)

    def _make_policy(self, kind: str, seed: int, report: ProgressCallback) -> Policy:
        """Make the policy of a kind of row, or search it; a search that was made is read."""
        names = self._simulated.names
        if kind == "mix":
            mixed = dict.fromkeys(names, WeightFormat(self.target.kind, MIX_BITS, self.target.per_channel))
            return mixed | self._ends.protected_choices(names)
        options = replace(self._ends if kind == "preserve_mix" else self.target, seed=seed)
        problem = (
            dataclasses.asdict(options),
            self.method,
            weights_sha256(self.run),
            to_plain(self.run.config.model),
        )
        # searches with other options, as of a call that was stopped before any row, have folders of their own
        folder = self.out / "searches" / f"{_file_name(self._share)}_{kind}_seed_{seed}_{json_digest(*problem)}"
        if not (folder / POLICY).exists():
            name, method = self._build_method(kind, seed)
            return search_recorded(RunProblem(self.run, options), name, method, folder=folder, report=report).policy
        return policy_from_dict(load_document(folder / POLICY), names, origin=str(folder / POLICY))

    def _build_method(self, kind: str, seed: int) -> tuple[str, Search]:
        name, *arguments = self.method
        if seeds := [word for word in arguments if word.startswith("seed=")]:
            raise UserError(f"compress report: found {seeds[0]!r}, but rows have seeds of their own, from --seed on")
        name = "uniform_protected" if (name, kind) == ("uniform", "preserve_mix") else name
        ((name, method),) = build_searches([name], arguments, seed=seed).items()
        return name, method


def _file_name(title: str) -> str:
    return title.replace(" ", "_").replace(",", "").replace("+_", "")


def compression_markdown(document: Mapping[str, Any]) -> str:
    """Format the table as Markdown, after a note that codebooks do not make the model faster."""
    metrics = document["metrics"]
    head = ["row", *metrics, "seeds", "bytes of the file", "codes", "with codebooks", "file"]
    rows = []
    for row in document["rows"]:
        cells = [
            f"{row[name]:.4f}" + ("" if math.isnan(row[f"{name}_std"]) else f" ± {row[f'{name}_std']:.4f}")
            for name in metrics
        ]
        ratios = [f"{row['ratios'][key]:.4f}" for key in ("weights", "codebook", "file")]
        rows.append([row["name"], *cells, row["seeds"], f"{row['file_bytes']:,}", *ratios])
    lines = ["A codebook makes the file small, not the arithmetic fast.", "", *PageTable(head, rows).to_markdown()]
    reasons: dict[str, list[str]] = {}
    for name, reason in document["left_out"].items():
        reasons.setdefault(reason, []).append(name)
    lines += [line for reason, names in reasons.items() for line in ("", f"Left out: {'; '.join(names)}: {reason}.")]
    return "\n".join(lines) + "\n"
