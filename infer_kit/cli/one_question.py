"""What the verbs for one question share: a method by name, its inputs, and the chat."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from infer_kit.methods.recipe import Recipe
    from infer_kit.named_models import NamedModel

Model = Annotated[
    str, typer.Argument(help="A model folder or hub name; demo, demo-icl, … are bundled.")
]
Question = Annotated[str, typer.Argument(help="What to ask.")]
Images = Annotated[list[Path] | None, typer.Option(help="A picture file; repeatable, in order.")]
Method = Annotated[str, typer.Option(help="direct, cot, red, vcd, icd, cfg, parallel_icl, ….")]
Weight = Annotated[
    str | None, typer.Option(help="The method's one knob (λ, α, γ, β), or kl:<nats>.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the method; repeatable.")
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with", help="key=value beside the question: rationale=…, context=…; repeatable."
    ),
]
Demonstrations = Annotated[
    Path | None, typer.Option(help="A JSONL file of answered samples, for parallel_icl.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Of the answer.")]


@dataclass(frozen=True)
class Request:
    """A question for a method, checked, with no model loaded.

    Attributes:
        method: its canonical name. options: of its constructor. chat: the question with its
            pictures. inputs: of its `generate`. shots: demonstrations, or None.
    """

    method: str
    options: dict[str, Any]
    chat: list[dict[str, Any]]
    inputs: dict[str, Any]
    shots: list[Any] | None

    def recipe(self, loaded: "NamedModel", trace: bool | int) -> "Recipe":
        """The method on a model."""
        from infer_kit.methods.named import build

        made = build(
            self.method, loaded.model, loaded.processor, self.options, loaded.prompts, trace
        )
        if self.shots is not None:
            made.fit(self.shots)  # type: ignore[attr-defined]
        return made


def request_of(
    question: str,
    images: Sequence[Path] | None,
    method: str,
    weight: str | None,
    set_: list[str] | None,
    with_: list[str] | None,
    demonstrations: Path | None,
    max_new_tokens: int,
) -> Request:
    """What the options ask for.

    Raises:
        InferKitError: one cannot work; before the model is loaded.
    """
    from infer_kit.cli.eval import method_options
    from infer_kit.methods.named import canonical, checked_options, parse_options

    if not question.strip():
        raise InferKitError("The question is empty.")
    if max_new_tokens < 1:
        raise InferKitError(f"--max-new-tokens is a number from 1 on, got {max_new_tokens}.")
    for picture in images or []:
        if not picture.is_file():
            what = "is a folder" if picture.is_dir() else "is not there"
            raise InferKitError(f"The picture {str(picture)!r} {what}.")
    if method.lower() in ("ensemble", "reduced"):
        raise InferKitError(
            f"The method {method!r} pools bytes, and is not for this verb.",
            hint="infer-kit eval takes it; in Python, infer_kit.Ensemble.",
        )
    name = canonical(method)
    options = method_options(method, weight, set_ or [])
    checked_options(name, options)
    content: list[dict[str, Any]] = [{"type": "image", "image": str(p)} for p in images or []]
    content.append({"type": "text", "text": question})
    return Request(
        method=name,
        options=options,
        chat=[{"role": "user", "content": content}],
        inputs=_inputs(name, parse_options(with_ or [], "--with")),
        shots=_shots(name, demonstrations),
    )


def _inputs(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the method takes beside the question."""
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
