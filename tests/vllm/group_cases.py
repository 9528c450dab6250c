"""Random groups, the requests that they are, and what a plain loop without a cache answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.vllm.description import KEY, Member, PoolRule

VOCAB = 160
BLOCK = 32
NEW = 16
EOS = 2
TIE = 2e-4
"""Where the two best tokens are nearer than this, rounding decides between them."""


@dataclass(frozen=True)
class Case:
    """A group, or a plain request (one prompt, no weights).

    Attributes:
        prompts: of the streams, the leader's first. weights: theirs.
        mode: of the pool. plausibility: its cut-off. expert: the stream that says what is.
        external: whether the group is made of several requests.
        full: whether log-probabilities of the whole vocabulary are asked for.
        new: tokens to draw.
    """

    prompts: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] = ()
    mode: str = "product"
    plausibility: float = 0.0
    expert: int = 0
    external: bool = False
    full: bool = False
    new: int = NEW

    @property
    def rule(self) -> PoolRule:
        return PoolRule(self.mode, self.plausibility, (self.expert,))


@dataclass(frozen=True)
class Expected:
    """Of a case: its tokens, `[T, V]` log-probabilities, and how near the two best ever are."""

    tokens: list[int]
    logprobs: Tensor
    gap: float


def random_cases(count: int, seed: int = 0, longest: int = 90) -> list[Case]:
    """Groups of 1 to 4 streams, every third request plain."""
    rng = random.Random(seed)

    def prompt(least: int = 1) -> tuple[int, ...]:
        return tuple(rng.randrange(4, 150) for _ in range(rng.randrange(least, longest + 1)))

    cases = []
    for number in range(count):
        full = number % 7 == 0
        if number % 3 == 2:
            cases.append(Case((prompt(),), full=full))
            continue
        size = rng.choice((1, 2, 2, 3, 4))
        prompts = [prompt() for _ in range(size)]
        if number % 5 == 0:
            prompts[-1] = prompts[-1][:1]
        if number % 10 == 1:
            prompts = [p[:1] for p in prompts]
        mode = rng.choice(("product", "product", "mixture"))
        if mode == "mixture":
            weights = [rng.random() for _ in prompts]
        else:
            weights = [rng.uniform(0.5, 1.5), *(rng.uniform(-0.8, 1.2) for _ in prompts[1:])]
        cutoff = 0.3 if number % 4 == 0 else 0.0
        expert, external = rng.randrange(size), number % 2 == 1
        cases.append(Case(tuple(prompts), tuple(weights), mode, cutoff, expert, external, full))
    return cases


def pooled(case: Case, logprobs: Tensor) -> Tensor:
    """`[V]` normalised, of `[K, V]` float64: the formula as it stands."""
    if not case.weights:
        return logprobs[0]
    if case.mode == "product":
        scores = torch.zeros(logprobs.shape[1], dtype=torch.float64)
        for weight, row in zip(case.weights, logprobs, strict=True):
            scores += weight * row
    else:
        scores = sum(w * row.exp() for w, row in zip(case.weights, logprobs, strict=True)).log()
    if case.plausibility:
        expert = logprobs[case.expert]
        scores[expert < expert.max() + math.log(case.plausibility)] = -math.inf
    return scores - scores.logsumexp(0)


@torch.no_grad()
def expected(model: PreTrainedModel, case: Case) -> Expected:
    """Greedy, each stream's whole text read anew for every token. The model is float64."""
    texts = [list(p) for p in case.prompts]
    tokens, rows, gap = [], [], math.inf
    for _ in range(case.new):
        every = [model(torch.tensor([t]), use_cache=False).logits[0, -1] for t in texts]
        row = pooled(case, torch.stack(every).log_softmax(-1))
        best = row.topk(2).values
        gap = min(gap, float(best[0] - best[1]))
        token = int(row.argmax())
        tokens.append(token)
        rows.append(row)
        if token == EOS:
            break
        for text in texts:
            text.append(token)
    return Expected(tokens, torch.stack(rows), gap)


def requests_of(case: Case, name: str, **options: Any) -> list[tuple[dict[str, Any], Any]]:
    """Prompts and sampling parameters, the leader's first."""
    from vllm import SamplingParams

    settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": case.new, "detokenize": False}
    settings |= {"stop_token_ids": [EOS], "logprobs": VOCAB if case.full else 0} | options
    prompts = [{"prompt_token_ids": list(p)} for p in case.prompts]
    if not case.weights:
        return [(prompts[0], SamplingParams(**settings))]
    if not case.external and len(prompts) > 1:
        others = [
            {"prompt_token_ids": list(p), "weight": w}
            for p, w in zip(case.prompts[1:], case.weights[1:], strict=True)
        ]
        value = {"weight": case.weights[0], "members": others, **case.rule.to_dict()}
        return [(prompts[0], SamplingParams(**settings, extra_args={KEY: value}))]
    made = []
    for k, (prompt, weight) in enumerate(zip(prompts, case.weights, strict=True)):
        info = Member(name, len(prompts), k, weight, case.rule if k == 0 else None)
        own = settings if k == 0 else {"temperature": 0.0, "max_tokens": case.new + k}
        own = own | {"ignore_eos": k > 0, "detokenize": settings["detokenize"]}
        made.append((prompt, SamplingParams(**own, extra_args={KEY: info.to_dict()})))
    return made


def answers(llm: Any, cases: Sequence[Case], **options: Any) -> list[list[dict[str, Any]]]:
    """Of each case and request: tokens, finish reason, log-probabilities by token and step."""
    every = [requests_of(case, f"group-{n}", **options) for n, case in enumerate(cases)]
    flat = [request for requests in every for request in requests]
    prompts, params = [p for p, _ in flat], [s for _, s in flat]
    made = iter(llm.generate(prompts, params, use_tqdm=False))
    out = []
    for requests in every:
        group = []
        for _ in requests:
            output = next(made)
            completion = output.outputs[0]
            steps = completion.logprobs or []
            group.append(
                {
                    "tokens": list(completion.token_ids),
                    "reason": completion.finish_reason,
                    "cached": output.num_cached_tokens,
                    "logprobs": [{t: e.logprob for t, e in step.items()} for step in steps],
                }
            )
        out.append(group)
    return out


def compare(case: Case, want: Expected, got: Sequence[dict[str, Any]]) -> str | None:
    """What is wrong with an answer, "tie" where rounding may decide, or None."""
    leader = got[0]
    if leader["tokens"] != want.tokens:
        if want.gap < TIE:
            return "tie"
        return f"{leader['reason']}: {leader['tokens']}, expected {want.tokens}"
    for other in got[1:]:
        if other["tokens"] != leader["tokens"]:
            return f"a follower drew {other['tokens']}, its leader {leader['tokens']}"
    if leader["reason"] != ("stop" if want.tokens[-1] == EOS else "length"):
        return f"finish reason {leader['reason']}"
    for place, step in enumerate(leader["logprobs"]):
        row = want.logprobs[place]
        if case.full and len(step) != VOCAB:
            return f"{len(step)} log-probabilities"
        for token, value in step.items():
            other = float(row[int(token)])
            if value != other and not abs(value - other) < 1e-4:
                return f"log-probability {value} of token {token}, expected {other}"
    return None
