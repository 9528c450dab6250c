"""What the tests of Parallel-ICL share: demonstrations, prompts rendered whole, the slow pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.testing import extended_row
from tests.methods.conftest import chat, picture

Row = dict[str, Any]
Chat = list[dict[str, Any]]
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
LOGITS: dict[str, Any] = {"output_logits": True}
QUERY = chat("what is it?", picture(100))
QUERIES = [QUERY, chat("and which of the two?", picture(101), picture(102))]
PENALTY: dict[str, Any] = {"repetition_penalty": 1.3, "max_new_tokens": 10}
PARTS = [[0, 2], [1, 3, 6], [4, 5]]
WORDS = ("dax", "wug", "the fep", "blicket", "zorp", "in", "kiki and bouba", "toma", "gorp")


def demonstrations(count: int = 7, first: int = 0) -> list[dict[str, Any]]:
    """Pictures with made-up words, of unequal length."""
    return [
        {"image": picture(n), "question": "what is it?", "answer": WORDS[n % len(WORDS)]}
        for n in range(first, first + count)
    ]


def texts(count: int = 5) -> list[dict[str, Any]]:
    """Demonstrations without pictures."""
    return [{"question": f"say {word}", "answer": word[::-1]} for word in WORDS[:count]]


def turns(demonstration: dict[str, Any]) -> Chat:
    """A demonstration as a chat."""
    image = demonstration.get("image")
    answer = [{"type": "text", "text": demonstration["answer"]}]
    asked = chat(demonstration["question"], *([] if image is None else [image]))
    return [*asked, {"role": "assistant", "content": answer}]


def whole_row(processor: Any, demos: Sequence[dict[str, Any]], query: Chat) -> Row:
    """The processor's own rendering of demonstrations and query."""
    messages = [turn for demo in demos for turn in turns(demo)] + query
    return dict(
        processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=True,
        )
    )  # fmt: skip


def plain(model: PreTrainedModel, row: Row, **options: Any) -> Any:
    """`model.generate`, with its logits."""
    return model.generate(**row, **options, return_dict_in_generate=True, output_logits=True)


def step_logprobs(model: PreTrainedModel, row: Row, ids: Tensor) -> Tensor:
    """`[n, V]` float64 log-probabilities of every token of `ids` `[n]`, read whole, no cache."""
    grown = extended_row(model, row, ids[:-1])
    with torch.no_grad():
        logits = model(**grown, use_cache=False).logits[0, row["input_ids"].shape[1] - 1 :].double()
    return logits - logits.exp().sum(-1, keepdim=True).log()


def greedy_loop(
    model: PreTrainedModel, rows: Sequence[Row], formula: Callable[..., Tensor], tokens: int
) -> list[int]:
    """The plainest greedy search; `formula`: log-probabilities `[V]` of each row to scores."""
    suppressed, end = model.generation_config.suppress_tokens, model.generation_config.eos_token_id
    written: list[int] = []
    while len(written) < tokens and (not written or written[-1] != end):
        ids = torch.tensor([*written, 0])
        scores = formula(*(step_logprobs(model, row, ids)[-1] for row in rows))
        scores[suppressed] = -torch.inf
        written.append(int(scores.argmax()))
    return written


def assert_same(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """Tokens equal, logits close. Prompts may differ in length."""
    one, two = (out.output if hasattr(out, "output") else out for out in (a, b))
    n = len(one.logits)
    assert one.sequences[:, -n:].tolist() == two.sequences[:, -n:].tolist()
    for x, y in zip(one.logits, two.logits, strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=0)


def stream_logprobs(
    model: Any, processor: Any, parts: Any, ids: Tensor, query: Any = QUERY
) -> Tensor:
    """`[K, n, V]` float64 log-probabilities of each chunk, read whole."""
    rows = [whole_row(processor, [demonstrations()[n] for n in part], query) for part in parts]
    return torch.stack([step_logprobs(model, row, ids) for row in rows])
