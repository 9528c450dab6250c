"""`infer-kit generate`: one answer, streamed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from infer_kit.errors import InferKitError
from infer_kit.processors import load_processor


def generate(
    model: Annotated[str, typer.Argument(help="A model folder or hub name; 'demo' is bundled.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[Path | None, typer.Option(help="A picture file.")] = None,
    method: Annotated[str, typer.Option(help="red or direct.")] = "red",
    weight: Annotated[
        str, typer.Option(help="RED's weight of the rationale, or a budget: kl:0.1.")
    ] = "0.5",
    kind: Annotated[str, typer.Option(help="Of rationale: cot or ccot.")] = "cot",
    rationale: Annotated[str | None, typer.Option(help="A rationale of your own.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of the answer.")] = 64,
    trace: Annotated[bool, typer.Option("--trace", help="Show each stream's part.")] = False,
) -> None:
    """Answer a question about a picture (or without one), streaming the answer.

    The answer goes to the output, then the rationale to the error stream.
    """
    if method not in ("red", "direct"):
        raise InferKitError(f"Unknown method {method!r}: use red or direct.")
    if rationale is not None and method == "direct":
        raise InferKitError("--rationale needs --method red: direct decoding reads none.")
    import transformers
    from rich.console import Console
    from transformers import TextStreamer

    from infer_kit.methods.red import RED

    transformers.utils.logging.disable_progress_bar()
    notes = Console(stderr=True)
    loaded, processor, prompts = load(model)
    red = RED(
        loaded,
        processor,
        weight=_number(weight) if method == "red" else 0.0,
        kind=kind,
        prompts=prompts,
        trace=trace,
    )
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        content.insert(0, {"type": "image", "image": str(image)})
    messages = [{"role": "user", "content": content}]
    tokenizer = getattr(processor, "tokenizer", processor)
    out = red.generate(
        messages,
        rationale=rationale,
        max_new_tokens=max_new_tokens,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    if out.rationale is not None:
        # A model's text is no markup: scene graphs are full of brackets.
        notes.print(f"rationale: {out.rationale}", style="dim", markup=False, emoji=False)
    if trace:
        Console().print(out.trace.table())


def _number(weight: str) -> float | str:
    """The weight as a number, or as it is: a budget, or something that RED refuses by name."""
    try:
        return float(weight)
    except ValueError:
        return weight


def load(name: str) -> tuple[Any, Any, Any]:
    """Model, processor and prompts (None for the default ones) by folder, hub name or "demo"."""
    if name == "demo":
        from infer_kit import demo

        model, processor = demo.load()
        return model, processor, demo.PROMPTS
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InferKitError(
            f"No model at {name!r}: {error}",
            hint="Give a folder with config.json, a hub name, or 'demo'.",
        ) from error
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        model = transformers.AutoModelForImageTextToText.from_pretrained(name)
        processor = load_processor(name)
    else:
        model = AutoModelForCausalLM.from_pretrained(name)
        processor = AutoTokenizer.from_pretrained(name)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor, None
