"""The command line as a newcomer meets it: help for everything, and errors without tracebacks."""

import importlib
import inspect
import subprocess
import sys

import pytest

from tuneleak.cli import VERBS, main


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_help_explains_every_verb(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.name.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and verb.help.split(".")[0] in text
    assert all(argument.flag in text for argument in verb.arguments)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_arguments_are_those_of_the_function(verb):
    module, function = verb.target.split(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    given = {argument.name for argument in verb.arguments} | ({"options"} if verb.options else set())
    needed = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    assert needed <= given <= set(parameters), verb.name
    required = {argument.name for argument in verb.arguments if argument.required} | ({"options"} if verb.options else set())
    assert needed <= required


def test_bad_input_is_an_error_for_people(tmp_path):
    done = subprocess.run([sys.executable, "-m", "tuneleak", "render", "--name", "nobody", "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and "no set 'nobody'" in done.stderr and "Traceback" not in done.stderr


def test_help_does_not_import_torch():
    code = "import sys; from tuneleak import cli; cli.build_parser('t', 'd', cli.VERBS); assert not {'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
