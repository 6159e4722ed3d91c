"""The site of docs/: it is built without a warning, reads nothing from the network, and shows every page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.contract.registry import REGISTRIES
from tests.limits import HANG_S

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import gc; gc.disable(); from mkdocs.__main__ import cli; cli(prog_name='mkdocs')"
"""As `python -m mkdocs`, which looks for garbage a fifth of the time."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; links and anchors that lead nowhere, and pages outside the navigation, end it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=10 * HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_shown(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    shown = [path for path in pages if path.parent != Path(".")]  # the others are the front page and pointers
    missing = [str(path) for path in shown if not (site / _page_path(path)).exists()]
    assert missing == []
    front = (site / "index.html").read_text()
    assert "Train perception models you can trust" in front
    assert "make demo" in front


def _page_path(path: Path) -> Path:
    return path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html")


def test_sources_that_pages_link_to_are_pages(site: Path) -> None:
    text = (site / "source/examples/any_loop.py.html").read_text()
    assert "sightline" in text
    linked = re.findall(r'href="([^"#]*source/[^"#]*)"', (site / "manual/check.html").read_text())
    assert linked
    assert all((site / "manual" / link).exists() for link in linked)


def test_docstrings_of_the_python_api_are_a_page(site: Path) -> None:
    text = (site / "reference/api.html").read_text()
    assert all(f'id="sightline.{name}"' in text for name in ("load_run", "train_run", "check", "watch"))


def test_registered_parts_are_pages_with_their_examples(site: Path) -> None:
    for kind in ("metrics", "losses", "transforms"):
        text, names = (site / f"reference/{kind}.html").read_text(), REGISTRIES[kind].modules
        assert all(f'<code>{name}</code><a class="headerlink"' in text for name in names)
        assert text.count('<code><span class="gp">') == len(names)


def test_nothing_is_read_from_the_network(site: Path) -> None:
    loads = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?:)?//[^"]*"')
    pages = {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}
    assert len(pages) > 100
    assert {name for name, text in pages.items() if loads.search(text)} == set()
