"""Report of a checked module or a watched loop: findings, and a verdict in three lines; its files have all of it."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.contract.errors import UserError
from sightline.doctor.finding import Finding
from sightline.doctor.verdict import Verdict, add_hint, describe_relations

_STYLE = "<style>body{font-family:sans-serif;max-width:60em}th{text-align:left;vertical-align:top;width:7em}</style>"


@dataclass(frozen=True, repr=False)
class Report:
    """Findings, the gravest first, and the verdict; `print` shows them, files have all that was judged and was not.

    `figures` are what was measured of the whole, by name.
    """

    title: str
    findings: Sequence[Finding]
    examined: Verdict = field(default_factory=Verdict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Sequence[str]:
        """Three lines: how many relations held, what was not judged, and what to do about it."""
        return self.examined.lines

    @property
    def num_errors(self) -> int:
        """Number of errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def num_warnings(self) -> int:
        """Number of warnings."""
        return sum(finding.severity == "warning" for finding in self.findings)

    @property
    def is_sound(self) -> bool:
        """True where no finding is an error."""
        return self.num_errors == 0

    @property
    def summary(self) -> str:
        """One line: numbers of errors and warnings, and the figures."""
        counts = [(self.num_errors, "error"), (self.num_warnings, "warning")]
        figures = "".join(f", {name} {value}" for name, value in self.figures.items())
        return f"{self.title}: " + ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts) + figures

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary})"

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, verbose: bool = False) -> str:
        """Format findings, verdict and summary as lines; with `verbose` also each relation, judged or why not."""
        if verbose:
            lines = [*self.verdict, *describe_relations(self.examined.judged, self.examined.not_judged)]
        else:
            lines = add_hint(self.verdict, "report.to_text(verbose=True)")
        return "\n".join([*map(str, self.findings), *lines, self.summary])

    def to_html(self) -> str:
        """Render the page: one self-contained HTML file."""
        parts = [f"<h1>{html.escape(self.title)}</h1><p><strong>{html.escape(self.summary)}</strong></p>"]
        for finding in self.findings:
            rows = {name: getattr(finding, name) for name in ("code", "where", "measured", "expected")}
            rows |= {"cause": ", or ".join(finding.causes), "do": finding.action}
            rows["explains"] = "; ".join(finding.evidence.get("explains", ()))
            cells = [f"<tr><th>{key}<td>{html.escape(str(value))}" for key, value in rows.items() if str(value)]
            parts.append(
                f"<h2>{html.escape(f'{finding.severity}: {finding.summary}')}</h2><table>{''.join(cells)}</table>"
            )
        parts += [f"<p>{html.escape(line)}</p>" for line in self.verdict]
        if self.verdict:
            relations = describe_relations(self.examined.judged, self.examined.not_judged)
            lines = "".join(f"<p>{html.escape(line)}</p>" for line in relations)
            parts.append(f"<details><summary>Relations</summary>{lines}</details>")
        return f"<!doctype html><meta charset=utf-8><title>{html.escape(self.title)}</title>{_STYLE}{''.join(parts)}\n"

    def save(self, path: str | Path) -> None:
        """Write the report to a file that ends in .json, .html or .txt. Raises UserError for another ending."""
        path, texts = Path(path), {".json": self._to_json, ".html": self.to_html, ".txt": self._to_whole_text}
        if path.suffix not in texts:
            raise UserError(f"{path}: a report ends in {', '.join(texts)}; found '{path.suffix}'")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path.suffix](), encoding="utf-8")

    def _to_whole_text(self) -> str:
        return f"{self.to_text(verbose=True)}\n"

    def _to_json(self) -> str:
        return json.dumps(_remove_infinities(self.to_dict()), indent=2) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "title": self.title,
            "findings": [finding.to_dict() for finding in self.findings],
            "verdict": list(self.verdict),
            "judged": list(self.examined.judged),
            "not_judged": dict(self.examined.not_judged),
            "errors": self.num_errors,
            "warnings": self.num_warnings,
            "figures": dict(self.figures),
        }


def _remove_infinities(value: Any) -> Any:
    """Replace numbers that JSON does not have by None."""
    if isinstance(value, Mapping):
        return {key: _remove_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_remove_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
