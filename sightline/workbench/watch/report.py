"""Report of a watched loop or of a checked module: text, JSON, or an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.contract.errors import UserError
from sightline.doctor.finding import Finding
from sightline.draw.examination import make_examination_blocks
from sightline.draw.page import PageBlock, PageTable, PageText, render_page
from sightline.runs.run_directory import write_document, write_file
from sightline.workbench.check.core.examination import describe_examination, describe_findings

_ENDINGS = (".json", ".html", ".txt")


@dataclass(frozen=True, repr=False)
class CheckReport:
    """Findings with figures about them; `str` prints them, and `save` writes them.

    `examination` is what the checks examined, as `--json` of `sightline check` has it; None for a loop. `verdict` says
    what was judged, what could not be asked, and what nobody judged.
    """

    title: str
    findings: Sequence[Finding]
    figures: Mapping[str, Any] = field(default_factory=dict)
    examination: Mapping[str, Any] | None = None
    verdict: Sequence[str] = ()

    @property
    def num_errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def num_warnings(self) -> int:
        return sum(finding.severity == "warning" for finding in self.findings)

    @property
    def summary(self) -> str:
        """One line: numbers of errors and warnings, and the figures."""
        counts = [(self.num_errors, "error"), (self.num_warnings, "warning")]
        figures = "".join(f", {name} {value}" for name, value in self.figures.items())
        return f"{self.title}: " + ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts) + figures

    def __repr__(self) -> str:
        return f"CheckReport({self.summary})"

    def __str__(self) -> str:
        examined = describe_examination(self.examination) if self.examination is not None else []
        return "\n".join([*describe_findings(self.findings), *examined, *self.verdict, self.summary])

    @property
    def is_sound(self) -> bool:
        """True where no finding is an error."""
        return self.num_errors == 0

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        findings = [finding.to_dict() for finding in self.findings]
        counts = {"errors": self.num_errors, "warnings": self.num_warnings}
        document = {"title": self.title, "findings": findings, **counts, "figures": dict(self.figures)}
        document |= {"verdict": list(self.verdict)} if self.verdict else {}
        return document | ({} if self.examination is None else {"examination": dict(self.examination)})

    def to_html(self) -> str:
        """Render the page: one self-contained HTML file."""
        blocks: list[PageBlock] = [PageText("strong", [self.summary])]
        for finding in self.findings:
            rows = [
                (name, value)
                for name, value in (
                    ("where", finding.where),
                    ("measured", finding.measured),
                    ("expected", finding.expected),
                    ("cause", ", or ".join((finding.cause, *finding.alternatives))),
                    ("do", finding.action),
                    ("explains", "; ".join(finding.evidence.get("explains", ()))),
                )
                if str(value)
            ]
            blocks += [
                PageText("heading", [f"{finding.severity}: {finding.summary}"]),
                PageTable((finding.code, ""), [(name, str(value)) for name, value in rows], is_numeric=False),
            ]
        blocks += make_examination_blocks([self.examination]) if self.examination is not None else []
        return render_page(self.title, blocks)

    def save(self, path: str | Path) -> None:
        """Write the report to a file that ends in .json, .html or .txt. Raises UserError for another ending."""
        path = Path(path)
        if path.suffix not in _ENDINGS:
            raise UserError(f"{path}: a report ends in {', '.join(_ENDINGS)}; found '{path.suffix}'")
        if path.suffix == ".json":
            write_document(path, self.to_dict())
        else:
            write_file(path, self.to_html() if path.suffix == ".html" else f"{self}\n")
