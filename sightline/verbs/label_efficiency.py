"""`sightline label-efficiency`: scratch against pre-trained at several shares of the labels, resumable run by run."""

from __future__ import annotations

import dataclasses
import math
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sightline import registry
from sightline.chart import Panel, Series, render_svg
from sightline.config import RunConfig
from sightline.engine import checkpoint
from sightline.engine.build import build_part
from sightline.engine.lineage import evaluated_sha256, read_lineage
from sightline.errors import UserError
from sightline.verbs import train as training
from sightline.verbs.common import config_of, load_document, write_document, write_file
from sightline.verbs.output import note, show_table

__all__ = ["Cell", "Options", "Row", "label_efficiency", "rows_of"]

Start = Literal["scratch", "pretrained"]
STARTS: tuple[Start, ...] = ("scratch", "pretrained")
NAME = "label_efficiency"
_COLUMNS = (
    "labels",
    "samples",
    "runs",
    "scratch",
    "spread",
    "pre-trained",
    "spread",
    "difference",
    "against the spread",
)
_PRETRAINED_ONLY = ("optimizer.frozen", "optimizer.layer_decay")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    config: Path
    overrides: tuple[str, ...]
    out: Path
    source: str | None = None
    fractions: str = "0.01,0.05,0.1,1"
    seeds: str = "3"
    epochs: str | None = None
    processes: int | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    json: Path | None = None


@dataclass(frozen=True)
class Cell:
    """One run: its share of the labels, where it starts, its seed, what is laid over the config, and its figure."""

    fraction: float
    start: Start
    seed: int
    path: Path
    overrides: tuple[str, ...]
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """A share of the labels: how many samples that is, the figures of either start by seed, and what they say.

    A spread is the largest figure less the smallest, NaN of a single run. `is_beyond` says whether the difference of
    the means, pre-trained less scratch, is more than the larger of both spreads; None where there is none.
    """

    fraction: float
    num_samples: int
    scratch: tuple[float, ...]
    pretrained: tuple[float, ...]

    @property
    def is_complete(self) -> bool:
        return bool(self.scratch and self.pretrained)

    @property
    def spread(self) -> float:
        return max(_spread(self.scratch), _spread(self.pretrained))

    @property
    def difference(self) -> float:
        return statistics.fmean(self.pretrained) - statistics.fmean(self.scratch) if self.is_complete else math.nan

    @property
    def is_beyond(self) -> bool | None:
        is_known = self.is_complete and not math.isnan(self.spread)
        return self.difference > self.spread if is_known else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not known yet is null."""
        return {
            "fraction": self.fraction,
            "num_samples": self.num_samples,
            **{start: _statistics(getattr(self, start)) for start in STARTS},
            "difference": self.difference,
            "spread": self.spread,
            "is_beyond_spread": self.is_beyond,
        }


def label_efficiency(options: Options) -> int:
    """Run every cell that is not done, and compare; the exit code of the first run that did not come to its end."""
    config, cells = _plan(options)
    sizes = {cell.fraction: _num_samples(options, cell) for cell in cells if cell.seed == 0 and cell.start == "scratch"}
    done: list[Cell] = []
    code = 0
    for number, cell in enumerate(cells, start=1):
        _assert_same_source(cell, config)
        labels = f"{_told_fraction(cell.fraction)} of the labels"
        note(f"run {number} of {len(cells)}: {labels}, {cell.start}, seed {cell.seed}")
        with _handlers_kept():
            code = training.train(_options_of(cell, options))
        if code:
            note(f"{number - 1} of {len(cells)} runs are done; the same command goes on with {cell.path}")
            break
        done.append(dataclasses.replace(cell, value=_figure(cell, config.evaluate.metric)))
        _write(options, config, rows_of(done, sizes), cells=done)
    rows = rows_of(done, sizes)
    show_table(
        f"{config.name}: {config.evaluate.metric} of the last weights on the test part", _COLUMNS, map(_shown, rows)
    )
    if done:
        note(f"written: {options.out / NAME}.json, {options.out / NAME}.svg")
        write_document(options.json, _document(options, config, rows, done))
    return code


# --- what there is to run --------------------------------------------------------------------------------------------


def _plan(options: Options) -> tuple[RunConfig, list[Cell]]:
    """The fine-tuning config, and every cell in order; each cell's config has been read. Raises UserError."""
    fractions = _numbers(options.fractions, "--fractions", float)
    if list(fractions) != sorted(set(fractions)) or not all(0 < each <= 1 for each in fractions):
        raise UserError(
            f"--fractions {options.fractions}: give shares above 0, at most 1, each once and in rising order"
        )
    seeds = _one_each(options.seeds, "--seeds", fractions)
    epochs = [None] * len(fractions) if options.epochs is None else _one_each(options.epochs, "--epochs", fractions)
    config = _read(options, _of_source(options))
    if config.init is None:
        raise UserError(f"label-efficiency: {options.config} has no init; say what to start from with --from RUN")
    if "fraction" not in registry.data.entry(config.data).arguments:
        raise UserError(
            f"label-efficiency: the data set '{config.data.name}' has no argument 'fraction' to take less of"
        )
    cells = [
        _cell(options, config, fraction, start, seed, num_epochs)
        for fraction, num_seeds, num_epochs in zip(fractions, seeds, epochs, strict=True)
        for seed in range(num_seeds)
        for start in STARTS
    ]
    for cell in cells:
        _read(options, cell.overrides)
    return config, cells


def _cell(
    options: Options, config: RunConfig, fraction: float, start: Start, seed: int, num_epochs: int | None
) -> Cell:
    given = list(options.overrides if start == "scratch" else _of_source(options))
    if start == "scratch":
        dropped = ("init", *_PRETRAINED_ONLY)
        given = [text for text in given if not any(_is_at(text, key) for key in dropped)]
        given += ["init=null", *(f"{key}={_nothing(config, key)}" for key in _PRETRAINED_ONLY)]
    given += [f"data.fraction={fraction!r}", f"seed={seed}", "evaluate.select=test"]
    given += [f"train.epochs={num_epochs}"] if num_epochs is not None else []
    given += [f"evaluate.every={num_epochs or config.train.epochs}"]
    if "fraction_seed" in registry.data.entry(config.data).arguments:
        given.append(f"data.fraction_seed={seed}")
    path = options.out / f"fraction_{fraction:g}" / f"{start}_seed_{seed}"
    return Cell(fraction, start, seed, path, tuple(given))


def _nothing(config: RunConfig, key: str) -> str:
    """The value that switches a setting of the optimiser off."""
    return "null" if key == "optimizer.layer_decay" else "[]"


def _is_at(override: str, key: str) -> bool:
    place = override.partition("=")[0].strip()
    return place == key or place.startswith(f"{key}.")


def _of_source(options: Options) -> tuple[str, ...]:
    """The overrides, with the run to start from among them where one was given."""
    return options.overrides if options.source is None else (*options.overrides, f"init.from={options.source}")


def _read(options: Options, overrides: Sequence[str]) -> RunConfig:
    return config_of(options.config, overrides, options.plugins)[0]


def _numbers(text: str, option: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas between them") from None


def _one_each(text: str, option: str, fractions: Sequence[float]) -> list[int]:
    numbers = _numbers(text, option, int)
    if len(numbers) not in (1, len(fractions)) or min(numbers) < 1:
        raise UserError(f"{option} {text}: give one whole number from 1, or one for each of {len(fractions)} fractions")
    return numbers * len(fractions) if len(numbers) == 1 else numbers


# --- one run ---------------------------------------------------------------------------------------------------------


def _options_of(cell: Cell, options: Options) -> training.Options:
    return training.Options(
        config=options.config,
        overrides=cell.overrides,
        out=cell.path,
        processes=options.processes,
        resume="auto",
        plugins=options.plugins,
        device=options.device,
    )


def _assert_same_source(cell: Cell, config: RunConfig) -> None:
    """Raises UserError where a cell was begun from weights that the pre-trained run no longer holds."""
    assert config.init is not None, "checked when the cells were planned"
    lineage = read_lineage(cell.path)
    if lineage is None:
        return
    now = evaluated_sha256(checkpoint.find(Path(config.init.source)))
    if lineage["sha256"] != now:
        raise UserError(
            f"{cell.path}: started from other weights ({lineage['sha256'][:16]}...) than {config.init.source} holds "
            f"now ({now[:16]}...); give another --out"
        )


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """What a signal does is afterwards as before: between two runs it ends the command, not the run that is over."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _num_samples(options: Options, cell: Cell) -> int:
    return len(build_part(_read(options, cell.overrides), "train").indices)


def _figure(cell: Cell, metric: str) -> float:
    value = load_document(cell.path / "final.json")["metrics"][metric]
    return math.nan if value is None else float(value)


# --- what came of it -------------------------------------------------------------------------------------------------


def rows_of(cells: Sequence[Cell], num_samples: dict[float, int]) -> list[Row]:
    """A row for each share of which a cell is done, in order."""
    values = {
        (fraction, start): tuple(
            c.value for c in cells if (c.fraction, c.start) == (fraction, start) and c.value is not None
        )
        for fraction in num_samples
        for start in STARTS
    }
    rows = [Row(f, size, values[f, "scratch"], values[f, "pretrained"]) for f, size in num_samples.items()]
    return [row for row in rows if row.scratch or row.pretrained]


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values) if len(values) > 1 else math.nan


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    return {
        "values": list(values),
        "mean": statistics.fmean(values) if values else math.nan,
        "std": statistics.stdev(values) if len(values) > 1 else math.nan,
        "spread": _spread(values),
    }


def _shown(row: Row) -> list[Any]:
    """A row of the table."""
    sides = [_statistics(getattr(row, start)) for start in STARTS]
    figures = [told[key] for told in sides for key in ("mean", "spread")]
    verdict = {True: "beyond it", False: "within it", None: "nothing to compare"}[row.is_beyond]
    counts = [_told_fraction(row.fraction), row.num_samples, max(len(row.scratch), len(row.pretrained))]
    return [*counts, *(None if math.isnan(figure) else figure for figure in (*figures, row.difference)), verdict]


def _told_fraction(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _document(options: Options, config: RunConfig, rows: Sequence[Row], cells: Sequence[Cell]) -> dict[str, Any]:
    assert config.init is not None, "checked when the cells were planned"
    return {
        "config": str(options.config),
        "from": config.init.source,
        "data": config.data.name,
        "metric": config.evaluate.metric,
        "protocol": "last weights, test part scored once, all labels of a share train",
        "rows": [row.to_dict() for row in rows],
        "runs": [
            {"run": str(c.path), "fraction": c.fraction, "start": c.start, "seed": c.seed, "value": c.value}
            for c in cells
        ],
    }


def _write(options: Options, config: RunConfig, rows: Sequence[Row], *, cells: Sequence[Cell]) -> None:
    """Table and plot of what is done so far, in the folder of the runs."""
    write_document(options.out / f"{NAME}.json", _document(options, config, rows, cells))
    series = []
    for start, name in zip(STARTS, ("from scratch", "pre-trained"), strict=True):
        told = [(row.fraction, getattr(row, start)) for row in rows if getattr(row, start)]
        points = tuple((100 * fraction, statistics.fmean(values)) for fraction, values in told)
        series.append(Series(name, points, tuple((min(values), max(values)) for _, values in told)))
    panel = Panel(f"{config.evaluate.metric}, {config.data.name}", "labels, %", tuple(series), y_scale="linear")
    write_file(options.out / f"{NAME}.svg", render_svg([[panel]]))
