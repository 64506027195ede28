"""What machine this is: one host's id, and the machine's own without it."""

import re
from dataclasses import fields, replace

import pytest

from experiments import machine, schema

HOST = machine.Host(6, 143, 8, {"L1d": 49152, "L2": 2097152}, "0123abcd")
OTHERS = {
    "family": 25,
    "model": 85,
    "stepping": None,
    "caches": {"L1d": 49152, "L2": 1048576},
    "boot": "0123abce",
}


def test_the_host_is_the_same_all_through_a_process():
    assert machine.host() == machine.host() and machine.host().id == machine.host().id
    machine.host.cache_clear()
    before = machine.host().id
    machine.host.cache_clear()
    assert machine.host().id == before and re.fullmatch("[0-9a-f]{8}", before)
    schema.Host.model_validate(machine.host().to_json())


@pytest.mark.parametrize("field", [field.name for field in fields(machine.Host)])
def test_the_id_of_a_host_changes_with_every_field(field):
    assert replace(HOST, **{field: OTHERS[field]}).id != HOST.id
    assert replace(HOST, **{field: getattr(HOST, field)}).id == HOST.id


def test_a_machine_is_the_same_whichever_host_it_is_on():
    here = machine.describe("cpu")
    there = replace(here, host=HOST)
    assert here.host == machine.host() and there.id == here.id
    assert there.to_json()["host"] == {
        "id": HOST.id,
        "family": 6,
        "model": 143,
        "stepping": 8,
        "caches": {"L1d": 49152, "L2": 2097152},
        "boot": "0123abcd",
    }
    assert replace(here, cores=here.cores + 1).id != here.id
    schema.Machine.model_validate(there.to_json())
