"""Reports of compression: searches compared and drawn, and the table of a run.

Comparison of searches: table rows, the Pareto front of loss and bytes, and its hypervolume.

SVG pictures: results of searches, and the bits of each layer.

Table of a run's compression, from the float model to mixed bits, fine-tuned and distilled; resumable.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.config.reader import parse_component
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.draw.charts import CHART_STYLE, COLORS, FAINT, ChartPanel, Drawing, Scale, Series, render_svg
from sightline.draw.page import PageTable
from sightline.engine.run_loading import OpenRun
from sightline.runs.checkpoint import PACKED_FILE, evaluated_sha256, is_packed, resolve_weights
from sightline.runs.packed import unique_tensors
from sightline.runs.run_directory import load_document, write_document, write_file
from sightline.training.train_run import Reporter
from sightline.workbench.compress.packing import SUMMARY
from sightline.workbench.compress.policy import (
    LayerCost,
    Policy,
    Protect,
    WeightFormat,
    policy_from_dict,
    policy_to_dict,
    protected_choices,
)
from sightline.workbench.compress.run_problem import CompressionOptions, make_simulator, untraced_problem
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

Point = tuple[float, float]
"""Point (bytes, loss); lower is better for both."""


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


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the Pareto front: the points that no other point dominates, sorted by bytes, without duplicates."""
    front: list[Point] = []
    for size, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((size, loss))
    return front


_FRONT = "Pareto front"
_MIN_LOG_RATIO = 20.0
"""Ratio of the largest to the smallest loss above which their axis is logarithmic."""
_ROW, _HEAD, _BARS, _END = 16, 44, 300, 130
_LETTER = 6.2
"""Approximate width of a letter, at a font size of 11 pixels."""
_COLOR_OF = {"codebook": COLORS[1], "linear": COLORS[3], "fp16": COLORS[0], "fp32": COLORS[0]}
_INPUT = COLORS[2]


def pareto_svg(found: Mapping[str, Sequence[Point]], *, counted: str) -> str:
    """Draw loss over kilobytes of `counted`: a mark per (bytes, loss) of each method, and the Pareto front."""
    points = [point for method_points in found.values() for point in method_points]
    series = [Series(_FRONT, _in_kilobytes(pareto_front(points)))]
    series += [Series(name, _in_kilobytes(method_points), has_line=False) for name, method_points in found.items()]
    losses = [loss for _, loss in points]
    scale: Scale = "logarithmic" if min(losses) > 0 and max(losses) > _MIN_LOG_RATIO * min(losses) else "linear"
    panel = ChartPanel("loss", f"kilobytes of the {counted}", tuple(series), x_scale="linear", y_scale=scale)
    return render_svg([[panel]], panel_width=560, panel_height=300)


def _in_kilobytes(points: Iterable[Point]) -> tuple[Point, ...]:
    return tuple((size / 1e3, loss) for size, loss in points)


def bits_svg(policy: Policy, layers: Sequence[LayerCost]) -> str:
    """Draw a bar per layer, in the model's order: bits of its weights, and a thin bar for those of its input."""
    x_bars = round(20 + _LETTER * max(len(layer.name) for layer in layers))
    width, height = x_bars + _BARS + _END, _HEAD + _ROW * len(layers) + 10
    kinds = dict.fromkeys(policy[layer.name].kind for layer in layers)
    max_bits = max(8, *(policy[layer.name].bits for layer in layers))
    legend: list[tuple[str, str]] = [(kind, _COLOR_OF[kind]) for kind in kinds]
    if any(policy[layer.name].activation for layer in layers):
        legend.append(("input", _INPUT))
    drawing = Drawing()
    for index, (name, color) in enumerate(legend):
        drawing.add("rect", x=x_bars + 90 * index, y=9, width=14, height=10, fill=color)
        drawing.add("text", name, x=x_bars + 90 * index + 19, y=18)
    for bits in range(0, max_bits + 1, max_bits // 8):
        x = f"{x_bars + _BARS * bits / max_bits:.1f}"
        drawing.add("line", x1=x, x2=x, y1=_HEAD - 4, y2=height - 8, stroke=FAINT)
        drawing.add("text", str(bits), x=x, y=_HEAD - 8, text_anchor="middle", font_size=10)
    for index, layer in enumerate(layers):
        choice, top = policy[layer.name], _HEAD + _ROW * index
        bars = [(choice.bits, top + 2, 9, _COLOR_OF[choice.kind])]
        bars += [(choice.activation.bits, top + 11, 3, _INPUT)] if choice.activation else []
        drawing.add("text", layer.name, x=x_bars - 6, y=top + 11, text_anchor="end")
        for bits, y, thickness, color in bars:
            length = f"{_BARS * bits / max_bits:.1f}"
            drawing.add("rect", x=x_bars, y=y, width=length, height=thickness, fill=color)
        end = f"{x_bars + _BARS * max(bar[0] for bar in bars) / max_bits + 5:.1f}"
        drawing.add("text", f"{choice.bits} · {layer.num_weights:,} weights", x=end, y=top + 11, font_size=10)
    return drawing.encode(width, height, **CHART_STYLE)


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


@dataclass(frozen=True)
class ReportRow:
    """Row of the table: metrics per seed, and bytes and ratios of the first seed."""

    name: str
    metrics: tuple[Mapping[str, float | None], ...]
    file_bytes: int
    ratios: Mapping[str, float]
    test_seconds: float | None = None

    def mean(self, metric: str) -> float:
        return float(np.mean(self._values(metric)))

    def spread(self, metric: str) -> float | None:
        """Compute the standard deviation over the seeds; None for a single seed."""
        values = self._values(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def _values(self, metric: str) -> list[float]:
        """Return a metric of all seeds; null in files, for numbers that are not finite, becomes NaN."""
        values = (seed_metrics[metric] for seed_metrics in self.metrics)
        return [math.nan if value is None else value for value in values]


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
        evaluator, world = self._run.evaluator(), self._run.world
        simulated = make_simulator(self._run)
        self._assert_same()
        for name, reason in self.left_out.items():
            reporter.note(f"row '{name}' left out: {reason}")
        seeds = range(self._asked.seed, self._asked.seed + num_seeds)
        policies = self._policies(seeds, reporter, report)
        evaluator(self._run.model, world)  # warm-up: compilation and first reads are not timed
        evaluation = evaluator(self._run.model, world)
        float_bytes = simulated.base_bytes()
        full_size = {"weights": 1.0, "codebook": 1.0, "file": 1.0}
        rows = [ReportRow("float", (dict(evaluation.metrics),), float_bytes, full_size, evaluation.seconds)]
        document: dict[str, Any] = {}
        for spec in self.specs():
            done = []
            for seed in seeds:
                reporter.note(f"row '{spec.name}', seed {seed}")
                done.append(self._row(spec, seed, policies, reporter))
            first = done[0]
            sizes, size = first.get("ratios", full_size), first.get("file_bytes", float_bytes)
            figures = tuple(summary["metrics"] for summary in done)
            rows.append(ReportRow(spec.name, figures, size, sizes, first.get("test_seconds")))
            document = self._document(rows, policies)
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
        request = {"weights": evaluated_sha256(resolve_weights(self._run.checkpoint_path)), **options, "tuning": tuning}
        rows = self._out / "rows"
        is_begun = any(any(rows.glob(name)) for name in (f"*/{PACKED_FILE}", f"*/{WORK}/{FINE_TUNED}/config.yaml"))
        assert_same_request(self._out / REQUEST_FILE, request, is_begun=is_begun, may_differ=("ratio", "num_bytes"))

    def _row_folder(self, spec: _RowSpec, seed: int) -> Path:
        return self._out / "rows" / f"{spec.name.replace(' ', '_').replace(',', '').replace('+_', '')}_seed_{seed}"

    def _row(
        self, spec: _RowSpec, seed: int, policies: Mapping[tuple[str, int], Policy], reporter: Reporter
    ) -> Mapping[str, Any]:
        folder = self._row_folder(spec, seed)
        job = Compression(self._run, folder, reporter, may_be_done=True)
        tuning = replace(self._tuning, is_distilled=spec.is_distilled, seed=seed)
        if spec.policy is None:
            return load_document(job.finetune(None, tuning) / "final.json")
        if _is_done(folder):
            return load_document(folder / SUMMARY) | load_document(folder / "final.json")
        policy = policies[spec.policy, seed]
        finetuned = job.finetune(policy, tuning) if spec.is_tuned else None
        return job.pack(policy, finetuned=finetuned, about={"row": spec.name}, num_batches=self._num_batches)

    def _policies(
        self, seeds: Iterable[int], reporter: Reporter, report: ProgressCallback
    ) -> dict[tuple[str, int], Policy]:
        """Return the policy of each kind and seed, before any row is computed; finished rows keep theirs."""
        names, policies = [name for name, _ in self._run.model.named_parameters()], {}
        for kind, seed in itertools.product(dict.fromkeys(spec.policy for spec in self.specs() if spec.policy), seeds):
            folders = [self._row_folder(spec, seed) for spec in self.specs() if spec.policy == kind]
            done = next((folder / SUMMARY for folder in folders if _is_done(folder)), None)
            if done is None:
                policies[kind, seed] = self._policy(kind, seed, reporter, report)
            else:
                stored = load_document(done)["policy"]
                policies[kind, seed] = policy_from_dict(stored, names, origin=str(done), is_whole=False)
        return policies

    def _policy(self, kind: str, seed: int, reporter: Reporter, report: ProgressCallback) -> Policy:
        names = make_simulator(self._run).names
        if kind == "mix":
            mixed = dict.fromkeys(names, WeightFormat(self._asked.kind, MIX_BITS, self._asked.per_channel))
            return mixed | protected_choices(self._ends, names, kind=self._asked.kind)
        share = self._share.replace(" ", "_").replace(",", "")
        folder = self._out / "searches" / f"{share}_{kind}_seed_{seed}"
        file = folder / WORK / "policy.json"
        if file.exists():
            return policy_from_dict(load_document(file), names, origin=str(file))
        options = replace(self._asked, seed=seed, protect=self._ends if kind == "preserve_mix" else Protect())
        name, method = self._build_method(kind, seed)
        job = Compression(self._run, folder, reporter)
        result, problem = job.search(options, name, method, given={}, report=report)
        write_file(self._out / f"bits_{share}_{kind}_seed_{seed}.svg", bits_svg(result.policy, problem.layers))
        return result.policy

    def _build_method(self, kind: str, seed: int) -> tuple[str, Search]:
        name, *arguments = self._method
        name = "uniform_protected" if (name, kind) == ("uniform", "preserve_mix") else name
        component = parse_component(registry.searches, name, arguments)
        seeded = "seed" in registry.searches.entry(component).arguments
        component = parse_component(registry.searches, name, [*arguments, f"seed={seed}"] if seeded else arguments)
        return component.name, registry.searches.build(component, facts={})

    def _document(self, rows: Sequence[ReportRow], policies: Mapping[tuple[str, int], Policy]) -> dict[str, Any]:
        metrics = list(rows[0].metrics[0])
        return {
            "run": str(self._run.path),
            "checkpoint": str(self._run.checkpoint_path.resolve()),
            "data": self._run.config.data.name,
            "metrics": metrics,
            "search": list(self._method),
            "budget_on": self._asked.budget_on,
            "ratio": self._asked.ratio,
            "epochs": self._tuning.epochs,
            "gzip_fp16_bytes": gzip_bytes(self._run),
            "rows": [
                {
                    "name": row.name,
                    **{metric: row.mean(metric) for metric in metrics},
                    **{f"{metric}_std": row.spread(metric) for metric in metrics},
                    "seeds": len(row.metrics),
                    "file_bytes": row.file_bytes,
                    "ratios": dict(row.ratios),
                    "test_seconds": row.test_seconds,
                }
                for row in rows
            ],
            "left_out": self.left_out,
            "policies": {f"{kind}, seed {seed}": policy_to_dict(policy) for (kind, seed), policy in policies.items()},
        }


def _is_done(folder: Path) -> bool:
    return is_packed(folder) and (folder / "final.json").exists()


def gzip_bytes(run: OpenRun) -> int:
    """Count the bytes of the run's state in half precision after gzip: the size without any search."""
    tensors, _ = unique_tensors(run.model.state_dict())
    halves = (t.half() if t.is_floating_point() else t for t in tensors.values())
    return len(gzip.compress(b"".join(t.cpu().contiguous().numpy().tobytes() for t in halves), mtime=0))


def compression_markdown(document: Mapping[str, Any]) -> str:
    """Format the table as Markdown, after a note that codebooks do not make the model faster."""
    metrics = document["metrics"]
    seconds = [row["test_seconds"] for row in document["rows"] if row["test_seconds"] is not None]
    times = f": the test part took {seconds[0]:.1f} s in float and {seconds[-1]:.1f} s from a packed file"
    head = ["row", *metrics, "seeds", "bytes of the file", "codes", "with codebooks", "file"]
    rows = []
    for row in document["rows"]:
        cells = [
            f"{row[name]:.4f}" + (f" ± {row[f'{name}_std']:.4f}" if row[f"{name}_std"] is not None else "")
            for name in metrics
        ]
        ratios = [f"{row['ratios'][key]:.4f}" for key in ("weights", "codebook", "file")]
        rows.append([row["name"], *cells, row["seeds"], f"{row['file_bytes']:,}", *ratios])
    note = f"A codebook makes the file small, not the arithmetic fast{times if len(seconds) > 1 else ''}."
    lines = [note, "", *PageTable(head, rows).to_markdown()]
    reasons: dict[str, list[str]] = {}
    for name, reason in document["left_out"].items():
        reasons.setdefault(reason, []).append(name)
    lines += [line for reason, names in reasons.items() for line in ("", f"Left out: {'; '.join(names)}: {reason}.")]
    size, float_size = document["gzip_fp16_bytes"], document["rows"][0]["file_bytes"]
    lines += ["", f"Half precision after gzip, without any search: {size:,} bytes, {size / float_size:.4f} of float32."]
    return "\n".join(lines) + "\n"
