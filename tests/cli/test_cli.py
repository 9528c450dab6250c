"""The command line: its verbs and options, its errors, and what it prints."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from infer_kit import cli
from infer_kit.errors import InferKitError
from infer_kit.methods import METHODS

# A new option is a promise; it is added here on purpose, or not at all.
OPTIONS = {
    "demo": {"--json", "--save", "--weight", "--questions", "--seed"},
    "demo icl": {"--json", "--save", "--episodes", "--seed"},
    "generate": {
        "--image", "--method", "--weight", "--kind", "--rationale", "--max-new-tokens", "--trace",
    },
    "explain": {
        "--image", "--method", "--weight", "--set", "--with", "--demonstrations",
        "--max-new-tokens", "--candidates", "--out", "--force",
    },
    "serve": set(),
    "inspect": {"--text", "--json"},
    "ls": set(),
    "env": set(),
}  # fmt: skip


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error output of the command line."""
    result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_the_verbs_and_options_are_these() -> None:
    commands = dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    for name, command in list(commands.items()):
        for below, inner in getattr(command, "commands", {}).items():
            commands[f"{name} {below}"] = inner
    found = {
        name: {o for p in command.params for o in p.opts if o.startswith("--")} - {"--help"}
        for name, command in commands.items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_help_ends_with_an_example(verb: str) -> None:
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert f"Example: infer-kit {verb}" in out


def test_ls_shows_every_method_with_its_formula() -> None:
    code, out, _ = run("ls")
    assert code == 0
    assert all(method.name in out for method in METHODS)


def test_env_shows_versions_and_devices() -> None:
    code, out, _ = run("env")
    assert code == 0
    assert "transformers" in out and "cpu" in out


def test_env_shows_the_problem_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    env = importlib.import_module("infer_kit.cli.env")
    monkeypatch.setattr(env, "torchvision_problem", lambda: "no symbol [torch/csrc] [/x]")
    code, out, _ = run("env")
    assert code == 0
    assert "Problem: no symbol [torch/csrc] [/x]" in out
    assert "pip uninstall -y torchvision torchaudio torchcodec" in out


@pytest.mark.parametrize("written", ['{"objects": [sofa, table]}', "[/INST] a :cat:"])
def test_generate_shows_the_rationale_as_it_is(
    written: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets and colons in what a model writes are not markup."""

    class Scripted:
        def __init__(self, *args: object, **kwargs: object) -> None: ...

        def generate(self, messages: list, **kwargs: object) -> SimpleNamespace:
            return SimpleNamespace(rationale=written)

    module = importlib.import_module("infer_kit.cli.generate")
    processor = SimpleNamespace(tokenizer=None)
    monkeypatch.setattr(module, "load", lambda name: (None, processor, None))
    monkeypatch.setattr("infer_kit.methods.red.RED", Scripted)
    monkeypatch.setattr(sys, "argv", ["infer-kit", "generate", "demo", "what?"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    assert f"rationale: {written}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--questions", "3"), "--questions must be an even number"),
        (("demo", "icl", "--episodes", "1"), "--episodes must be at least 2"),
        (("demo", "--json", "icl"), "Options come after 'icl'"),
        (("generate", "demo", "what?", "--method", "magic"), "Unknown method 'magic'"),
        (("generate", "no/such/folder", "what?"), "No model at 'no/such/folder'"),
        (
            ("generate", "demo", "what?", "--method", "direct", "--rationale", "x"),
            "--rationale needs --method red",
        ),
    ],
)
def test_user_errors_are_said_without_traceback(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["infer-kit", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_KIT_DEBUG", "")  # restored afterwards
    monkeypatch.setattr(sys, "argv", ["infer-kit", "--debug", "demo", "--questions", "3"])
    with pytest.raises(InferKitError, match="--questions must be an even number"):
        cli.main()
