"""Evaluation of a whole split: metrics and mean losses, bitwise equal on any number of processes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.binding import BoundFunction, select_arguments
from sightline.contract.errors import RunError
from sightline.contract.metric import Metric, State, WorstSamples, make_state, pool_states, row_states, sorted_rows
from sightline.contract.task import Task
from sightline.contract.types import Batch, Sample, SampleKey, Surroundings
from sightline.draw.pictures import Picture
from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.batches.stream import BatchLoader, read_batches
from sightline.engine.device.numerics import Precision
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.step import StepTimer, divide_by_count, single_batch_step
from sightline.engine.tiles import TileReader, predict_by_tiles
from sightline.ops import waits
from sightline.store.loading.leaves import array_leaves, as_bytes

logger = logging.getLogger(__name__)

_NUM_HARD = 5
_MAX_EQUAL = 0.5
"""Share of the passes of `votes` that may have the inputs of another: a flip has two outcomes."""
_NUM_HARDEST = 12
"""Samples of which pictures are drawn, at most a batch, if the task states how hard each is."""
BatchCallback = Callable[[Batch, Mapping[str, Any]], None]
"""Callback for each evaluated batch and its predictions."""


@dataclass(frozen=True)
class BoundMetric:
    """A metric, with its update bound to batch and prediction keys."""

    metric: Metric
    update: BoundFunction


@dataclass(frozen=True)
class MetricResult:
    """State of a metric over a whole split, from plain predictions or, with a suffix, from averaged ones."""

    metric: BoundMetric
    suffix: str
    state: State

    def add_suffix(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append the suffix to the names of values; a class's `count` is the same for all and keeps its name."""
        return {name if name == "count" else f"{name}{self.suffix}": value for name, value in values.items()}


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation: metrics, metrics per class, tables, and the mean of each loss.

    `results` are the metric states that all but the losses were computed from; `protocol` names how samples were
    predicted, such as `fragments + views`; `phase_seconds` are of this process.
    """

    metrics: Mapping[str, float]
    losses: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, Any]
    num_samples: int
    seconds: float
    pictures: tuple[Picture, ...] = ()
    results: tuple[MetricResult, ...] = field(default=(), repr=False, compare=False)
    protocol: str = ""
    phase_seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def hard_classes(self) -> dict[str, Any]:
        """The worst classes or joints with labels, at most five, the worst first: `figure` and `classes`, name → value.

        By the first figure per class of the first metric that states which of its values are better; empty without one.
        A class that is as good as the best is not listed.
        """
        figure, ranked = self.ranked_classes
        worst = {name: value for name, value in ranked.items() if value != [*ranked.values()][-1]}
        return {"figure": figure, "classes": dict(list(worst.items())[:_NUM_HARD])} if worst else {}

    @property
    def ranked_classes(self) -> tuple[str, dict[str, float]]:
        """The figure by which `hard_classes` are the worst, and its value for each class with labels, the worst first.

        Empty if no metric states which values of its figures per class are better.
        """
        for result in self.results:
            if result.suffix:
                continue
            per_class = result.metric.metric.per_class(result.state)
            rows = {name: row for name, row in per_class.items() if row.get("count", 1)}
            figure = next((name for row in rows.values() for name in row if name != "count"), "")
            better = result.metric.metric.higher_is_better
            is_higher = better.get(figure) if isinstance(better, Mapping) else better
            valid = {name: row[figure] for name, row in rows.items() if not math.isnan(row.get(figure, math.nan))}
            if is_higher is not None and valid:
                return figure, dict(sorted(valid.items(), key=lambda pair: pair[1], reverse=not is_higher))
        return "", {}

    @property
    def class_intervals(self) -> dict[str, dict[str, Any]]:
        """The 95 % intervals of classes with labels, class → figure → `low`, `high`, `level`, `num_samples`, `method`.

        `low` and `high` are None for a class that one sample alone has, from which nothing follows about others.
        """
        intervals: dict[str, dict[str, Any]] = {}
        for result in self.results:
            metric = result.metric.metric
            for figure, sums in result.add_suffix(metric.class_intervals(result.state)).items():
                if sums.num_samples > self.num_samples:  # labels of points were counted: those of a cloud are alike
                    continue
                for name, interval in zip(metric.per_class(result.state), sums.intervals(), strict=True):
                    if interval["num_samples"]:
                        intervals.setdefault(name, {})[figure] = interval
        return intervals

    @property
    def worst_samples(self) -> WorstSamples | None:
        """The samples that the first metric with `worst_samples` lists, from plain predictions; None without one."""
        for result in self.results:
            worst_of = result.metric.metric.worst_samples
            if worst_of is not None and not result.suffix:
                return worst_of(result.state)
        return None

    @property
    def confused_with(self) -> dict[str, dict[str, Any]]:
        """The most frequent wrong class of each class with errors: `class`, `count`, `share` of its labels.

        From the table `confusion`; columns that have no row per class, such as background, are no class.
        """
        confusion = self.tables.get("confusion", {})
        names, counts, result = confusion.get("classes", ()), confusion.get("counts", ()), {}
        for name, row in ((name, row) for name, row in zip(names, counts, strict=True) if name in self.per_class):
            wrong = {o: count for o, count in zip(names, row, strict=True) if o != name and o in self.per_class}
            other = max(wrong, key=wrong.__getitem__, default="")
            if wrong.get(other):
                result[name] = {"class": other, "count": wrong[other], "share": wrong[other] / sum(row)}
        return result

    def describe(self, headline: str, name_of: Callable[[int], str] = str) -> dict[str, Any]:
        """Return what documents state of metrics: figures, those of classes, tables, the headline's `interval`.

        Figures that are not made of sums over samples, such as an AP, have no interval. `name_of` names the samples of
        `worst_samples` by their index.
        """
        worst = self.worst_samples
        further: dict[str, Any] = {
            "hard_classes": self.hard_classes,
            "confused_with": self.confused_with,
            "class_intervals": self.class_intervals,
            "worst_samples": {} if worst is None else worst.to_dict(name_of),
        }
        for result in self.results:
            sums = result.add_suffix(result.metric.metric.sums(result.state))
            interval = sums[headline].interval() if headline in sums else None
            if interval and interval["num_samples"] <= self.num_samples:  # else labels of points were counted
                further["interval"] = {"figure": headline, **interval}
        return {
            "metrics": dict(self.metrics),
            "per_class": {name: dict(row) for name, row in self.per_class.items()},
            **({"protocol": self.protocol} if self.protocol else {}),
            **{name: value for name, value in further.items() if value},
            **self.tables,
        }


def pool_evaluations(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Pool evaluations of different samples by the same metrics, from their states; means of losses are left out."""
    first, *rest = evaluations
    results = []
    for index, result in enumerate(first.results):
        states = [result.state, *(other.results[index].state for other in rest)]
        results.append(dataclasses.replace(result, state=pool_states(result.metric.metric, states)))
    num_samples = sum(evaluation.num_samples for evaluation in evaluations)
    pooled = make_evaluation(
        results, num_samples=num_samples, seconds=sum(evaluation.seconds for evaluation in evaluations)
    )
    return dataclasses.replace(pooled, protocol=" or ".join(dict.fromkeys(each.protocol for each in evaluations)))


def make_evaluation(results: Sequence[MetricResult], *, num_samples: int, seconds: float) -> Evaluation:
    """Build an Evaluation (without losses) from accumulated metric states."""
    metrics, per_class, tables = _compute_figures(results)
    return Evaluation(metrics, {}, per_class, tables, num_samples, seconds, results=tuple(results))


@dataclass(frozen=True)
class Evaluator:
    """Evaluator of one split. `voting_reader` reads the passes of `votes` > 1, `tiles` those of tiles, in this process.

    `ensemble_models` are further models, e.g. earlier checkpoints of a run, whose predictions are averaged with the
    model's. Keys in `exact_keys` reach metrics in the data set's dtype. `surroundings` of clouds are for pictures.
    """

    task: Task
    metrics: Sequence[BoundMetric]
    reader: BatchLoader
    indices: np.ndarray
    batch_size: int
    loss_names: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 0
    precision: Precision = field(default_factory=lambda: Precision("float32"))
    voting_reader: BatchLoader | None = None
    votes: int = 1
    tiles: TileReader | None = None
    ensemble_models: tuple[nn.Module, ...] = ()
    exact_keys: frozenset[str] = frozenset()
    surroundings: Surroundings = "none"

    def __call__(
        self, model: nn.Module, world: World, *, pictures: bool = False, on_batch: BatchCallback | None = None
    ) -> Evaluation:
        """Evaluate a model; whole batches are assigned to processes in turn, with a single collective at the end.

        `on_batch` receives each batch of this process with its predictions, those of all passes if there are several.
        """
        started, clock = time.perf_counter(), StepTimer(self.task, remainder="interpret")
        was_training = model.training
        model.eval()
        plan = evaluation_keys(self.indices, self.batch_size, epoch=0, seed=self.seed)
        ledger = _SampleLedger(num_batches=len(plan), indices=self.indices, loss_names=self.loss_names)
        tallies = [
            _MetricAccumulator(meter, suffix, world.device, num_samples=len(ledger.seen))
            for suffix in self._list_suffixes()
            for meter in self.metrics
        ]
        drawn: tuple[Picture, ...] = ()
        show = self.task.show if pictures else None
        hardness_of = self.task.hardness if show and len(self.indices) > self._num_drawn else None
        numbers = range(world.rank, len(plan), world.size)
        batches = read_batches(self.reader, (plan[number] for number in numbers), self.workers)
        with torch.no_grad(), contextlib.closing(batches):
            for number, batch in zip(numbers, batches, strict=True):
                clock.end_phase("data")
                inputs = _digest(batch) if self.votes > 1 else b""
                batch = self._to_device(batch, world)
                ledger.add_samples(batch["sample_index"])
                clock.end_phase("transfer")
                predictions = self._predict(model, batch, world, ledger, number, clock)
                by_suffix = {
                    "": predictions,
                    **self._predict_votes(model, plan[number], predictions, world, ledger, inputs),
                }
                by_suffix |= self._predict_tiles(model, plan[number], predictions, world)
                by_suffix |= self._predict_ensemble(batch, predictions, world)
                if len(by_suffix) > 1:
                    clock.end_phase("votes")
                for tally in tallies:
                    tally.update(batch, by_suffix[tally.suffix])
                if on_batch is not None:
                    on_batch(batch, by_suffix[self._list_suffixes()[-1]])
                if hardness_of is not None:
                    ledger.note_hardness(batch["sample_index"], hardness_of(batch, predictions))
                elif number == 0 and show is not None:
                    drawn = self._show(batch, predictions)
                clock.end_phase("metrics")
        evaluation = self._reduce(tallies, ledger, world, started)
        if hardness_of is not None:
            drawn = world.rank_zero_only(self._draw_hardest)(model, world, ledger.hardness) or ()
        if show is not None:
            drawn += world.rank_zero_only(self._draw_worst)(model, world, evaluation) or ()
        model.train(was_training)
        if pictures:
            drawn += tuple(world.rank_zero_only(_draw_pictures)(evaluation.results) or ())
        evaluation = dataclasses.replace(evaluation, pictures=drawn)
        clock.end_phase("metrics")
        return dataclasses.replace(evaluation, phase_seconds=clock.seconds)

    @property
    def _num_drawn(self) -> int:
        return min(_NUM_HARDEST, self.batch_size)

    def _to_device(self, batch: Batch, world: World) -> Batch:
        exact = {name: batch[name].to(world.device) for name in self.exact_keys}
        return {**to_device(batch, world.device, float_dtype=self.precision.parameter_dtype), **exact}

    def _draw_hardest(self, model: nn.Module, world: World, hardness: Tensor) -> tuple[Picture, ...]:
        """Draw the samples that the task predicts worst, the worst first; they are read and predicted again."""
        worst = torch.sort(hardness[self.indices], descending=True, stable=True).indices[: self._num_drawn]
        pictures = self._draw_samples(model, world, self.indices[worst.numpy()])
        return tuple(dataclasses.replace(picture, name=f"hardest_{picture.name}") for picture in pictures)

    def _draw_worst(self, model: nn.Module, world: World, evaluation: Evaluation) -> tuple[Picture, ...]:
        """Draw the samples with the most errors of each kind, the worst first."""
        worst = evaluation.worst_samples
        if worst is None:
            return ()
        pictures: list[Picture] = []
        for kind, counts in worst.of_kind.items():
            drawn = self._draw_samples(model, world, np.array([*counts][: self._num_drawn]), score=worst.min_score)
            for picture, (index, count) in zip(drawn, counts.items(), strict=False):
                caption = f"sample {index}, {count} {kind}; {picture.caption}"
                pictures.append(dataclasses.replace(picture, name=f"worst_{kind}_{picture.name}", caption=caption))
        return tuple(pictures)

    def _show(self, batch: Batch, predictions: Mapping[str, Any], **optional: Any) -> tuple[Picture, ...]:
        """Draw samples, with those optional arguments that the task's `show` takes."""
        show: Any = self.task.show
        optional["surroundings"] = self.surroundings
        return tuple(show(batch, predictions, **select_arguments(show, optional)))

    def _draw_samples(
        self, model: nn.Module, world: World, indices: np.ndarray, **optional: Any
    ) -> tuple[Picture, ...]:
        """Read and predict samples again, and draw them."""
        if not len(indices):
            return ()
        (keys,) = evaluation_keys(indices, len(indices), epoch=0, seed=self.seed)
        batch = self._to_device(self.reader(keys), world)
        with torch.no_grad(), self.precision.autocast(world.device):
            return self._show(batch, self.task.predict(model, batch), **optional)

    def _list_suffixes(self) -> list[str]:
        """Return the suffixes of metric names: "" (single pass), `_voteN`, `_tileN` and `_ensembleN` (several)."""
        voted = [f"_vote{self.votes}"] if self.votes > 1 else []
        tiled = [] if self.tiles is None else [self.tiles.suffix]
        return ["", *voted, *tiled, *([self._ensemble_suffix] if self.ensemble_models else [])]

    @property
    def _ensemble_suffix(self) -> str:
        return f"_ensemble{len(self.ensemble_models) + 1}"

    def _predict(
        self, model: nn.Module, batch: Batch, world: World, ledger: _SampleLedger, number: int, clock: StepTimer
    ) -> Mapping[str, Any]:
        """Predict a batch, and record its losses in the ledger."""
        step = single_batch_step(self.task, model, batch, world.device, self.precision)
        clock.end_phase("prepare")
        sums, predictions = step.loss_sums_and_predictions(model)
        waits.check()
        clock.end_phase("forward")
        ledger.note_losses(number, sums, step.counts)
        return predictions

    def _predict_votes(
        self,
        model: nn.Module,
        keys: list[SampleKey],
        first: Mapping[str, Any],
        world: World,
        ledger: _SampleLedger,
        digest: bytes,
    ) -> dict[str, Mapping[str, Any]]:
        """Predict samples by test-time augmentation (voting): the mean of all passes; empty for a single pass.

        Passes are read and predicted one by one, as the task asks for them. `digest` is that of the first one's inputs.
        """
        if self.votes == 1:
            return {}
        assert self.voting_reader is not None, "votes need a reader that varies its input"
        reader, inputs = self.voting_reader, {digest}

        def iterate_passes() -> Iterator[Mapping[str, Any]]:
            yield first
            for vote in range(1, self.votes):
                varied = reader([SampleKey(key.index, vote, key.seed, step=vote) for key in keys])
                inputs.add(_digest(varied))
                batch = to_device(varied, world.device, float_dtype=self.precision.parameter_dtype)
                yield self.task.predict(model, batch)

        with self.precision.autocast(world.device):
            voted = self._vote(iterate_passes())
        ledger.passes += torch.tensor([self.votes - len(inputs), self.votes - 1])
        return {f"_vote{self.votes}": voted}

    def _predict_tiles(
        self, model: nn.Module, keys: list[SampleKey], first: Mapping[str, Any], world: World
    ) -> dict[str, Mapping[str, Any]]:
        """Predict samples by tiles, besides their own pass; empty without tiles."""
        if self.tiles is None:
            return {}
        reader = self.tiles

        def predict(tile_keys: Sequence[SampleKey], tiles: Sequence[Sample]) -> Mapping[str, Any]:
            batch = to_device(
                reader.read_tiles(tile_keys, tiles), world.device, float_dtype=self.precision.parameter_dtype
            )
            return self.task.predict(model, batch)

        with self.precision.autocast(world.device):
            tiled = predict_by_tiles(reader.tiling, reader.read_whole(keys), first, predict, batch_size=self.batch_size)
        return {reader.suffix: tiled}

    def _predict_ensemble(self, batch: Batch, first: Mapping[str, Any], world: World) -> dict[str, Mapping[str, Any]]:
        """Predict a batch by the ensemble of the model and `ensemble_models`; empty without these."""
        if not self.ensemble_models:
            return {}
        with self.precision.autocast(world.device):
            passes = [first, *(self.task.predict(member.eval(), batch) for member in self.ensemble_models)]
        return {self._ensemble_suffix: self._vote(passes)}

    def _vote(self, passes: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
        assert self.task.vote is not None, "whoever asks for several passes has looked for it"
        return self.task.vote(passes)

    def _reduce(
        self, tallies: Sequence[_MetricAccumulator], ledger: _SampleLedger, world: World, started: float
    ) -> Evaluation:
        flat = {f"{number}/{name}": t for number, tally in enumerate(tallies) for name, t in tally.state.items()}
        ragged = {f"{number}/{name}" for number, tally in enumerate(tallies) for name in row_states(tally.meter.metric)}
        summed = {name: tensor for name, tensor in flat.items() if name not in ragged}
        totals = world.all_reduce_sum(summed | ledger.get_tensors(), operation="metrics")
        totals |= {
            name: sorted_rows(world.gather_rows(flat[name], operation="rows of metrics")[0]) for name in sorted(ragged)
        }
        ledger.assert_complete(totals)
        ledger.hardness = totals["hardness"].cpu()
        measured = tuple(
            MetricResult(tally.meter, tally.suffix, {name: totals[f"{number}/{name}"].cpu() for name in tally.state})
            for number, tally in enumerate(tallies)
        )
        metrics, per_class, tables = _compute_figures(measured)
        losses = ledger.mean_losses(totals)
        world.rank_zero_only(self._warn_of_losses)(losses, totals)
        world.rank_zero_only(_warn_of_equal_passes)(*totals["passes"].tolist())
        seconds = time.perf_counter() - started
        protocol = " + ".join(filter(None, (self.task.protocol, "views" if self.votes > 1 else "")))
        return Evaluation(
            metrics, losses, per_class, tables, len(self.indices), seconds, results=measured, protocol=protocol
        )

    def _warn_of_losses(self, losses: Mapping[str, float], totals: Mapping[str, Tensor]) -> None:
        """Warn of losses that count and are not finite, with the samples of the first batch where one is not."""
        for name in (n for n, value in losses.items() if not math.isfinite(value) and totals[f"loss counts/{n}"].any()):
            number = int(totals[f"loss sums/{name}"].isfinite().int().argmin())
            samples = self.indices[number * self.batch_size : (number + 1) * self.batch_size]
            logger.warning(
                "non-finite-loss: the loss '%s' is %s in this evaluation, first in batch %d (samples %d to %d); look "
                "there for a logarithm of 0 or an overflow, in the loss or in what the model returns",
                *(name, losses[name], number, samples[0], samples[-1]),
            )


def _warn_of_equal_passes(num_equal: int, total: int) -> None:
    """Warn of passes of `votes` over the inputs of another one: they give its predictions again, and only take time."""
    if num_equal > _MAX_EQUAL * total:
        logger.warning(
            "equal-votes: %d of the %d further passes of evaluate.votes read the numbers of another one, so that their "
            "predictions are equal; let transforms.vote draw what it changes from a range, or lower evaluate.votes",
            *(num_equal, total),
        )


def _digest(batch: Batch) -> bytes:
    """Compute a digest of the floating-point numbers of a batch, by key: what transforms vary."""
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        for path, tensor in array_leaves(value, name):
            if tensor.is_floating_point():
                digest.update(path.encode() + as_bytes(tensor).tobytes())
    return digest.digest()


def _draw_pictures(results: Sequence[MetricResult]) -> list[Picture]:
    """Collect the pictures that metrics draw from plain predictions. Raises RunError for any other object."""
    pictures: list[Picture] = []
    for result in results:
        if result.suffix:
            continue
        pictures_of = result.metric.metric.pictures
        for picture in pictures_of(result.state):
            if not isinstance(picture, Picture):
                name = f"{pictures_of.__module__}.{pictures_of.__qualname__}"
                raise RunError(
                    f"{name}: gave a {type(picture).__name__}, a list of sightline.draw.pictures.Picture is needed"
                )
            pictures.append(picture)
    return pictures


def _compute_figures(
    results: Sequence[MetricResult],
) -> tuple[dict[str, float], dict[str, dict[str, Any]], dict[str, Any]]:
    """Compute metrics, metrics per class, and tables from the states of whole splits."""
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, Any]] = {}
    tables: dict[str, Any] = {}
    for result in results:
        metric = result.metric.metric
        metrics |= result.add_suffix(metric.compute(result.state))
        for name, row in metric.per_class(result.state).items():
            per_class.setdefault(name, {}).update(result.add_suffix(row))
        tables |= result.add_suffix(metric.tables(result.state))
    return metrics, per_class, tables


class _MetricAccumulator:
    """Accumulator of a metric's state over an evaluation, from plain or averaged predictions."""

    def __init__(self, meter: BoundMetric, suffix: str, device: torch.device, *, num_samples: int) -> None:
        self.meter = meter
        self.suffix = suffix
        state = make_state(meter.metric, num_samples=num_samples)
        self.state = {name: tensor.to(device) for name, tensor in state.items()}

    def update(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        self.meter.metric.update(self.state, **self.meter.update.select(batch, predictions))


class _SampleLedger:
    """Record of evaluated samples and losses per batch: one slot per batch makes sums independent of the world size."""

    def __init__(self, *, num_batches: int, indices: np.ndarray, loss_names: Sequence[str]) -> None:
        self.indices = torch.from_numpy(indices.astype(np.int64))
        self.seen = torch.zeros(int(indices.max()) + 1 if len(indices) else 0, dtype=torch.int64)
        self.hardness = torch.zeros(len(self.seen), dtype=torch.float64)
        self.passes = torch.zeros(2, dtype=torch.int64)  # further ones with the inputs of another, and all
        self.sums = {name: torch.zeros(num_batches, dtype=torch.float64) for name in loss_names}
        self.counts = {name: torch.zeros(num_batches, dtype=torch.float64) for name in loss_names}

    def add_samples(self, sample_index: Tensor) -> None:
        self.seen += torch.bincount(sample_index.cpu(), minlength=len(self.seen))

    def note_hardness(self, sample_index: Tensor, hardness: Tensor) -> None:
        self.hardness[sample_index.cpu()] = hardness.double().cpu()

    def note_losses(self, number: int, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        for name, total in sums.items():
            self.sums[name][number] = float(total)
            self.counts[name][number] = float(counts[name])

    def get_tensors(self) -> dict[str, Tensor]:
        """Return the tensors to sum over processes: counts of samples and passes, hardness, losses."""
        slots = {f"loss sums/{n}": t for n, t in self.sums.items()} | {
            f"loss counts/{n}": t for n, t in self.counts.items()
        }
        return {"seen": self.seen, "hardness": self.hardness, "passes": self.passes} | slots

    def assert_complete(self, totals: Mapping[str, Tensor]) -> None:
        times = totals["seen"].cpu()[self.indices]
        assert bool((times == 1).all()), (
            f"evaluation saw {int((times == 0).sum())} samples never and {int((times > 1).sum())} more than once"
        )

    def mean_losses(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute the mean of each loss; NaN for one that counts nothing."""
        counts = {name: totals[f"loss counts/{name}"].sum() for name in self.sums}
        return {
            name: divide_by_count(totals[f"loss sums/{name}"].sum(), count).item() if count else math.nan
            for name, count in counts.items()
        }
