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
    "demo concepts": {"--json", "--save", "--pictures", "--seed"},
    "concepts": set(),
    "concepts build": {
        "--out", "--phrases", "--captions", "--tagger", "--classes", "--prompt", "--longest",
        "--dtype", "--deduplicate", "--near-classes", "--batch-size", "--device",
    },
    "concepts explain": {
        "--bank", "--classes", "--template", "--k", "--alpha", "--positive", "--image-mean",
        "--top", "--delete", "--insert", "--figure", "--json", "--device",
    },
    "concepts eval": {
        "--bank", "--classes", "--template", "--k", "--alpha", "--positive", "--image-mean",
        "--delete", "--figure", "--seed", "--json", "--device",
    },
    "generate": {
        "--image", "--method", "--weight", "--set", "--with", "--demonstrations",
        "--max-new-tokens", "--generate", "--trace",
    },
    "explain": {
        "--out", "--image", "--method", "--weight", "--set", "--with", "--demonstrations",
        "--max-new-tokens", "--candidates", "--force",
    },
    "eval": {
        "--model", "--data", "--task", "--method", "--weight", "--set", "--backend", "--model-arg",
        "--processor-arg", "--device", "--tensor-parallel-size", "--limit", "--demonstrations",
        "--shots", "--shot-seed", "--instruction", "--system", "--chat-template",
        "--max-new-tokens", "--generate", "--batch-size", "--seed", "--trace", "--max-errors",
        "--out", "--json",
    },
    "compare": {"--show", "--resamples", "--seed", "--json"},
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
    shown = " ".join(out.split())
    assert all(method.name in shown for method in METHODS)
    assert all(" ".join(method.formula.split()) in shown for method in METHODS)
    assert "--method parallel_icl" in shown and "bits_per_byte" in shown and "demo-icl" in shown


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
        def generate(self, messages: list, **kwargs: object) -> SimpleNamespace:
            return SimpleNamespace(rationale=written)

    processor = SimpleNamespace(tokenizer=None)
    loaded = SimpleNamespace(processor=processor)
    monkeypatch.setattr("infer_kit.named_models.load_model", lambda name: loaded)
    monkeypatch.setattr("infer_kit.cli.one_question.Request.recipe", lambda *_: Scripted())
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
            ("generate", "demo", "what?", "--method", "direct", "--with", "rationale=x"),
            "The method 'direct' takes no 'rationale' beside the question.",
        ),
        (("generate", "demo", "what?", "--method", "rde"), "Did you mean 'red'?"),
        (("generate", "demo", "what?", "--set", "wieght=1"), "Did you mean 'weight'?"),
        (
            ("generate", "demo", "what?", "--image", "none.png"),
            "The picture 'none.png' is not there",
        ),
        (("generate", "demo", "what?", "--method", "parallel-icl"), "needs demonstrations"),
        (("generate", "demo", " "), "The question is empty."),
        (("generate", "demo", "what?", "--max-new-tokens", "0"), "from 1 on, got 0"),
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


@pytest.mark.parametrize(
    "arguments", [("--debug", "demo", "--questions", "3"), ("demo", "--questions", "3", "--debug")]
)
def test_debug_shows_the_traceback(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFER_KIT_DEBUG", "")  # restored afterwards
    monkeypatch.setattr(sys, "argv", ["infer-kit", *arguments])
    with pytest.raises(InferKitError, match="--questions must be an even number"):
        cli.main()
