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
    from infer_kit.evaluation.report import rows_of, tables_of
    from infer_kit.evaluation.runner import load, prepare, run

    quiet()
    given = _options_of_eval(context.args)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    settings = [(n, o) for n in names for o in _settings(n, weights, grid or [])]
    if not settings:
        raise InferKitError("--methods names no method.")
    _refuse_unused(settings, weights, grid or [])
    base = evaluation_of({**given, "method": names[0], "weight": None, "set_": None})
    fixed = evaluation_of({**given, "method": names[0], "weight": None}).options
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
    commands: Any = typer.main.get_command(cli)
    given: Mapping[str, Any] = commands.commands["eval"].make_context("sweep.py", arguments).params
    return given


def _settings(name: str, weights: str | None, grid: list[str]) -> Iterator[dict[str, Any]]:
    """The combinations of options of one method; one without any where none is its own."""
    from infer_kit.evaluation.answering import check_method
    from infer_kit.methods.named import CLASSES, class_of, option_value

    axes: dict[str, list[Any]] = {}
    plain = name.lower().replace("-", "_")
    knob = getattr(class_of(plain), "knob", None) if plain in CLASSES else None
    if weights is not None and knob is not None:
        axes[knob] = [option_value(value) for value in weights.split(",")]
    for axis in grid:
        key, equals, values = axis.partition("=")
        if not equals or not values:
            raise InferKitError(f"--grid takes name=v1,v2,…, got {axis!r}.")
        try:
            check_method(name, {key: None, "others": "-"} if plain == "ensemble" else {key: None})
        except InferKitError as error:
            if "no option" not in str(error):
                raise
            continue
        axes[key] = [option_value(value) for value in values.split(",")]
    check_method(name, {"others": "-"} if plain == "ensemble" else {})
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
