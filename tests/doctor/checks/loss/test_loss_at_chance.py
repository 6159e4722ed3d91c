"""A run whose loss between rows never left chance."""

from __future__ import annotations

import json
from pathlib import Path

from sightline.engine.distributed import World
from sightline.workbench.check.checks.loss_progress import at_chance, loss_at_chance
from sightline.workbench.check.context import Context
from tests.cases import run_each
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import assert_complete

FILE = Path("run/metrics.jsonl")


def lines(*shares: float | None, name: str = "intra_modal", every: int = 50) -> list[dict[str, object]]:
    """Training lines with these shares of chance, and evaluations between them."""
    found: list[dict[str, object]] = []
    for place, share in enumerate(shares, start=1):
        found.append(
            {"step": place * every, "split": "train", f"{name}_of_chance": share, "chance": 3.434, "negatives": 30.0}
        )
        found.append({"step": place * every, "split": "validation", "uniformity": -1.0})
    return found


@run_each(
    "shares",
    [
        (1.05, 0.8, 0.6, 0.4, 0.3, 0.3, 0.25, 0.2),  # as they should
        (1.2, 1.1, 1.05, 1.0, 0.97, 0.94, 0.93, 0.92),  # slow, and on its way
        (0.99,),  # of the first 50 steps nothing is known
        (1.0, None, 0.7, None),
        (2.0, 2.0, 1.5, 1.2),
        (1.04, 1.03, 1.02, 1.03),  # 200 steps: pictures may need more
    ],
)
def test_healthy_runs(shares: tuple[float | None, ...]) -> None:
    assert at_chance(lines(*shares), file=FILE) == []


def test_no_lines_and_no_shares() -> None:
    assert at_chance([], file=FILE) == []
    assert at_chance([{"step": 500, "split": "train", "loss/total": 1.0}], file=FILE) == []


def test_a_collapsed_run() -> None:
    (finding,) = at_chance(lines(1.02, 1.0, 1.0001, 0.9999, 1.0, 1.0, 1.0, 1.0), file=FILE)
    assert (finding.cause, finding.severity, finding.where.step) == ("loss.collapse", "warning", 400)
    assert "gives the same output for all objects" in finding.summary
    assert "chance is 3.4340 with 30 negatives" in finding.expected
    assert_complete(finding)


def test_a_run_that_learns_nothing() -> None:
    (finding,) = at_chance(lines(1.08, 1.07, 1.08, 1.06, 1.07, 1.07), file=FILE)
    assert finding.cause == "optim.lr"
    assert "1.070 of chance over the last 1 of 6 lines" in finding.measured


def test_of_two_losses_the_one_that_stays() -> None:
    both = [
        {**one, **other}
        for one, other in zip(
            lines(1.0, 0.5, 0.3, every=150), lines(1.05, 1.04, 1.05, name="cross_modal", every=150), strict=True
        )
    ]
    (finding,) = at_chance(both, file=FILE)
    assert "'cross_modal' ends at chance" in finding.summary


def test_the_file_of_a_run_is_read_and_a_torn_last_line_is_left(tmp_path: Path) -> None:
    built = make_pairs(tmp_path)
    assert loss_at_chance(Context(built, World())) == []
    assert loss_at_chance(Context(built, World(), run=tmp_path)) == []
    text = "".join(json.dumps(line) + "\n" for line in lines(1.0, 1.0, 1.0)) + '{"step": 200, "spl'
    (tmp_path / "metrics.jsonl").write_text(text)
    (finding,) = loss_at_chance(Context(built, World(), run=tmp_path))
    assert finding.where.file == str(tmp_path / "metrics.jsonl")
    assert finding.where.step == 150
