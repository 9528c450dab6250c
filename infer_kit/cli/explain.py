"""`infer-kit explain`: one answer as a page that shows which stream moved each token."""

from pathlib import Path
from typing import Annotated, Any

import typer

from infer_kit.cli.eval import method_options, quiet
from infer_kit.errors import InferKitError


def explain(
    model: Annotated[
        str, typer.Argument(help="A model folder or hub name; demo, demo-icl, … are bundled.")
    ],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    out: Annotated[Path, typer.Option(help="The page to write.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture file; repeatable, in order.")
    ] = None,
    method: Annotated[str, typer.Option(help="red, vcd, icd, cfg, parallel_icl, ….")] = "red",
    weight: Annotated[
        str | None, typer.Option(help="The method's one knob (λ, α, γ, β), or kl:<nats>.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the method; repeatable.")
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with", help="key=value beside the question: rationale=…, context=…; repeatable."
        ),
    ] = None,
    demonstrations: Annotated[
        Path | None, typer.Option(help="A JSONL file of answered samples, for parallel_icl.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of the answer.")] = 64,
    candidates: Annotated[
        int, typer.Option(help="How many of each stream's best tokens are kept.")
    ] = 10,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that is no page of this kind.")
    ] = False,
) -> None:
    """Answer one question and write a page: what each stream read and did to each token.

    The page is one file that asks for nothing else. Its slider shows what other weights would have
    chosen. A page of an earlier call is overwritten.
    """
    from infer_kit.explanation.page import check_target
    from infer_kit.methods.named import build, canonical, checked_options, parse_options
    from infer_kit.trace import checked_depth

    # all that can be wrong is said before the model is loaded
    if not question.strip():
        raise InferKitError("The question is empty.")
    checked_depth(candidates)
    check_target(out, force)
    for picture in image or []:
        if not picture.is_file():
            raise InferKitError(f"There is no picture {str(picture)!r}.")
    name = canonical(method)
    options = method_options(method, weight, set_ or [])
    checked_options(name, options)
    inputs = _inputs(name, parse_options(with_ or [], "--with"))
    shots = _shots(name, demonstrations)

    from infer_kit.explanation import explain as explained
    from infer_kit.named_models import load_model

    quiet()
    loaded = load_model(model)
    recipe = build(name, loaded.model, loaded.processor, options, prompts=loaded.prompts)
    if shots is not None:
        recipe.fit(shots)  # type: ignore[attr-defined]
    content: list[dict[str, Any]] = [{"type": "image", "image": str(p)} for p in image or []]
    content.append({"type": "text", "text": question})
    chat = [{"role": "user", "content": content}]
    page = explained(recipe, chat, candidates, max_new_tokens=max_new_tokens, **inputs)
    page.save(out, force)
    print(page.text)
    typer.echo(f"written to {out}", err=True)


def _inputs(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the method takes beside the question."""
    import inspect

    from infer_kit.methods.named import class_of, did_you_mean

    known = [
        n
        for n in inspect.signature(class_of(name).groups).parameters
        if n not in ("self", "chats", "memory", "weight", "features")
    ]
    for key in given:
        if key not in known:
            raise InferKitError(
                f"The method {name!r} takes no {key!r} beside the question."
                + (did_you_mean(key, known) if known else "")
            )
    return {key: str(value) for key, value in given.items()}


def _shots(name: str, file: Path | None) -> list[Any] | None:
    """The demonstrations of Parallel-ICL."""
    if (file is None) == (name == "parallel_icl"):
        raise InferKitError(
            "Parallel-ICL needs demonstrations."
            if file is None
            else f"The method {name!r} takes no demonstrations: only parallel_icl does.",
            hint="Give --demonstrations FILE.jsonl, answered samples." if file is None else None,
        )
    if file is None:
        return None
    from infer_kit.evaluation.few_shot import shot_of
    from infer_kit.evaluation.samples import read_samples

    return [shot_of(sample).turns() for sample in read_samples(file)]
