"""Table of codes by subject: the page follows from the code, and no rule is without a place in it."""

from __future__ import annotations

from sightline.workbench.check.suite import all_rules
from tests.doctor.cells import PAGE, Judge, list_cells, with_table


def list_judges(code: str, subject: str) -> list[Judge]:
    """What judges a code of a subject."""
    return list_cells().get((code, subject), [])


def test_the_page_has_the_table_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_table(text), "run `python -m tests.doctor.cells`"


def test_every_rule_is_asked_of_a_subject() -> None:
    placed = {judge.name for judges in list_cells().values() for judge in judges}
    assert {rule.name.removeprefix("doctor.rules.").removeprefix("workbench.") for rule in all_rules()} == placed


def test_a_rule_that_reads_what_a_monitor_sees_judges_both() -> None:
    for code, name, monitors in (
        ("exchanged-axes", "model.exchanged_axes", ("LossMonitor", "PartMonitor")),
        ("attention", "model.softmax_axis", ("LossMonitor",)),
        ("attention", "model.padding_mask", ("PartMonitor",)),
        ("constant-output", "model.constant_output", ("OutputMonitor",)),
        ("not-optimised", "optimiser.not_optimised", ("ReachMonitor",)),
        ("same-label", "data.sorted_labels", ("LossMonitor",)),
        ("same-order", "data.same_order", ("OutputMonitor",)),
        ("unregistered", "model.unregistered", ("ReachMonitor",)),
        ("double-softmax", "loss.double_softmax", ("LossMonitor",)),
        ("large-update", "optimiser.large_update", ("UpdateMonitor",)),
        ("no-update", "optimiser.no_update", ("UpdateMonitor",)),
    ):
        checked, watched = (
            [each for each in list_judges(code, subject) if each.name == name] for subject in ("module", "loop")
        )
        assert [each.askers for each in checked] == [()]
        assert [each.askers for each in watched] == [monitors]


def test_no_rule_of_a_check_reads_the_whole_run() -> None:
    own = [rule for rule in all_rules() if rule.name.startswith("workbench.check.")]
    assert len(own) > 30
    assert [rule.name for rule in own if "run" in rule.reads] == []
