"""The page of ten bugs prints what the doctor prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.doc_blocks import ROOT

PAGE = ROOT / "docs" / "prove" / "ten_bugs.md"


def test_the_page_quotes_what_is_printed(tmp_path: Path) -> None:
    cases = dict(re.findall(r"\(`([A-Z]\d+)`\):\n\n```text\n(.*?)\n```", PAGE.read_text(), flags=re.DOTALL))
    assert len(cases) == 10
    path = tmp_path / "lines.jsonl"
    subprocess.run([sys.executable, "-m", "tests.doctor", *cases, "--out", path], cwd=ROOT, check=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    printed = {line["id"]: line["alarms"][0]["text"] for line in lines if line["has_bug"]}
    assert {case: text.replace(f"{ROOT}/", "") for case, text in printed.items()} == cases
