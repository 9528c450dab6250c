"""`infer-kit eval`: a method on a file of samples; resumable."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from rich.table import Table

    from infer_kit.evaluation.preparation import Evaluation


def evaluate(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="A model folder or hub name; demo, demo-icl, … are bundled.")
    ],
    data: Annotated[
        str,
        typer.Option(help="A JSONL file of samples (evals/data/ makes them); demo, demo-icl."),
    ],
    task: Annotated[str, typer.Option(help="How answers are judged: infer-kit ls; or my_task.py.")],
    method: Annotated[str, typer.Option(help="direct, cot, red, parallel_icl, vcd, ….")] = "direct",
    weight: Annotated[
        str | None, typer.Option(help="The method's one knob (λ, α, γ, β), or kl:<nats>.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the method; repeatable.")
    ] = None,
    backend: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    model_arg: Annotated[
        list[str] | None,
        typer.Option(help="key=value of from_pretrained, or of vLLM's engine; repeatable."),
    ] = None,
    processor_arg: Annotated[
        list[str] | None,
        typer.Option(help="key=value of the processor (do_pan_and_scan=true); repeatable."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ….")] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="GPUs an engine of vLLM's takes.")] = 1,
    limit: Annotated[int | None, typer.Option(help="The first so many samples.")] = None,
    demonstrations: Annotated[
        Path | None, typer.Option(help="A JSONL file of answered samples, put before every one.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="How many of them, drawn.")] = None,
    shot_seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    instruction: Annotated[
        str | None, typer.Option(help="After each question, in place of the task's.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system turn.")] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="A Jinja file; or plain, for bare texts.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="In place of the task's.")] = None,
    generate: Annotated[
        list[str] | None,
        typer.Option(help="key=value of generate (do_sample=true …); repeatable."),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Samples answered together, or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    trace: Annotated[
        bool, typer.Option("--trace", help="Keep each answer's trace in its line.")
    ] = False,
    max_errors: Annotated[int, typer.Option(help="So many samples may fail.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder of runs.")] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object and nothing else.")
    ] = False,
) -> None:
    """Answer a file of samples with a method and judge the answers.

    A run that was cut off goes on where it stopped; another configuration gets another folder.
    Several processes: torchrun --nproc_per_node 2 evals/run.py with the same options.
    """
    from infer_kit.evaluation.preparation import prepare
    from infer_kit.evaluation.runner import run

    quiet()
    prepared = prepare(evaluation_of(context.params))
    try:
        folder, results = run(prepared, out)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on where it stopped.", err=True)
        raise
    show(str(folder.path), results, as_json)


def evaluation_of(given: Mapping[str, Any]) -> "Evaluation":
    """What the options of `evaluate` ask for, by their names.

    Raises:
        InferKitError: options contradict each other or cannot be read.
    """
    from infer_kit.demo.samples import SETS, written
    from infer_kit.evaluation.preparation import Evaluation
    from infer_kit.methods.named import parse_options

    generation = parse_options(given["generate"] or [], "--generate")
    if given["max_new_tokens"] is not None:
        if "max_new_tokens" in generation:
            raise InferKitError("--max-new-tokens and --generate max_new_tokens= are the same.")
        generation["max_new_tokens"] = given["max_new_tokens"]
    arguments = parse_options(given["model_arg"] or [], "--model-arg")
    if given["tensor_parallel_size"] != 1:
        if given["backend"] != "vllm":
            raise InferKitError("--tensor-parallel-size is vLLM's: give --backend vllm.")
        arguments["tensor_parallel_size"] = given["tensor_parallel_size"]
    data = Path(given["data"])
    if not data.is_file() and given["data"] in SETS:
        data = written(given["data"], Path(given["out"]) / "data")
    same = {field.name for field in fields(Evaluation)} & given.keys()
    return Evaluation(
        **{name: given[name] for name in same - {"batch_size", "data"}},
        data=data,
        options=method_options(given["method"], given["weight"], given["set_"] or []),
        model_arguments=arguments,
        processor_arguments=parse_options(given["processor_arg"] or [], "--processor-arg"),
        generation=generation,
        batch_size=_size(given["batch_size"]),
    )


def method_options(method: str, weight: str | None, pairs: list[str]) -> dict[str, Any]:
    """The options of --set, with --weight under the name that it has in the method.

    Raises:
        InferKitError: the method has no knob, or it is given twice.
    """
    from infer_kit.methods.named import CLASSES, class_of, did_you_mean, option_value, parse_options

    options = parse_options(pairs)
    if weight is None:
        return options
    plain = method.lower().replace("-", "_")
    knob = getattr(class_of(plain), "knob", None) if plain in CLASSES else None
    if knob is None:
        having = [name for name in CLASSES if hasattr(class_of(name), "knob")]
        raise InferKitError(
            f"The method {method!r} has no --weight."
            + ("" if plain in CLASSES else did_you_mean(plain, CLASSES)),
            hint=f"Methods with one are {', '.join(having)}; other options go into --set.",
        )
    if knob in options:
        raise InferKitError(f"--weight and --set {knob}= are the same; give one.")
    return {**options, knob: option_value(weight)}


def quiet() -> None:
    """No bars of transformers' own; the loop has one."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def show(folder: str, results: dict[str, Any] | None, as_json: bool) -> None:
    """Print the figures, or where they will be."""
    import json

    from rich.console import Console

    if as_json:
        print(json.dumps({"folder": folder, "results": results}))
        return
    console = Console()
    if results is None:
        console.print(f"This process is done; others are writing {folder}.", soft_wrap=True)
        return
    console.print(_table(results))
    console.print(f"{folder}", style="dim", soft_wrap=True)


def _table(results: dict[str, Any]) -> "Table":
    from rich.table import Table

    title = f"{results['config']['method']}: {results['n']:,} samples"
    if results["errors"]:
        title += f", {results['errors']} failed"
    table = Table("metric", "value", "s.e.", title=title)
    for name, figure in results["metrics"].items():
        cells = (figure["value"], figure["stderr"])
        table.add_row(name, *("–" if cell is None else f"{cell:.4f}" for cell in cells))
    return table


def _size(given: str) -> int | None:
    if given == "auto":
        return None
    try:
        return int(given)
    except ValueError as error:
        raise InferKitError(f"--batch-size is a number or auto, got {given!r}.") from error
