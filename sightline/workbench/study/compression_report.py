"""Table of a run's compression, from the float model to mixed bits, fine-tuned and distilled; resumable."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sightline.config.reader import parse_component
from sightline.config.run_config import to_plain
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.draw.page import PageTable
from sightline.engine.run_loading import OpenRun
from sightline.runs.run_directory import load_document, write_document, write_file
from sightline.runs.trained_weights import PACKED_FILE, evaluated_sha256, is_packed, resolve_weights
from sightline.training.train_run import Reporter
from sightline.workbench.compress.packing import SUMMARY
from sightline.workbench.compress.policy import (
    Policy,
    Protect,
    WeightFormat,
    policy_from_dict,
    policy_to_dict,
    protected_choices,
)
from sightline.workbench.compress.run_problem import CompressionOptions, json_digest, make_simulator, untraced_problem
from sightline.workbench.compress.search.base import ProgressCallback, Search, SearchResult
from sightline.workbench.study.compression import (
    FINE_TUNED,
    REQUEST_FILE,
    WORK,
    Compression,
    FineTuning,
    assert_same_request,
    assert_tunable,
    can_distil,
)

NAME = "compression"
"""Name of the table's files, without extension."""
MIX_BITS = 4
"""Bits of the row `mix`, which has no budget."""


def search_rows(found: Iterable[SearchResult]) -> list[dict[str, Any]]:
    """Build one row per search, lowest loss first; `overhead seconds` excludes the evaluations."""
    return [
        {
            "method": result.method,
            "loss": result.loss,
            "bytes": result.bytes,
            "evaluations": result.num_evaluated,
            "new evaluations": result.num_new,
            "seconds": result.seconds,
            "overhead seconds": result.seconds - result.evaluation_seconds,
            "raisable layers": len(result.untried_raises),
        }
        for result in sorted(found, key=lambda result: (result.loss, result.bytes))
    ]


class _RowSpec(NamedTuple):
    """Specification of a row: name, kind of policy, and whether it is fine-tuned and distilled."""

    name: str
    policy: str | None
    is_tuned: bool = False
    is_distilled: bool = False


def report_row(
    name: str, metrics: Sequence[Mapping[str, float | None]], *, file_bytes: int, ratios: Mapping[str, float]
) -> dict[str, Any]:
    """Return a row: mean and sample deviation (`_std`, None for one seed) of each metric, and sizes.

    `metrics` are those of each seed; null in files, for numbers that are not finite, becomes NaN.
    """
    row: dict[str, Any] = {"name": name, "seeds": len(metrics), "file_bytes": file_bytes, "ratios": dict(ratios)}
    for metric in metrics[0]:
        values = [math.nan if (value := each[metric]) is None else float(value) for each in metrics]
        is_known = not any(map(math.isnan, values))
        row[metric] = statistics.fmean(values)
        row[f"{metric}_std"] = None
        if len(values) > 1:
            row[f"{metric}_std"] = statistics.stdev(values) if is_known else math.nan
    return row


class CompressionReport:
    """Table of compression steps, whose rows are computed in turn and can be resumed.

    Rows: the float model; the float model trained as long as the others; mix, all layers at 4 bits but the first and
    the last at 8; a searched policy at `asked`; and the same with protected layers, each also fine-tuned and distilled.
    Every row with quantised weights is a packed run below `out`, and its metrics are those of that file. Finished rows
    are reused for another ratio or number of bytes; the searched rows of each budget have folders of their own.
    """

    def __init__(
        self,
        run: OpenRun,
        out: Path,
        asked: CompressionOptions,
        tuning: FineTuning,
        *,
        method: Sequence[str],
        num_batches: int,
    ) -> None:
        self._run = run
        self._out = out
        self._asked = asked
        self._tuning = tuning
        self._method = method
        self._num_batches = num_batches
        self._weights = evaluated_sha256(resolve_weights(run.checkpoint_path))
        self._ends = Protect(first=1, last=1, bits=8)
        self._share = f"{asked.ratio:g} preserve" if asked.ratio else f"{asked.num_bytes:,} bytes"
        assert_tunable(run, tuning)
        self._build_method("preserve_mix", asked.seed)
        self.left_out = self._find_left_out()

    def specs(self) -> list[_RowSpec]:
        """List the rows below the float one, without those of `left_out`."""
        return [spec for spec in self._all_specs() if spec.name not in self.left_out]

    def _all_specs(self) -> list[_RowSpec]:
        share = self._share
        tuned = [("", False, False), (" + fine-tuning", True, False), (" + fine-tuning + distillation", True, True)]
        rows = [_RowSpec("float, trained as long", None, True)]
        rows += [_RowSpec(f"mix{more}", "mix", *flags) for more, *flags in tuned]
        rows += [_RowSpec(share, "preserve")]
        rows += [_RowSpec(f"{share}, mix{more}", "preserve_mix", *flags) for more, *flags in tuned]
        return rows

    def __call__(self, reporter: Reporter, *, num_seeds: int = 1, report: ProgressCallback = None) -> dict[str, Any]:
        """Compute the missing rows, and write the table after each. Raises UnfinishedError for a stopped run."""
        self._assert_same()
        for name, reason in self.left_out.items():
            reporter.note(f"row '{name}' left out: {reason}")
        seeds = range(self._asked.seed, self._asked.seed + num_seeds)
        kinds = dict.fromkeys(spec.policy for spec in self.specs() if spec.policy)
        policies = {(kind, seed): self._policy(kind, seed, reporter, report) for kind in kinds for seed in seeds}
        full_size = {"weights": 1.0, "codebook": 1.0, "file": 1.0}
        float_row: dict[str, Any] = {"file_bytes": make_simulator(self._run).base_bytes(), "ratios": full_size}
        evaluation = self._run.evaluator()(self._run.model, self._run.world)
        rows = [report_row("float", [dict(evaluation.metrics)], **float_row)]
        document: dict[str, Any] = {}
        for spec in self.specs():
            done = []
            for seed in seeds:
                reporter.note(f"row '{spec.name}', seed {seed}")
                done.append(self._row(spec, seed, policies, reporter))
            sizes = {key: done[0].get(key, value) for key, value in float_row.items()}
            rows.append(report_row(spec.name, [summary["metrics"] for summary in done], **sizes))
            document = self._document(list(evaluation.metrics), rows, policies)
            write_document(self._out / f"{NAME}.json", document)
            write_file(self._out / f"{NAME}.md", compression_markdown(document))
        return document

    def _find_left_out(self) -> dict[str, str]:
        """Return the rows that cannot be computed, with reasons. Raises ConfigError if no searched row can be."""
        simulated = make_simulator(self._run)
        reasons: dict[str, str] = {}
        untraced_problem(simulated, self._asked)
        try:
            untraced_problem(simulated, replace(self._asked, protect=self._ends))
        except ConfigError as error:
            reasons |= {spec.name: str(error) for spec in self._all_specs() if spec.policy == "preserve_mix"}
        if not can_distil(self._run.config):
            text = "the run has no loss of logits and labels, which distillation could join"
            reasons |= {spec.name: text for spec in self._all_specs() if spec.is_distilled}
        return reasons

    def _assert_same(self) -> None:
        """Raise UserError if rows were computed with other options (except the budget) or other weights."""
        tuning = {key: str(value) for key, value in dataclasses.asdict(self._tuning).items()}
        options = {**dataclasses.asdict(self._asked), "method": self._method, "num_batches": self._num_batches}
        request = {"weights": self._weights, **options, "tuning": tuning}
        rows = self._out / "rows"
        is_begun = any(any(rows.glob(name)) for name in (f"*/{PACKED_FILE}", f"*/{WORK}/{FINE_TUNED}/config.yaml"))
        assert_same_request(self._out / REQUEST_FILE, request, is_begun=is_begun, may_differ=("ratio", "num_bytes"))

    def _row(
        self, spec: _RowSpec, seed: int, policies: Mapping[tuple[str, int], Policy], reporter: Reporter
    ) -> Mapping[str, Any]:
        name = spec.name.replace(" ", "_").replace(",", "").replace("+_", "")
        folder = self._out / "rows" / f"{name}_seed_{seed}"
        job = Compression(self._run, folder, reporter, may_be_done=True)
        tuning = replace(self._tuning, is_distilled=spec.is_distilled, seed=seed)
        if spec.policy is None:
            return load_document(job.finetune(None, tuning) / "final.json")
        if is_packed(folder) and (folder / "final.json").exists():
            return load_document(folder / SUMMARY) | load_document(folder / "final.json")
        policy = policies[spec.policy, seed]
        finetuned = job.finetune(policy, tuning) if spec.is_tuned else None
        return job.pack(policy, finetuned=finetuned, about={"row": spec.name}, num_batches=self._num_batches)

    def _policy(self, kind: str, seed: int, reporter: Reporter, report: ProgressCallback) -> Policy:
        names = make_simulator(self._run).names
        if kind == "mix":
            mixed = dict.fromkeys(names, WeightFormat(self._asked.kind, MIX_BITS, self._asked.per_channel))
            return mixed | protected_choices(self._ends, names, kind=self._asked.kind)
        share = self._share.replace(" ", "_").replace(",", "")
        options = replace(self._asked, seed=seed, protect=self._ends if kind == "preserve_mix" else Protect())
        # searches with other options, as of a call that was stopped before any row, have folders of their own
        model = to_plain(self._run.config.model)
        digest = json_digest(dataclasses.asdict(options), self._method, self._weights, model)
        folder = self._out / "searches" / f"{share}_{kind}_seed_{seed}_{digest}"
        file = folder / WORK / "policy.json"
        if file.exists():
            return policy_from_dict(load_document(file), names, origin=str(file))
        name, method = self._build_method(kind, seed)
        job = Compression(self._run, folder, reporter)
        result, _ = job.search(options, name, method, given={}, report=report)
        return result.policy

    def _build_method(self, kind: str, seed: int) -> tuple[str, Search]:
        name, *arguments = self._method
        name = "uniform_protected" if (name, kind) == ("uniform", "preserve_mix") else name
        component = parse_component(registry.searches, name, arguments)
        seeded = "seed" in registry.searches.entry(component).arguments
        component = parse_component(registry.searches, name, [*arguments, f"seed={seed}"] if seeded else arguments)
        return component.name, registry.searches.build(component, facts={})

    def _document(
        self, metrics: Sequence[str], rows: Sequence[Mapping[str, Any]], policies: Mapping[tuple[str, int], Policy]
    ) -> dict[str, Any]:
        return {
            "run": str(self._run.path),
            "checkpoint": str(self._run.checkpoint_path.resolve()),
            "data": self._run.config.data.name,
            "metrics": metrics,
            "search": list(self._method),
            "budget_on": self._asked.budget_on,
            "ratio": self._asked.ratio,
            "epochs": self._tuning.epochs,
            "rows": rows,
            "left_out": self.left_out,
            "policies": {f"{kind}, seed {seed}": policy_to_dict(policy) for (kind, seed), policy in policies.items()},
        }


def compression_markdown(document: Mapping[str, Any]) -> str:
    """Format the table as Markdown, after a note that codebooks do not make the model faster."""
    metrics = document["metrics"]
    head = ["row", *metrics, "seeds", "bytes of the file", "codes", "with codebooks", "file"]
    rows = []
    for row in document["rows"]:
        cells = [
            f"{row[name]:.4f}" + (f" ± {row[f'{name}_std']:.4f}" if row[f"{name}_std"] is not None else "")
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
