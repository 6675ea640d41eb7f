"""Verbs from functions: flags, `--options JSON`, help, and errors for people."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneleak import command
from tuneleak.errors import InputError
from tuneleak.options import ExtractionOptions, ImportOptions


@pytest.fixture
def parser(monkeypatch):
    """A command line of two verbs whose functions note what they are called with, or fail."""
    calls = []

    def work(source, options=None, names=None):
        calls.append((source, names, options))
        if str(source) == "missing":
            raise InputError("missing: no such folder; make it with X")
        if str(source) == "disk":
            raise OSError(28, "No space left on device", "/there")
        if str(source) == "bug":
            raise RuntimeError("a bug")

    monkeypatch.setitem(sys.modules, "verbs_under_test", SimpleNamespace(work=work))
    arguments = [command.Argument("--source", "folder"), command.Argument("--names", "names", many=True, required=False, kind=str)]
    verbs = [
        command.Verb("take", "take pictures", "verbs_under_test:work", arguments, ImportOptions),
        command.Verb("attack run", "run it", "verbs_under_test:work", arguments, ExtractionOptions),
        command.Verb("plain", "no options", "verbs_under_test:work", arguments),
    ]
    built = command.build_parser("tuneleak", "test", verbs)
    built.calls = calls
    return built


def options_of(parser, *argv):
    command.run(parser, ["take", "--source", "x", *argv])
    return parser.calls[-1][2]


def test_arguments_and_defaults(parser):
    command.run(parser, ["take", "--source", "a b", "--names", "1", "2"])
    assert parser.calls == [(Path("a b"), ["1", "2"], ImportOptions())]
    command.run(parser, ["plain", "--source", "x"])
    assert parser.calls[-1] == (Path("x"), None, None)


def test_a_verb_of_two_words_with_json_values(parser):
    command.run(parser, ["attack", "run", "--source", "x", "--guidance", '[{"w": 3, "k": -0.02}]', "--attack", "cfg"])
    options = parser.calls[-1][2]
    assert (options.guidance[0].w, options.guidance[0].k, options.attack) == (3.0, -0.02, "cfg")


def test_options_json_and_flags_agree_and_flags_win(parser):
    by_flags = options_of(parser, "--size", "32", "--skip-broken", "true", "--caption", "a {concept}")
    by_json = options_of(parser, "--options", json.dumps({"size": 32, "skip_broken": True, "caption": "a {concept}"}))
    assert by_flags == by_json == ImportOptions(size=32, skip_broken=True, caption="a {concept}")
    assert options_of(parser, "--options", '{"size": 32, "seed": 5}', "--size", "16") == ImportOptions(size=16, seed=5)


@pytest.mark.parametrize("text", ["2026", "true", "null", '"quoted"', "[1]"])
def test_a_text_option_stays_text(parser, text):
    assert options_of(parser, "--caption", text).caption == text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--size", "0"], "--size: Input should be greater than or equal to 1"),
        (["--size", "big"], "--size: Input should be a valid integer"),
        (["--skip-broken", "perhaps"], "--skip-broken"),
        (["--options", '{"sise": 1}'], "--sise: Extra inputs are not permitted"),
        (["--options", '{"size": '], "--options is not valid JSON"),
        (["--options", "[1]"], "--options must be a JSON object"),
        (["--options", "3", "--size", "8"], "--options must be a JSON object"),
    ],
)
def test_wrong_options_are_named_and_exit_with_2(parser, capsys, argv, says):
    with pytest.raises(SystemExit) as stopped:
        command.run(parser, ["take", "--source", "x", *argv])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and says in printed and "Traceback" not in printed and parser.calls == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "inf", "-Infinity"])
def test_numbers_must_be_finite(parser, value):
    with pytest.raises(SystemExit) as stopped:
        command.run(parser, ["attack", "run", "--source", "x", "--guidance", f'[{{"w": {value}}}]'])
    assert stopped.value.code == 2


def test_nested_faults_are_named_to_the_leaf(parser, capsys):
    with pytest.raises(SystemExit):
        command.run(parser, ["attack", "run", "--source", "x", "--options", '{"cluster": {"node_budget": "a"}}'])
    assert "--cluster.node-budget: Input should be a valid integer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [("missing", 2, "missing: no such folder; make it with X"), ("disk", 1, "No space left on device: '/there'")],
)
def test_faults_of_input_and_machine_have_no_traceback(parser, capsys, source, code, says):
    with pytest.raises(SystemExit) as stopped:
        command.run(parser, ["take", "--source", source])
    printed = capsys.readouterr().err
    assert stopped.value.code == code and printed.startswith("tuneleak: error: ") and says in printed


def test_debug_shows_the_exception_and_a_bug_is_never_hidden(parser):
    with pytest.raises(InputError):
        command.run(parser, ["--debug", "take", "--source", "missing"])
    with pytest.raises(OSError, match="No space"):
        command.run(parser, ["--debug", "take", "--source", "disk"])
    with pytest.raises(RuntimeError, match="a bug"):
        command.run(parser, ["take", "--source", "bug"])


@pytest.mark.parametrize("argv", [[], ["take"], ["nothing"], ["attack"], ["take", "--source", "x", "--colour", "red"]])
def test_wrong_usage_exits_with_2(parser, argv):
    with pytest.raises(SystemExit) as stopped:
        command.run(parser, argv)
    assert stopped.value.code == 2 and parser.calls == []


def test_help_lists_every_option_with_its_default(parser, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.run(parser, ["take", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0 and "SUPPRESS" not in shown
    for name, info in ImportOptions.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown and f"(default: {info.default})" in shown


def test_help_lists_the_choices(parser, capsys):
    with pytest.raises(SystemExit):
        command.run(parser, ["attack", "run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "one of ddim, finextract-compat (default: ddim)" in shown
