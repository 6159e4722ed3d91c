"""Report of a watched loop or of a checked module: text, JSON, or an HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.contract.errors import UserError
from sightline.doctor.report import Report
from sightline.draw.examination import make_examination_blocks
from sightline.draw.page import PageBlock, PageTable, PageText, render_page
from sightline.runs.run_directory import write_document, write_file
from sightline.workbench.check.core.examination import describe_examination, describe_findings

_ENDINGS = (".json", ".html", ".txt")


@dataclass(frozen=True, repr=False)
class CheckReport(Report):
    """Report with what the checks of a run examined; `save` writes it.

    `examination` is what `--json` of `sightline check` has; None for a loop.
    """

    examination: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        examined = describe_examination(self.examination) if self.examination is not None else []
        return "\n".join([*describe_findings(self.findings), *examined, *self.verdict, self.summary])

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        examined = {} if self.examination is None else {"examination": dict(self.examination)}
        return super().to_dict() | examined

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
