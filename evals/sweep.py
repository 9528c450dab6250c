"""Several methods and values of their options on one file of samples, the model loaded once.

python evals/sweep.py --methods direct,cot,red --weights 0,0.25,0.5,1 \\
    --model demo --data data/scenes/test.jsonl --task exact
python evals/sweep.py --methods parallel_icl --grid chunks=1,2,4 ...

All other options are those of evals/run.py, and every run is the one that it would write.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

import typer

from infer_kit.cli import app as cli
from infer_kit.cli import run_app
from infer_kit.errors import InferKitError


def sweep(
    context: typer.Context,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")],
    weights: Annotated[
        str | None, typer.Option(help="Values of the one knob of each method that has one.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(help="name=v1,v2,… of the methods that have the option; repeatable."),
    ] = None,
) -> None:
    """Run every combination, then show one table. What is there already is not run again.

    All other options (--model, --data, --task, …) are those of evals/run.py; see its --help.
    """
    from rich.console import Console

    from infer_kit.cli.eval import evaluation_of, quiet
    from infer_kit.evaluation.answering import Rationales
    from infer_kit.evaluation.figures import FinishedRun
    from infer_kit.evaluation.preparation import prepare
    from infer_kit.evaluation.report import rows_of, tables_of
    from infer_kit.evaluation.runner import load, run
    from infer_kit.methods.named import parse_options

    quiet()
    given = _options_of_eval(context.args)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise InferKitError("--methods names no method.")
    fixed = parse_options(given["set_"] or [])
    settings = [(n, o) for n in names for o in _settings(n, weights, grid or [], fixed)]
    _refuse_unused(settings, weights, grid or [])
    base = evaluation_of({**given, "method": "direct", "weight": None, "set_": None})
    # All are checked before the model is loaded.
    prepared = [
        prepare(replace(base, method=name, options={**fixed, **options}))
        for name, options in settings
    ]
    loaded = cache(lambda: load(base))
    rationales: Rationales = {}
    done = []
    for each in prepared:
        folder, results = run(each, given["out"], loaded, rationales)
        if results is not None:
            done.append(FinishedRun(folder, results))
    for table in tables_of(rows_of(done)):
        Console().print(table)


def _options_of_eval(arguments: list[str]) -> Mapping[str, Any]:
    """The options of `infer-kit eval`, read as it reads them."""
    for name in ("method", "weight"):
        if any(word.split("=")[0] == f"--{name}" for word in arguments):
            raise InferKitError(f"A sweep takes --{name}s, not --{name}.")
    commands: Any = typer.main.get_command(cli)
    given: Mapping[str, Any] = commands.commands["eval"].make_context("sweep.py", arguments).params
    return given


def _settings(
    name: str, weights: str | None, grid: list[str], fixed: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The combinations of options of one method; one without any where none is its own."""
    from infer_kit.evaluation.answering import METHODS, known_options
    from infer_kit.methods.named import CLASSES, class_of, did_you_mean, option_value

    plain = name.lower().replace("-", "_")
    if plain not in METHODS:
        raise InferKitError(f"Unknown method {name!r}.{did_you_mean(plain, METHODS)}")
    axes: dict[str, list[Any]] = {}
    knob = getattr(class_of(plain), "knob", None) if plain in CLASSES else None
    swept = [f"{knob}={weights}"] if weights is not None and knob is not None else []
    for axis in (*swept, *grid):
        key, equals, values = axis.partition("=")
        if not equals or not values:
            raise InferKitError(f"--grid takes name=v1,v2,…, got {axis!r}.")
        if key not in known_options(plain):
            continue
        if key in axes or key in fixed:
            raise InferKitError(f"{key!r} of {name} is given twice: by --weights, --grid or --set.")
        several = [option_value(value) for value in values.split(",")]
        axes[key] = [v for n, v in enumerate(several) if v not in several[:n]]
    for chosen in itertools.product(*axes.values()):
        yield dict(zip(axes, chosen, strict=True))


def _refuse_unused(
    settings: list[tuple[str, dict[str, Any]]], weights: str | None, grid: list[str]
) -> None:
    """Raise where no method has what is swept."""
    used = {key for _, options in settings for key in options}
    for axis in grid:
        if axis.partition("=")[0] not in used:
            raise InferKitError(f"No method of --methods has the option of --grid {axis!r}.")
    if weights is not None and not used:
        raise InferKitError("No method of --methods has a weight for --weights.")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        epilog="Example: python evals/sweep.py --methods direct,red --weights 0,0.5,1 --model demo "
        "--data demo --task exact",
    )(sweep)
    run_app(app)
