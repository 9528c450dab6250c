"""The command line. One file a verb; heavy imports happen inside the verbs."""

import os
import sys
import warnings
from typing import Annotated, TextIO

import typer

from infer_kit import __version__
from infer_kit.cli.compare import compare
from infer_kit.cli.concepts import concepts
from infer_kit.cli.demo import demo
from infer_kit.cli.demo_concepts import demo_concepts
from infer_kit.cli.demo_icl import demo_icl
from infer_kit.cli.env import env
from infer_kit.cli.eval import evaluate
from infer_kit.cli.explain import explain
from infer_kit.cli.generate import generate
from infer_kit.cli.inspect import inspect
from infer_kit.cli.ls import ls
from infer_kit.cli.serve import serve
from infer_kit.errors import InferKitError

EXPLAIN_EXAMPLE = 'infer-kit explain demo "what color is the background ?" --out page.html'
EVAL_EXAMPLE = "infer-kit eval --model demo --data demo --task exact --method red --weight 1"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a model answer better at inference time, without retraining it.",
    epilog="Example: infer-kit demo",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"infer-kit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["INFER_KIT_DEBUG"] = "1"


demos = typer.Typer(pretty_exceptions_enable=False)
demos.callback(invoke_without_command=True, epilog="Example: infer-kit demo --save demo/")(demo)
demos.command("icl", epilog="Example: infer-kit demo icl --save demo/")(demo_icl)
demos.command("concepts", epilog="Example: infer-kit demo concepts --save demo/")(demo_concepts)
app.add_typer(demos, name="demo")
app.command(epilog='Example: infer-kit generate demo "what color is the background ?"')(generate)
app.command(epilog=f"Example: {EXPLAIN_EXAMPLE}")(explain)
app.command("eval", epilog=f"Example: {EVAL_EXAMPLE}")(evaluate)
app.command(epilog="Example: infer-kit compare runs/scenes-test-direct-* runs/scenes-test-red-*")(
    compare
)
app.add_typer(concepts, name="concepts")
app.command(epilog="Example: infer-kit inspect demo-text-a demo-text-b")(inspect)
app.command(epilog="Example: infer-kit ls")(ls)
app.command(
    epilog="Example: infer-kit serve Qwen/Qwen2.5-VL-3B-Instruct --max-model-len 8192",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(serve)
app.command(epilog="Example: infer-kit env")(env)


def main() -> None:
    """Run the command line."""
    run_app(app)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line: where in the code it was raised says nothing to a user."""
    if os.environ.get("INFER_KIT_DEBUG"):
        print(f"{filename}:{lineno}: {category.__name__}: {message}", file=sys.stderr)
    else:
        print(f"Warning: {message}", file=sys.stderr)


def run_app(command: typer.Typer) -> None:
    """Run a command; an `InferKitError`, or what a disk refuses, is shown without traceback.

    The exit code is then 2.

    `--debug`, anywhere in it, shows the traceback.
    """
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["INFER_KIT_DEBUG"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command()
    except (InferKitError, OSError) as error:
        if os.environ.get("INFER_KIT_DEBUG"):
            raise
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True)
        said, hint = str(error), getattr(error, "hint", None)
        if isinstance(error, OSError) and error.filename is not None:
            said = f"{str(error.filename)!r}: {error.strerror}."
        message = Text("Error: ", style="bold red") + Text(said, style="default")
        console.print(message, soft_wrap=True)
        if hint:
            console.print(Text("Hint:  ", style="bold") + Text(hint), soft_wrap=True)
        sys.exit(2)
