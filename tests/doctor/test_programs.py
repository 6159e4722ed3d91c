"""The correct programs: each learns and has the forms that it states; no way of asking the doctor finds anything."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import sightline
from tests.doctor.cases import ROWS
from tests.doctor.observing import judged, observe
from tests.doctor.programs import FORMS, PROGRAMS
from tests.doctor.programs.asking import WAYS, watch_step
from tests.doctor.programs.program import FORMS_OF, Program
from tests.marks import long_but

pytestmark = pytest.mark.filterwarnings("ignore")
ROW_IDS = [row.id.removeprefix("program/") for row in ROWS if row.kind == "program"]
DAILY = (
    *("fields_with_ignored_frames", "molecules_as_graphs", "transcripts", "boxes_of_each_image", "clipped_policy"),
    *("equation_of_a_rod", "student_of_its_average"),
)
"""Programs that are asked in `make test`, in all ways."""
EXAMINED = ("clouds_with_features", "variational_autoencoder", "masked_words")
"""Programs that are asked there by their step and by their loss."""
DAILY_ROWS = [row for row in ROW_IDS if row.startswith(DAILY) or (row.startswith(EXAMINED) and "/watch" not in row)]
ENOUGH = 0.9
"""Share of the relations of the plain form that are asked of the program as it is."""


def test_every_form_occurs_in_a_program() -> None:
    assert set(itertools.chain(*FORMS_OF.values())) == FORMS.keys()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_its_forms_and_a_loss_as_it_is_and_plainly(name: str) -> None:
    program = PROGRAMS[name]()
    batch = next(iter(program.loader))
    for form in FORMS_OF[name]:
        has_form = FORMS[form]
        assert has_form is None or has_form(batch), form
    loss = program.step(batch)
    assert loss.shape == ()
    loss.backward()
    assert all(parameter.grad is not None for parameter in program.model.parameters())
    if program.plain_form is not None:
        model, plain_loss, loader = program.plain_form()
        inputs, target = next(iter(loader))
        if isinstance(inputs, dict) and name != "clouds_end_to_end":
            outputs = model(**inputs)
        else:
            outputs = model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
        assert torch.isfinite(plain_loss(outputs, target))


class Answers(NamedTuple):
    """What is found in a program, but notes, and each rule with the reason why it was not asked, or ""."""

    found: list[str]
    reasons: dict[str, str]


@cache
def ask(name: str, way: str) -> Answers:
    """Ask about a program in one way, once for all tests."""
    with judged() as judgements:
        alarms = observe(lambda: WAYS[way](PROGRAMS[name]()))
    asked = {j.rule.judge.__name__ for j in judgements if j.outcome in ("held", "broken")}
    reasons = {j.rule.judge.__name__: "" if j.rule.judge.__name__ in asked else j.reason for j in judgements}
    return Answers([alarm.text for alarm in alarms if alarm.severity != "note"], reasons)


@pytest.mark.parametrize("row", long_but(DAILY_ROWS, ROW_IDS))
def test_nothing_is_found_in_a_program_and_no_measurement_fails(row: str) -> None:
    name, _, way = row.partition("/")
    assert ask(name, way).found == []


WITHOUT_LOSS = [name for name in PROGRAMS if f"{name}/loss" not in ROW_IDS]


@pytest.mark.parametrize("name", long_but({*DAILY, *EXAMINED} & {*WITHOUT_LOSS}, WITHOUT_LOSS))
def test_nothing_is_found_in_a_program_without_a_loss_whose_step_is_not_given(name: str) -> None:
    assert ask(name, "loss").found == []


def take_bits(program: Program, *, is_watched: bool) -> list[Tensor]:
    """Train an epoch; return all numbers of its models, and the state of the generator."""
    models = program.watched or program.model
    if is_watched:
        watch_step(program)
    else:
        program.train(1)
    states = [model.state_dict() for model in (models.values() if isinstance(models, Mapping) else [models])]
    return [*itertools.chain(*(state.values() for state in states)), torch.get_rng_state()]


@pytest.mark.parametrize("name", long_but(("equation_of_a_rod", "learning_to_learn"), PROGRAMS))
def test_a_program_has_the_same_bits_under_watch(name: str) -> None:
    plain, watched = (take_bits(PROGRAMS[name](), is_watched=is_watched) for is_watched in (False, True))
    assert all(map(torch.equal, plain, watched))


PLAIN = [row.removesuffix("/plain") for row in ROW_IDS if row.endswith("/plain")]


COMPARED = {*DAILY, *EXAMINED, "words_that_follow", "consistent_predictions"} & {*PLAIN}


@pytest.mark.parametrize("name", long_but(COMPARED, PLAIN))
def test_the_step_of_a_program_is_asked_what_its_plain_form_is(name: str) -> None:
    plain, step = (ask(name, way).reasons for way in ("plain", "step"))
    expected = [rule for rule, reason in plain.items() if not reason]
    lacking = {rule: step.get(rule, "no such rule") for rule in expected if step.get(rule, "no such rule")}
    assert len(lacking) <= (1 - ENOUGH) * len(expected), lacking


GIVEN = ("fields_with_ignored_frames", "messages_with_padding", "generator_and_critic")


@pytest.mark.parametrize("name", long_but(GIVEN, PROGRAMS))
def test_a_watch_that_is_given_the_step_asks_all_that_a_check_does(name: str) -> None:
    way = "step" if PROGRAMS[name]().losses is None else "models"
    checked, watched = (ask(name, way).reasons for way in (way, "watch_step"))
    assert [rule for rule, reason in checked.items() if not reason and watched.get(rule, "not asked")] == []


WATCHED = {
    "generator_and_critic": 40,
    "energies_and_forces": 20,
    "consistent_predictions": 30,
    "memory_of_embeddings": 25,
}
"""Relations that an epoch under `watch` asks at least, of programs whose steps have several passes or their slopes."""


@pytest.mark.parametrize("name", long_but(["generator_and_critic"], WATCHED))
def test_a_step_of_several_passes_or_models_is_asked_while_it_trains(name: str) -> None:
    program = PROGRAMS[name]()
    watch = sightline.watch(program.watched or program.model, optimizer=program.optimizers or program.optimizer)
    with judged() as judgements, watch:
        program.train(1)
    assert sum(judgement.outcome == "held" for judgement in judgements) >= WATCHED[name]
    assert {judgement.outcome for judgement in judgements} <= {"held", "apply", "left", "declared", "cost"}


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_learns(name: str) -> None:
    program = PROGRAMS[name]()
    before = program.score()
    program.train()
    assert before < program.bar < program.score()
