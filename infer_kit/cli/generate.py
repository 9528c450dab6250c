"""`infer-kit generate`: one answer, streamed."""

from typing import Annotated

import typer

from infer_kit.cli import one_question as ask
from infer_kit.errors import InferKitError


def generate(
    model: ask.Model,
    question: ask.Question,
    image: ask.Images = None,
    method: ask.Method = "red",
    weight: ask.Weight = None,
    set_: ask.Set = None,
    with_: ask.With = None,
    demonstrations: ask.Demonstrations = None,
    max_new_tokens: ask.MaxNewTokens = 64,
    generate: Annotated[
        list[str] | None,
        typer.Option(help="key=value of generate (do_sample=true …); repeatable."),
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show each stream's part.")] = False,
) -> None:
    """Answer a question about pictures (or without any) with a method, streaming the answer.

    The answer goes to the output, then the rationale to the error stream.
    """
    from infer_kit.methods.named import parse_options

    request = ask.request_of(
        question, image, method, weight, set_, with_, demonstrations, max_new_tokens
    )
    generation = parse_options(generate or [], "--generate")
    if "max_new_tokens" in generation:
        raise InferKitError("--generate max_new_tokens= has an option of its own.")
    import transformers
    from rich.console import Console
    from transformers import TextStreamer

    from infer_kit.named_models import load_model

    transformers.utils.logging.disable_progress_bar()
    notes = Console(stderr=True)
    loaded = load_model(model)
    recipe = request.recipe(loaded, trace)
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    out = recipe.generate(
        request.chat,
        max_new_tokens=max_new_tokens,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **request.inputs,
        **generation,
    )
    if getattr(out, "rationale", None) is not None:
        # A model's text is no markup: scene graphs are full of brackets.
        notes.print(f"rationale: {out.rationale}", style="dim", markup=False, emoji=False)  # type: ignore[attr-defined]
    if trace:
        Console().print(out.trace.table())
