"""What holds of every command: options are declared once, and a command is one dataclass in a file of its own."""

from collections import defaultdict
from dataclasses import fields
from typing import get_type_hints

from probe.commands.command import command_named, command_names
from probe.sweep.fields import fields_of

COMMANDS = {name: command_named(name) for name in command_names()}


def declaring(kind, option):
    return next(one for one in kind.__mro__ if option in vars(one).get("__annotations__", {}))


def test_each_option_is_declared_once():
    where = defaultdict(set)
    for kind in COMMANDS.values():
        for field in fields(kind):
            where[field.name].add(declaring(kind, field.name))
    assert {name: kinds for name, kinds in where.items() if len(kinds) > 1} == {}
    # The walk saw the options of the shell.
    assert len(where) > 100
    assert {"forget", "retain", "template", "dtype", "limit", "batch_size", "seed", "out"} <= set(where)


def test_options_that_every_command_with_rows_has_mean_the_same():
    shared = {"forget", "retain", "limit", "template", "dtype", "device", "batch_size", "threads", "out"}
    with_rows = [kind for kind in COMMANDS.values() if "forget" in {field.name for field in fields(kind)}]
    assert len(with_rows) >= 11
    for kind in with_rows:
        assert shared <= {field.name for field in fields(kind)}, kind


def test_a_sweep_file_has_the_options_of_the_command():
    for name, kind in COMMANDS.items():
        if "out" in get_type_hints(kind) and name != "sweep":
            assert set(fields_of(kind, name)) == {field.name for field in fields(kind)}
