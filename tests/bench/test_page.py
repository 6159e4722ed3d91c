"""The table of benchmarks: a row for each implementation, ratios with and without kept memory."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import main


def make_row(name: str, ratio: float, **changes: Any) -> dict[str, Any]:
    times = {"cpu_s": 0.5, "baseline_cpu_s": 0.5 * ratio, "peak_bytes": 2**20, "baseline_peak_bytes": None}
    return {"name": name, "baseline": "plain", "ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1} | (
        times | changes
    )


def test_rows_of_both_settings_are_joined_and_repeated_ones_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = {
        "default": [
            make_row("geometry/knn/sightline", 3.0),
            make_row("geometry/knn/scipy_ckdtree", 1.5),
            make_row("geometry/knn/faiss_flat", 2.0),
            make_row("geometry/ball_32/sightline", 9.0, baseline="plain_loop"),
            make_row("models/step/sightline", 1.5),
        ],
        "again": [make_row("models/step/sightline", 2.0)],
        "kept": [make_row("geometry/knn/sightline", 2.5)],
    }
    for name, rows in documents.items():
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"cases": rows, "environment": {"git": {"commit": name * 3}}})
        )
    main([f"{tmp_path}/default.json+{tmp_path}/again.json", f"{tmp_path}/kept.json"])
    lines = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert [line for line in lines if line[0].startswith("geometry/knn")] == [
        ["geometry/knn/sightline", "1.50 faiss' flat index", "3.00 plain", "1/?", "- 2.50", "defaultd"]
    ]
    unmeasured = "-; PyTorch3D's ball_query: not measured"
    assert [
        "geometry/ball_32/sightline",
        unmeasured,
        "9.00 plain_loop, a loop in Python",
        "1/?",
        "",
        "defaultd",
    ] in lines
    assert ["models/step/sightline", "-", "2.00 plain", "1/?", "", "againaga"] in lines
    main([f"{tmp_path}/kept.json"])
    assert "geometry/knn/sightline,-,2.50 plain,1/?,keptkept" in capsys.readouterr().out
