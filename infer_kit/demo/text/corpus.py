"""The texts that the two models are trained and measured on, made from a seed.

Nothing of it is stored. Texts for training and held-out texts are disjoint by construction: a
checksum of the text decides to which side it belongs (`Text.is_held_out`), whatever the seed.

A document is one of two things:

* plain: one or two texts, some with a title, some with questions and answers below;
* a chat: questions about a text in the first turn, or about what is known without a text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from infer_kit.demo.text import animals, errands
from infer_kit.demo.text.tale import QA, Text

DOMAINS: tuple[str, ...] = (errands.DOMAIN, animals.DOMAIN)
CHAT_SHARE = 0.35
TITLE_SHARE = 0.25
SECOND_SHARE = 0.25
ASKED_SHARE = 0.3
FACTS_SHARE = 0.5

_WRITERS = {errands.DOMAIN: errands.write, animals.DOMAIN: animals.write}

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Document:
    """Something to learn from: plain text, or the messages of a chat."""

    plain: str = ""
    chat: Messages | None = None


def text(domain: str, rng: random.Random, held_out: bool = False) -> Text:
    """A text of the training side, or of the held-out side."""
    while True:
        made = _WRITERS[domain](rng)
        if made.is_held_out == held_out:
            return made


def held_out(n: int, domain: str, seed: int = 0) -> list[Text]:
    """`n` held-out texts of a domain, for evaluation."""
    rng = random.Random(f"held out {domain} {seed}")
    return [text(domain, rng, held_out=True) for _ in range(n)]


def plain_question(body: str, question: str) -> str:
    """A text with a question below, up to where the answer begins (with a space)."""
    return f"{body}\nQuestion: {question}\nAnswer:" if body else f"Question: {question}\nAnswer:"


def chat_question(body: str, question: str) -> Messages:
    """The same as a chat of one turn."""
    return [{"role": "user", "content": f"{body}\n{question}" if body else question}]


def document(rng: random.Random, errands_share: float) -> Document:
    """A document of training texts.

    Args:
        errands_share: how many of the texts are errands; the others are of animals.
    """

    def draw() -> Text:
        return text(DOMAINS[rng.random() >= errands_share], rng)

    made = draw()
    if rng.random() < CHAT_SHARE:
        return Document(chat=_chat(rng, made))
    parts = [made]
    if rng.random() < SECOND_SHARE:
        parts.append(draw())
    written = [
        f"{part.title}\n\n{part.body}" if rng.random() < TITLE_SHARE else part.body
        for part in parts
    ]
    if rng.random() < ASKED_SHARE:
        for question, answer in _some(rng, parts[-1].questions or parts[-1].facts):
            written[-1] = f"{plain_question(written[-1], question)} {answer}"
    return Document(plain="\n\n".join(written))


def _chat(rng: random.Random, about: Text) -> Messages:
    alone = about.facts and rng.random() < FACTS_SHARE
    messages: Messages = []
    for question, answer in _some(rng, about.facts if alone else about.questions or about.facts):
        body = "" if alone or messages else about.body
        messages += chat_question(body, question)
        messages.append({"role": "assistant", "content": answer})
    return messages


def _some(rng: random.Random, questions: tuple[QA, ...]) -> list[QA]:
    return rng.sample(questions, rng.randint(1, len(questions)))
