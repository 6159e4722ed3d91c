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
    document = tmp_path / "faults.json"
    subprocess.run([sys.executable, "-m", "tests.planted", *cases, "--json", document], cwd=ROOT, check=True)
    printed = {row["id"]: row["alarms"][0]["text"] for row in json.loads(document.read_text())["cases"]}
    assert {case: text.replace(f"{ROOT}/", "") for case, text in printed.items()} == cases
