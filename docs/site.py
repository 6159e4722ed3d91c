"""Hooks of mkdocs.yml: the pages of docs/ as a site of their own, without a repository behind it.

The site opens with the README, and has a page for every source file that a page links to, and some with the docstrings
of the Python API and of operators, of metrics, of losses and of transforms.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

import sightline
from sightline.contract.registry import REGISTRIES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_FENCED = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".toml": "toml", ".json": "json"}
_MAX_SOURCE_BYTES = 200_000
_NOT_SEARCHED = "---\nsearch: {exclude: true}\n---\n\n"
"""Sources were three fifths of the index that a reader's browser loads, and came before pages on the same subject."""
_PUBLIC = sorted(name for name in sightline.__all__ if not name.startswith("_") and name not in {"ops", "metrics"})
_PUBLIC += [f"ops.{name}" for name in sorted(sightline.ops.__all__, key=str.lower)]
_API = "# Python API: classes and functions\n\nExamples are on the page [Python API](python.md).\n\n" + "".join(
    f"::: sightline.{name}\n\n" for name in _PUBLIC
)
_KINDS = ("metrics", "losses", "transforms")


def _list_parts(kind: str) -> str:
    """Return a page with the docstrings of all registered components of a kind, and of what one is called with."""
    text = f"# {kind.capitalize()}\n\n`sightline list {kind}` prints their arguments.\n\n"
    members = "{show_root_heading: false, members: [__init__, forward, count, update, values, __call__]}"
    for name in REGISTRIES[kind].names():
        builder = REGISTRIES[kind].get_entry(name).builder
        text += f"## `{name}`\n\n::: {builder.__module__}.{builder.__qualname__}\n    options: {members}\n\n"
    return text


def on_config(config: Any) -> Any:
    """Make the anchors of headings as GitHub does, for which the links are written."""
    config.mdx_configs["toc"]["slugify"] = lambda heading, separator: re.sub(
        r"[^\w\- ]", "", heading.strip().lower()
    ).replace(" ", separator)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Replace the front page, and add the pages that have no file."""
    contents = (DOCS / "README.md").read_text(encoding="utf-8")
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in list(files):
        if file.src_uri == "README.md":
            files.remove(file)
    pages = {
        "index.md": _resolve_links(front, ROOT, DOCS),
        "pages.md": _resolve_links(contents.replace("# Documentation", "# All pages"), DOCS, DOCS),
        "reference/api.md": _API,
        **{f"reference/{kind}.md": _list_parts(kind) for kind in _KINDS},
    }
    texts = [*pages.values(), *(_read_page(file) for file in files if file.is_documentation_page())]
    sources = {link for text in texts for link in re.findall(r"\]\((?:\.\./)*source/([^)\s#]+)\.md", text)}
    pages |= {f"source/{path}.md": _quote_source(path) for path in sorted(sources)}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page that lead out of docs/ to the site's own pages."""
    return _resolve_links(markdown, (DOCS / page.file.src_uri).parent, (DOCS / page.file.src_uri).parent)


def _read_page(file: File) -> str:
    path = DOCS / file.src_uri
    return _resolve_links(path.read_text(encoding="utf-8"), path.parent, path.parent)


def _resolve_links(text: str, folder: Path, page_folder: Path) -> str:
    """Rewrite the links of a text written in `folder` for a page in `page_folder`; code stays as it is."""

    def resolve(match: re.Match[str]) -> str:
        before, link, anchor, after = match.groups()
        if re.match(r"[a-z]+:", link):
            return match[0]
        return f"{before}{os.path.relpath(_site_path((folder / link).resolve()), page_folder)}{anchor or ''}{after}"

    pieces = re.split(f"({_FENCED.pattern})", text, flags=_FENCED.flags)
    return "".join(piece if piece.startswith("```") else _LINK.sub(resolve, piece) for piece in pieces)


def _site_path(target: Path) -> Path:
    """Return the path below docs/ of the page, or file, that shows a file of the project."""
    if target == ROOT / "README.md":
        return DOCS / "index.md"
    if target == DOCS / "README.md":
        return DOCS / "pages.md"
    is_shown = target.is_relative_to(DOCS) and target.suffix not in {".py", ".json", ".jsonl"}
    is_made = not target.exists()  # by this file
    return target if is_shown or is_made else DOCS / "source" / f"{target.relative_to(ROOT)}.md"


def _quote_source(path: str) -> str:
    """Return a page with a file of the project, or with the names in a folder of it."""
    target = ROOT / path
    heading = f"{_NOT_SEARCHED}# {path}\n\n"
    if target.is_dir():
        names = "".join(f"- `{child.name}`\n" for child in sorted(target.iterdir()) if not child.name.startswith("__"))
        return f"{heading}{names}"
    text = target.read_text(encoding="utf-8")
    if len(text) > _MAX_SOURCE_BYTES:
        return f"{heading}This file has {len(text):,} characters; it is in the project's folder.\n"
    fence = "`" * 5
    return f"{heading}{fence}{_LANGUAGES.get(target.suffix, 'text')}\n{text}\n{fence}\n"


class FencedExamples(griffe.Extension):
    """Extension of mkdocstrings: the examples of a docstring, lines from `>>>` to the next blank one, are code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put the examples of an object's docstring into fences."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^>>> .*?(?=\n\n|\Z)", _fence, obj.docstring.value, flags=re.DOTALL | re.MULTILINE
            )


def _fence(match: re.Match[str]) -> str:
    return f"```pycon\n{match[0].rstrip()}\n```"
