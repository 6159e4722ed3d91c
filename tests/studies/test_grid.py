"""Studies: the statistics against SciPy, the grid of a command line, and runs that go on where they stopped."""

from __future__ import annotations

import errno
import json
import math
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sightline.commands.look import StudyOptions
from sightline.contract.errors import ConfigError, RunError
from sightline.training import launch
from sightline.workbench.series import study as study_module
from sightline.workbench.series import training
from sightline.workbench.series.loop import Entry, Results, StoppedError, run_series
from sightline.workbench.series.seed_statistics import grid_panel, paired_differences
from sightline.workbench.series.study import Study, parse_factors
from tests.command import Outcome, run_here

pytestmark = pytest.mark.usefixtures("unchecked")
CONFIG = Path(__file__).parents[2] / "configs" / "classify" / "synthetic_shapes_dgcnn.yaml"
TINY = (
    "model={num_neighbours: 4, embedding: 16}",
    "data.train_size=48",
    "data.test_size=24",
    "data.num_points=16",
    "train.epochs=1",
    "train.batch_size=16",
    "log.tensorboard=false",
)


def test_paired_differences_against_scipy() -> None:
    draws = np.random.default_rng(0).normal(size=(2, 6))
    grid = {(label,): dict(enumerate(map(float, each))) for label, each in zip("ab", draws, strict=True)}
    (found,) = paired_differences(["x"], ["a"], grid)
    expected = scipy.stats.ttest_rel(draws[1], draws[0]).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found["mean"] == pytest.approx((draws[1] - draws[0]).mean())
    assert found["num_better"] == (draws[1] > draws[0]).sum()
    assert found["is_beyond_chance"] == (scipy.stats.ttest_rel(draws[1], draws[0]).pvalue < 0.05)
    assert paired_differences(["x"], ["a"], grid, mode="min")[0]["num_better"] == 6 - found["num_better"]


def test_only_seeds_that_both_have_make_pairs_and_all_else_is_equal() -> None:
    grid = {("1", "p"): {0: 1.0, 1: 2.0}, ("1", "q"): {0: 4.0}, ("2", "p"): {1: 5.0}, ("2", "q"): {0: 7.0}}
    found = paired_differences(["n", "s"], ["1", "p"], grid)
    shown = [(each["factor"], each["level"], each["others"], each["pairs"]) for each in found]
    assert shown == [("n", "2", {"s": "p"}, [3.0]), ("n", "2", {"s": "q"}, [3.0]), ("s", "q", {"n": "1"}, [3.0])]
    assert found[0]["is_beyond_chance"] is None
    assert math.isnan(found[0]["low"])
    panel = grid_panel(["n", "s"], grid, title="t")
    assert [(series.name, series.points) for series in panel.series] == [
        ("s=p", ((1.0, 1.5), (2.0, 5.0))),
        ("s=q", ((1.0, 4.0), (2.0, 7.0))),
    ]
    assert grid_panel(["s"], {("p",): {0: 1.0}, ("q",): {0: 2.0}}, title="t").x_title == "1 = p, 2 = q"


def test_factors_of_a_command_line() -> None:
    found = parse_factors(
        [Path("a/x.yaml"), Path("b/y.yaml")],
        ["data.fraction=0.1,1", "transforms.train=[],[{name: jitter, sigma: 0.1}]"],
        ["adam=optimizer={name: adam, lr: 1e-3}  model.dropout=0.1", "as_is="],
    )
    assert [(name, list(levels)) for name, levels in found.items()] == [
        ("config", ["x", "y"]),
        ("data.fraction", ["0.1", "1"]),
        ("transforms.train", ["[]", "[{name: jitter, sigma: 0.1}]"]),
        ("arm", ["adam", "as_is"]),
    ]
    assert found["arm"]["adam"].overrides == ("optimizer={name: adam, lr: 1e-3}", "model.dropout=0.1")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--vary", "data.fraction"], "--vary data.fraction: give key=value,value"),
        (["--vary", "data.fraction=0.1,"], "give key=value,value"),
        (["--vary", "optimizer.lr=1,2", "--vary", "optimizer.lr=3"], "varied twice"),
        (["--vary", "optimizer.lr=1,1"], "has a level twice"),
        (["--vary", "optimizer.lr=1e-3,0.001"], "'1e-3' and '0.001' are one and the same config; leave one out"),
        (["--arm", "as_is=", "--arm", "same=optimizer.name=sgd"], "'as_is' and 'same' are one and the same config"),
        (["--vary", "optimizer.lrr=1,2"], "did you mean 'lr'?"),
        (["--vary", "seed=1,2"], "give --seeds N"),
        (["seed=4"], "give --seeds N"),
        (["--arm", "adam"], "give NAME='KEY=VALUE KEY=VALUE ...'"),
        (["--arm", "a=optimizer.lr = 1"], "give NAME='KEY=VALUE KEY=VALUE ...'"),
        (["--metric", "acuracy"], "no metric of this run is called 'acuracy'"),
        (["optimizer.lr=1", "--vary", "optimizer.lr=1,2"], "optimizer.lr: is given twice on the command line"),
        (["--vary", "optimizer.lr=1,2", "--arm", "slow=optimizer.lr=3"], "optimizer.lr: is given twice"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_a_slip_gets_one_line_and_trains_nothing(words: list[str], expected: str, tmp_path: Path) -> None:
    code, _, err = run_here("study", CONFIG, *TINY, *words, "--out", tmp_path / "s")
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "s").exists()


def test_every_config_is_looked_at_before_the_first_run(tmp_path: Path) -> None:
    absent = CONFIG.with_name("modelnet40_pct_cpu.yaml")
    code, _, err = run_here("study", CONFIG, absent, *TINY[-1:], "--out", tmp_path / "s")
    assert code == 2
    assert "data/modelnet40: there is no such folder" in err
    assert "to make it: sightline data prepare modelnet40" in err
    assert not (tmp_path / "s").exists()


def test_a_run_draws_its_labels_by_its_own_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "resolve_metric_mode", lambda *_: "max")  # opens the data, which is not there
    config = CONFIG.with_name("modelnet40_pct_cpu.yaml")
    for overrides, expected in (((), [0, 1]), (("data.fraction_seed=7",), [7, 7])):
        asked = StudyOptions(configs=(config,), overrides=overrides, vary=("data.fraction=0.1",), seeds=2, out=tmp_path)
        read = [planned.read.config for planned in Study(asked).trainings.values()]
        assert [each.data.arguments["fraction_seed"] for each in read] == expected
        assert [(each.seed, each.data.arguments["fraction"]) for each in read] == [(0, 0.1), (1, 0.1)]


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run_here("study", CONFIG, "--out", tmp_path / "file")
    assert code == 2
    assert err.startswith("error: --out")
    assert "is not a folder" in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A study of which one run was broken off: begun with three runs of four, and gone on with."""
    out = tmp_path_factory.mktemp("study") / "s"
    return out, study(out)


def study(out: Path, *more: str, vary: str = "optimizer.lr=1e-3,3e-2", seeds: int = 2) -> Outcome:
    return run_here("study", CONFIG, *TINY, "--vary", vary, "--seeds", seeds, "--out", out, *more)


def test_table_and_document_are_of_the_runs(finished: tuple[Path, Outcome]) -> None:
    out, (code, printed, err) = finished
    assert code == 0, err
    document = json.loads((out / "study.json").read_text())
    assert document["metric"] == "overall_accuracy"
    assert document["factors"] == {"optimizer.lr": ["1e-3", "3e-2"]}
    for row in document["rows"]:
        folder = out / f"lr_{row['levels']['optimizer.lr']}"
        values = [json.loads((folder / f"seed_{s}" / "final.json").read_text())["metrics"] for s in (0, 1)]
        figures = [each["overall_accuracy"] for each in values]
        assert list(row["values"].values()) == figures
        assert row["mean"] == pytest.approx(np.mean(figures))
        assert row["std"] == pytest.approx(np.std(figures, ddof=1))
    (difference,) = document["differences"]
    first, second = (list(row["values"].values()) for row in document["rows"])
    assert difference["pairs"] == pytest.approx([b - a for a, b in zip(first, second, strict=True)])
    assert "optimizer.lr: 3e-2 less 1e-3" in printed
    assert "<svg" in (out / "study.svg").read_text()


def test_a_broken_off_study_goes_on_and_repeats_nothing(
    finished: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = finished
    out = tmp_path / "s"
    shutil.copytree(whole, out)
    lost = out / "lr_3e-2" / "seed_0"
    shutil.rmtree(lost)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("final.json")}
    trained: list[Path | None] = []
    train = launch.train_run

    def counted(config: Any, **options: Any) -> Any:
        trained.append(options["out"])
        return train(config, **options)

    monkeypatch.setattr(launch, "train_run", counted)
    code, _, err = study(out)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert err.count("this run is finished; nothing to do") == 3
    assert (lost / "final.json").exists()
    again = json.loads((out / "study.json").read_text())
    before = json.loads((whole / "study.json").read_text())
    assert again["rows"] == before["rows"], "the same figures to the bit"


def test_other_overrides_in_the_same_folder_are_refused(finished: tuple[Path, Outcome]) -> None:
    out, _ = finished
    before = (out / "study.json").read_bytes()
    code, _, err = study(out, "model.dropout=0.25")
    assert code == 2
    assert "was trained with another config (1 key differs): model.dropout: 0.5 there, 0.25 here" in err
    assert (out / "study.json").read_bytes() == before


def test_runs_of_other_data_are_refused_wherever_they_are(
    finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = finished
    monkeypatch.setattr(training, "get_data_digest", lambda _: "0" * 64)  # as of another set at the same data.root
    code, _, err = study(out, seeds=3)
    assert code == 2
    assert err.startswith(f"error: {out / 'lr_1e-3' / 'seed_0'}: data-changed: data.root holds another set")
    assert err.endswith("now 000000000000); give another --out\n")


def test_levels_and_seeds_may_be_added(finished: tuple[Path, Outcome]) -> None:
    out, _ = finished
    vary = ("optimizer.lr=1e-3,3e-2,1e-1",)
    Study(StudyOptions(configs=(CONFIG,), overrides=TINY, vary=vary, seeds=3, out=out))  # planned, not run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RunError("step 3: the gradient's norm is nan"), "RunError: step 3: the gradient's norm is nan"),
        (ConfigError("a: no module", "b: none"), "ConfigError: a: no module b: none"),
        (KeyError("of a plugin"), f"KeyError: 'of a plugin' ({__file__}:"),
    ],
)
def test_a_run_that_fails_does_not_end_the_others(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metrics_of(planned: training.Training, _: Any) -> dict[str, float | None]:
        if "seed_1" in planned.path.parts and "lr_3e-2" in planned.path.parts:
            raise error
        return {"overall_accuracy": None if "seed_1" in planned.path.parts else 0.5}

    monkeypatch.setattr(training.Training, "train", metrics_of)
    code, printed, err = study(tmp_path / "s", "--json", str(tmp_path / "x.json"))
    assert code == 1
    (line,) = (line for line in err.splitlines() if line.endswith("; the others go on"))
    failed = tmp_path / "s" / "lr_3e-2" / "seed_1"
    assert line.startswith(f"error: {failed}: {reason}")
    assert "1 of 4 failed" in err
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["failed"] == [{"run": str(failed), "reason": line.split(": ", 2)[2].partition("; the others")[0]}]
    rows = document["rows"]
    assert [list(row["values"].values()) for row in rows] == [[0.5], [0.5]], "a run without a figure is left out"
    assert "3e-2" in printed


@pytest.mark.parametrize(
    ("error", "code", "num_finished"),
    [(RunError("not started"), 1, 2), (StoppedError(130), 130, 0), (OSError(errno.ENOSPC, "full"), None, 0)],
)
def test_a_failure_does_not_end_a_series_but_a_signal_and_a_full_disk_do(
    error: Exception, code: int | None, num_finished: int, tmp_path: Path
) -> None:
    notes, written = list[str](), list[int]()
    reporter: Any = SimpleNamespace(note=notes.append)

    def work(number: int) -> int:
        if number == 0:
            raise error
        return number

    def write(results: Results[int]) -> Results[int]:
        written.append(len(results.finished))
        return results

    entries = (Entry(n, f"run {n}", tmp_path / str(n), partial(work, n)) for n in range(3))
    with pytest.raises(OSError, match="full") if code is None else nullcontext():
        results, found = run_series(entries, write, reporter)
        assert (found, results.finished) == (code, {n: n for n in range(1, num_finished + 1)})
        assert results.failed == ({0: error} if code == 1 else {})
    assert written == {1: [0, 1, 2, 2], 130: [0], None: []}[code]
    assert notes[-1] == "1 of 3 failed" if code == 1 else f"0 are finished; the same command goes on with {tmp_path}/0"
