"""The correct programs: each learns, has the forms that it states, and every form occurs."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.doctor.programs import FORMS, PROGRAMS
from tests.doctor.programs.program import FORMS_OF

pytestmark = pytest.mark.filterwarnings("ignore")


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


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_learns(name: str) -> None:
    program = PROGRAMS[name]()
    before = program.score()
    program.train()
    assert before < program.bar < program.score()
