"""Report of a checked module or a watched loop: findings, and a verdict that says what nobody judged."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.contract.errors import UserError, join_some
from sightline.doctor.examine import Examination
from sightline.doctor.finding import Finding

_MAX_REASONS = 4
_STYLE = "<style>body{font-family:sans-serif;max-width:60em}th{text-align:left;vertical-align:top;width:7em}</style>"


@dataclass(frozen=True, repr=False)
class Report:
    """Findings, the gravest first, and the verdict; `str` prints them.

    `figures` are what was measured of the whole, by name.
    """

    title: str
    findings: Sequence[Finding]
    verdict: Sequence[str] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

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
        return "\n".join([*map(str, self.findings), *self.verdict, self.summary])

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
        return f"<!doctype html><meta charset=utf-8><title>{html.escape(self.title)}</title>{_STYLE}{''.join(parts)}\n"

    def save(self, path: str | Path) -> None:
        """Write the report to a file that ends in .json, .html or .txt. Raises UserError for another ending."""
        path, texts = Path(path), {".json": self._to_json, ".html": self.to_html, ".txt": lambda: f"{self}\n"}
        if path.suffix not in texts:
            raise UserError(f"{path}: a report ends in {', '.join(texts)}; found '{path.suffix}'")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path.suffix](), encoding="utf-8")

    def _to_json(self) -> str:
        return json.dumps(_remove_infinities(self.to_dict()), indent=2) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "title": self.title,
            "findings": [finding.to_dict() for finding in self.findings],
            "verdict": list(self.verdict),
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


def write_verdict(
    examination: Examination, unwatched: Iterable[str] = (), *, num_seen: int = 0, form: str = ""
) -> list[str]:
    """Say in at most four lines how many relations held, which could not be asked and why, and what was not judged.

    `num_seen` others were seen to be broken while a loop ran. `form` is how the program was called, or why it was not.
    """
    held, broken = examination.count("held"), examination.count("broken") + num_seen
    lines = [f"verdict: of {held + broken} relations that could be asked, {held} held and {broken} did not"]
    lines = lines if examination.judgements else []
    if reasons := examination.list_reasons("apply"):
        count = examination.count("apply")
        lines.append(f"  {count} do not apply: {join_some(reasons, most=_MAX_REASONS, separator='; ')}")
    failures = {reason.partition(": ")[2]: reason for reason in reversed(examination.list_reasons("failed"))}
    unjudged = [*unwatched, *examination.list_reasons("cost"), *reversed(failures.values())] + [  # one error ends many
        f"declared: {code}" for code in examination.list_reasons("declared")
    ]
    if unjudged:
        lines.append(f"  nobody judged: {join_some(unjudged, most=_MAX_REASONS, separator='; ')}")
    return lines + ([f"  form: {form}"] if form else [])
