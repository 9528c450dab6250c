"""The teaching model's answers, one way of decoding beside the other, by the library itself."""

from collections.abc import Callable, Sequence
from typing import Any

from infer_kit.demo import PROMPTS
from infer_kit.demo.scenes import KINDS, Record
from infer_kit.methods.red import RED

WAYS = ("direct", "cot", "rationale_only", "red", "red_shuffled")
"""Image alone; image and rationale in one context; rationale alone; RED; RED with the rationale of
the next question of the same kind."""

ANSWER: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


def chat_of(record: Record) -> list[dict[str, Any]]:
    """The question with its picture, as a user would ask it."""
    content = [{"type": "image", "image": record.picture}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": record.question}]}]


def cot_chat(record: Record, rationale: str) -> list[dict[str, Any]]:
    """Chain of thought: picture, rationale and question in one context."""
    text = PROMPTS.fill("rationale_context", record.question, rationale)
    content = [{"type": "image", "image": record.picture}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def answers(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    weight: float,
    ways: Sequence[str] = WAYS,
    progress: Callable[[str], None] = lambda way: None,
) -> dict[str, list[str]]:
    """Every record answered in every way, greedily.

    Args:
        weight: RED's λ.
        progress: called with the name of each way before it starts.

    Returns:
        Way to one answer a record.
    """
    chats = [chat_of(record) for record in records]
    red = RED(model, processor, weight=weight, prompts=PROMPTS, trace=False)
    alone = RED(model, processor, weight=1.0, image_weight=0.0, prompts=PROMPTS, trace=False)
    direct = RED(model, processor, weight=0.0, prompts=PROMPTS, trace=False)
    progress("rationales")
    own = red.rationales(chats)
    shuffled = stranger_rationales(records, own)
    run: dict[str, Callable[[], Any]] = {
        "direct": lambda: direct.generate(chats, **ANSWER),
        "cot": lambda: direct.generate(
            [cot_chat(record, text) for record, text in zip(records, own, strict=True)], **ANSWER
        ),
        "rationale_only": lambda: alone.generate(chats, rationale=own, **ANSWER),
        "red": lambda: red.generate(chats, rationale=own, **ANSWER),
        "red_shuffled": lambda: red.generate(chats, rationale=shuffled, **ANSWER),
    }
    out = {}
    for way in ways:
        progress(way)
        out[way] = [text.strip() for text in run[way]().text]
    return out


def stranger_rationales(records: Sequence[Record], own: Sequence[str]) -> list[str]:
    """For each record, the rationale of the next record of its kind, about another picture."""
    by_kind = {kind: [i for i, r in enumerate(records) if r.kind == kind] for kind in KINDS}
    shuffled = list(own)
    for places in by_kind.values():
        for here, there in zip(places, [*places[1:], *places[:1]], strict=True):
            shuffled[here] = own[there]
    return shuffled


def accuracy(records: Sequence[Record], given: Sequence[str]) -> dict[str, float]:
    """Share of right answers: "all", and of each kind of question."""
    right = [answer == record.answer for record, answer in zip(records, given, strict=True)]
    shares = {"all": sum(right) / len(right)}
    for kind in KINDS:
        of_kind = [ok for ok, record in zip(right, records, strict=True) if record.kind == kind]
        if of_kind:
            shares[kind] = sum(of_kind) / len(of_kind)
    return shares
