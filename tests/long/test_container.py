"""The Dockerfile by its lines, in an empty folder: what it copies, installs and runs is what README says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.processes import ROOT

LINE = re.compile(r"^(FROM|RUN|COPY|WORKDIR|CMD) (.*)$", flags=re.MULTILINE)
OF_THE_IMAGE = "apt-get"
"""The line that gives the image `make`, which this machine has."""


def test_its_lines_run_in_an_empty_folder(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for kind, text in LINE.findall((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        if kind == "COPY":
            for name in filter(None, tracked.split("\0")):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tmp_path / name)
        elif kind in ("RUN", "CMD") and OF_THE_IMAGE not in text:
            command = text if kind == "RUN" else shlex.join(json.loads(text))
            assert command in readme
            subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert subprocess.run([".venv/bin/sightline", "--version"], cwd=tmp_path, check=False).returncode == 0
