"""The texts that methods put around a user's question. All are replaceable."""

from dataclasses import dataclass, replace

from infer_kit.errors import InferKitError


@dataclass(frozen=True)
class Prompts:
    """The three prompts of rationale-enhanced decoding.

    `{question}` stands for the text of the user's last turn and must be in all three, once;
    `{rationale}` must be in `rationale_context`, and only there. Everything else is taken
    literally, other braces too.

    An instruction on the form of the answer ("Answer with one word.") belongs into
    `image_context` and `rationale_context`, not into the question: there it would ask for a
    rationale of one word.

    Attributes:
        rationale_request: step 1, shown with the image.
        image_context: step 2, shown with the image, without the rationale.
        rationale_context: step 2, shown without the image.
    """

    rationale_request: str
    image_context: str = "{question}"
    rationale_context: str = (
        "Someone looked at an image and wrote these notes about it:\n{rationale}\n\n"
        "Answer the question from the notes.\n{question}"
    )

    def __post_init__(self) -> None:
        for name in ("rationale_request", "image_context", "rationale_context"):
            text = getattr(self, name)
            if not isinstance(text, str) or text.count("{question}") != 1:
                raise InferKitError(
                    f"Prompts.{name} must have the field {{question}} once: {text!r}."
                )
            if ("{rationale}" in text) != (name == "rationale_context"):
                verb = "lacks" if name == "rationale_context" else "must not have"
                raise InferKitError(f"Prompts.{name} {verb} the field {{rationale}}: {text!r}.")

    def with_instruction(self, instruction: str) -> "Prompts":
        """The same with an instruction on the form of the answer, on a line after the question.

        Not in the request for a rationale: there it would ask for a rationale of that form.
        """
        if not instruction:
            return self
        for field in ("{question}", "{rationale}"):
            if field in instruction:
                raise InferKitError(
                    f"The instruction {instruction!r} has {field}, which stands for something "
                    "else in prompts."
                )
        question = f"{{question}}\n{instruction}"
        return replace(
            self,
            image_context=self.image_context.replace("{question}", question),
            rationale_context=self.rationale_context.replace("{question}", question),
        )

    def around(self, name: str, rationale: str = "") -> tuple[str, str]:
        """What stands before and after the question in the prompt `name`.

        Braces in the rationale stay as they are.
        """
        head, tail = getattr(self, name).split("{question}")
        return head.replace("{rationale}", rationale), tail.replace("{rationale}", rationale)

    def fill(self, name: str, question: str, rationale: str = "") -> str:
        """The prompt `name` with its fields filled."""
        head, tail = self.around(name, rationale)
        return head + question + tail


COT = Prompts(
    rationale_request=(
        "{question}\n\nDo not answer yet. First describe, in a few sentences, the parts of the "
        "image that matter for this question, and reason from them towards the answer."
    )
)
"""Chain of thought: a short reasoned description."""

CCOT = Prompts(
    rationale_request=(
        "{question}\n\nDo not answer yet. Write a scene graph of the image as JSON with the keys "
        '"objects", "attributes" (of each object) and "relations" (between objects). Include only '
        "what bears on the question."
    ),
    rationale_context=(
        "This scene graph was made from an image:\n{rationale}\n\n"
        "Answer the question from the scene graph.\n{question}"
    ),
)
"""Compositional chain of thought: a scene graph."""

KINDS = {"cot": COT, "ccot": CCOT}
