"""The command line: its verbs and options, its errors, and what it prints."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from infer_kit import cli
from infer_kit.methods import METHODS

# A new option is a promise; it is added here on purpose, or not at all.
OPTIONS = {
    "demo": {"--json", "--save", "--weight", "--questions", "--seed"},
    "generate": {
        "--image", "--method", "--weight", "--kind", "--rationale", "--max-new-tokens", "--trace",
    },
    "ls": set(),
    "env": set(),
}  # fmt: skip


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error output of the command line."""
    result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_the_verbs_and_options_are_these() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    found = {
        name: {o for p in command.params for o in p.opts if o.startswith("--")} - {"--help"}
        for name, command in commands.items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_help_ends_with_an_example(verb: str) -> None:
    code, out, _ = run(verb, "--help")
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


def test_env_names_a_torchvision_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return importlib.__import__(name)

    env = importlib.import_module("infer_kit.cli.env")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    problem = env.torchvision_problem()
    assert problem is not None
    assert "operator torchvision::nms does not exist" in problem
    assert problem.endswith("pip uninstall -y torchvision torchaudio torchcodec")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--questions", "3"), "--questions must be an even number"),
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
