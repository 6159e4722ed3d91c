"""Examination of a subject: every rule whose evidence there is, the cheapest first, and what became of each."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sightline.contract.errors import UserError
from sightline.doctor.attempts import UNASKED, MissingError, attempt, series_of_attempts
from sightline.doctor.evidence import Evidence, import_all
from sightline.doctor.finding import SEVERITIES, Finding
from sightline.doctor.rules import RULES, Rule

Outcome = Literal["held", "broken", "apply", "left", "failed", "cost", "declared"]


@dataclass(frozen=True)
class Judgement:
    """What became of a rule: it held, if with a note, or is broken, by which findings, or what it did not judge by."""

    rule: Rule
    outcome: Outcome
    findings: Sequence[Finding] = ()
    missing: MissingError | None = None

    @property
    def reason(self) -> str:
        """Why the rule did not judge; empty if it did."""
        return self.outcome * (self.outcome == "declared") if self.missing is None else self.missing.reason


@dataclass
class Examination:
    """Findings, a judgement of each rule, and sentences on what was left out (`gaps`)."""

    findings: list[Finding] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    def sort(self) -> None:
        """Order judgements as the rules are, however long each took, and list the findings, the gravest first.

        Of two findings of one error, the first explains the other.
        """
        places = {rule.judge: place for place, rule in enumerate(list_rules())}
        self.judgements.sort(key=lambda judgement: places[judgement.rule.judge])
        findings = [finding for judgement in self.judgements for finding in judgement.findings]
        self.findings = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))

    def join(self, other: Examination) -> Examination:
        """Join what was judged here and elsewhere of one program: each rule once, broken where it is so in either."""
        known, judged = (
            {each.rule.judge: each for each in one.judgements if each.outcome in ("held", "broken")}
            for one in (self, other)
        )
        added = {judge: each for judge, each in judged.items() if judge not in known or each.outcome == "broken"}
        gaps = [*dict.fromkeys([*self.gaps, *other.gaps])]
        return Examination([*self.findings, *other.findings], [*(known | added).values()], gaps)

    def list_reasons(self, *outcomes: Outcome) -> list[str]:
        """List the reasons of some outcomes, each once, those of most rules first."""
        reasons = [judgement.reason for judgement in self.judgements if judgement.outcome in outcomes]
        return sorted(dict.fromkeys(reasons), key=lambda reason: -reasons.count(reason))

    def count(self, *outcomes: Outcome) -> int:
        """Count the rules with one of these outcomes."""
        return sum(judgement.outcome in outcomes for judgement in self.judgements)


def list_rules() -> list[Rule]:
    """Import all rules, and list them by module, whichever was imported first."""
    import_all("sightline.doctor.rules")
    return sorted(RULES, key=lambda rule: rule.judge.__module__)


def assert_codes(codes: Sequence[str], *, name: str) -> None:
    """Raise UserError for a text in place of a list, and for a word that is the code of no rule."""
    if isinstance(codes, str) or not isinstance(codes, Iterable):
        raise UserError(f"{name}: found {codes!r:.40}, allowed is a list of codes: [{str(codes)!r:.40}]")
    known = {rule.code for rule in list_rules()}
    if unknown := [code for code in codes if code not in known]:
        similar = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"did you mean '{similar[0]}'?" if similar else "codes are the words in brackets"
        raise UserError(f"{name}: no finding has the code '{unknown[0]}'; {hint}")


def examine(
    evidence: Evidence,
    *,
    declared: Collection[str] = (),
    rules: Sequence[Rule] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, code: None,
) -> Examination:
    """Judge a subject by the rules, those first whose evidence costs least for each of them; nothing is changed.

    What the budget does not afford waits: the first passes are slow, and later ones cost less. `progress` receives the
    numbers of rules that judged and of all, before each, and its code.
    """
    examination = Examination()
    open_rules = [rule for rule in (list_rules() if rules is None else rules) if evidence.offers(rule.reads)]
    needs: list[frozenset[str]] = []
    num_known = -1
    with series_of_attempts():
        while open_rules:
            if num_known != evidence.num_known:
                num_known = evidence.num_known
                needs = [evidence.find_open(rule.reads) for rule in open_rules]
            place = _find_cheapest(needs, evidence)
            needs.pop(place)
            rule = open_rules.pop(place)
            progress(len(examination.judgements), len(examination.judgements) + 1 + len(open_rules), rule.code)
            if rule.code in declared:
                examination.judgements.append(Judgement(rule, "declared"))
            else:
                _judge(rule, evidence, examination)
    examination.sort()
    examination.gaps += evidence.gaps
    return examination


def examine_section(examination: Examination, evidence: Evidence) -> None:
    """Judge a section of a subject by the rules that did not apply to what was examined before it."""
    rules = [judgement.rule for judgement in examination.judgements if judgement.outcome in UNASKED]
    examined = examine(evidence, rules=rules)
    judged = [each for each in examined.judgements if each.outcome not in UNASKED]
    known = {each.rule.judge: each for each in judged}
    examination.judgements = [known.get(each.rule.judge, each) for each in examination.judgements]
    examination.gaps = [*dict.fromkeys([*examination.gaps, *examined.gaps])]
    examination.sort()


def _find_cheapest(needs: Sequence[frozenset[str]], evidence: Evidence) -> int:
    """Return the place of the first rule that needs no passes, or else of the one whose passes serve most rules."""
    counts = Counter(needs)
    free = next((need for need in counts if not evidence.count_passes(need)), None)
    if free is not None:
        return needs.index(free)
    passes = {need: evidence.count_passes(need) for need in counts}
    prices = {
        need: (not evidence.affords(need), passes[need] / sum(num for other, num in counts.items() if other <= need))
        for need in counts
    }
    return min(range(len(needs)), key=lambda place: prices[needs[place]])


def _judge(rule: Rule, evidence: Evidence, examination: Examination) -> None:
    try:
        read = {name: evidence.get(name) for name in rule.reads}
    except MissingError as missing:
        examination.judgements.append(Judgement(rule, missing.kind, missing=missing))
        return
    found = attempt(rule.judge.__name__, lambda **read: list(rule.find(**read)), read)
    if isinstance(found, MissingError):
        examination.judgements.append(Judgement(rule, found.kind, missing=found))
    else:
        is_broken = any(finding.severity != "note" for finding in found)
        examination.judgements.append(Judgement(rule, "broken" if is_broken else "held", findings=found))
