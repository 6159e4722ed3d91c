"""Messages of errors: one line, whatever the names in them are."""

from __future__ import annotations

import os
import pickle

from sightline.contract.errors import ConfigError, DataError, MissingDataError, UserError, escape_to_one_line


def test_a_data_error_is_one_line() -> None:
    name = "a\nb\r\t\x1b[31m\u2028\u202e" + os.fsdecode(b"\xff.off")
    told = str(MissingDataError(f"{name}: is größer 点\u3000云"))
    assert told == r"a\nb\r\t\x1b[31m\u2028\u202e\udcff.off: is größer 点" + "\u3000云"
    assert told.encode()
    assert str(pickle.loads(pickle.dumps(DataError(told)))) == told
    assert escape_to_one_line("as it is") == "as it is"


def test_a_mistake_is_one_line_and_faults_of_a_config_are_one_each() -> None:
    assert str(UserError("a\nb.yaml: no such file")) == r"a\nb.yaml: no such file"
    assert str(ConfigError("one\x1b", "two")) == "one\\x1b\ntwo"
