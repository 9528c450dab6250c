r"""The laws of the engine as assertions, for this project's tests and for yours.

Each function takes models and rows (what a processor returns for one unpadded prompt), runs both
sides of a law, and raises `AssertionError` with what was found. Keyword arguments are handed to
`generate`. Run them on your own model before you rely on it:

    >>> from infer_kit.testing import assert_zero_law, assert_batch_law
    >>> assert_zero_law(model, [row, other_row])
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.concepts.certificate import Problem, duality_gap, kkt_violation
from infer_kit.engine.context_prefix import prompt_length
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.vocab.language_models import language_model
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.reducer import CertifiedReducer
from infer_kit.vocab.reduction import Mode, Reduction
from infer_kit.vocab.vocabulary import Vocabulary

Row = Mapping[str, Any]
_OUTPUT = {"return_dict_in_generate": True, "output_logits": True}


def assert_zero_law(
    model: PreTrainedModel,
    streams: Sequence[Row],
    tolerance: float = 0.0,
    engine: str = "fused",
    **generate_kwargs: Any,
) -> None:
    r"""$w = (1, 0, \dots, 0)$: tokens and logits are those of `model.generate()`.

    Args:
        streams: the rows of one request; the first is compared with plain `generate`.
        tolerance: largest difference of a logit; 0 is bitwise.
        engine: the engine that must have run.
    """
    options = {"max_new_tokens": 8, "do_sample": False} | generate_kwargs | _OUTPUT
    lm = CoupledLM([model] * len(streams))
    ours = _seeded(
        lambda: lm.generate([list(streams)], weights=[1.0] + [0.0] * (len(streams) - 1), **options)
    )
    plain = _seeded(lambda: model.generate(**streams[0], **options))
    _assert_engine(ours, engine)
    _assert_same_tokens(ours.sequences, plain.sequences, "w = (1, 0, …)", "model.generate()")
    for step, (a, b) in enumerate(zip(ours.logits, plain.logits, strict=True)):
        _assert_close(a, b.float(), tolerance, f"logits of step {step}")


def assert_limit_law(
    model: PreTrainedModel, streams: Sequence[Row], engine: str = "fused", **generate_kwargs: Any
) -> None:
    r"""$w = (0, \dots, 0, 1)$: the new tokens are those of the last stream alone."""
    options = {"max_new_tokens": 8, "do_sample": False} | generate_kwargs
    options["return_dict_in_generate"] = True
    lm = CoupledLM([model] * len(streams))
    ours = _seeded(
        lambda: lm.generate([list(streams)], weights=[0.0] * (len(streams) - 1) + [1.0], **options)
    )
    plain = _seeded(lambda: model.generate(**streams[-1], **options))
    _assert_engine(ours, engine)
    _assert_same_tokens(
        _new(ours.sequences, streams[0]), _new(plain.sequences, streams[-1]), "w = (0, …, 1)",
        "the last stream's generate()",
    )  # fmt: skip


def assert_copy_law(
    model: PreTrainedModel,
    row: Row,
    streams: int = 2,
    pool: str = "product",
    engine: str = "fused",
    **generate_kwargs: Any,
) -> None:
    r"""K equal streams with $\sum_k w_k = 1$ are one stream, sampling with a seed included."""
    options = {"max_new_tokens": 8, "do_sample": False} | generate_kwargs
    options["return_dict_in_generate"] = True
    lm = CoupledLM([model] * streams, pool=pool, weights=[1 / streams] * streams)
    ours = _seeded(lambda: lm.generate([[row] * streams], **options))
    plain = _seeded(lambda: model.generate(**row, **options))
    _assert_engine(ours, engine)
    _assert_same_tokens(ours.sequences, plain.sequences, f"{streams} copies", "one stream")


def assert_order_law(
    model: PreTrainedModel,
    streams: Sequence[Row],
    weights: Sequence[float],
    pool: str = "product",
    tolerance: float = 1e-5,
    **generate_kwargs: Any,
) -> None:
    r"""Permuting streams and weights together changes nothing: the pool is a sum."""
    options = {"max_new_tokens": 8, "do_sample": False} | generate_kwargs | _OUTPUT
    count = len(streams)
    forward = CoupledLM([model] * count, pool=pool, primary=0).generate(
        [list(streams)], weights=list(weights), **options
    )
    backward = CoupledLM([model] * count, pool=pool, primary=count - 1).generate(
        [list(streams)[::-1]], weights=list(weights)[::-1], **options
    )
    _assert_same_tokens(forward.sequences, backward.sequences, "streams in order", "reversed")
    for step, (a, b) in enumerate(zip(forward.logits, backward.logits, strict=True)):
        _assert_close(a, b, tolerance, f"logits of step {step}")


def assert_batch_law(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    rows: Sequence[Sequence[Row | None]],
    weights: Sequence[Sequence[float]] | None = None,
    pool: str = "product",
    tolerance: float = 1e-5,
    engine: str = "fused",
    **generate_kwargs: Any,
) -> None:
    r"""Q requests together = Q requests alone: ragged lengths, ragged K, images or none.

    Args:
        weights: `[Q][K]`, or None.
        tolerance: on the log-probability of each token.
    """
    options = {"max_new_tokens": 8, "do_sample": False} | generate_kwargs
    options |= {"return_dict_in_generate": True}
    lm = CoupledLM(models, pool=pool)
    together = lm.generate(rows, weights=weights, trace=True, **options)
    _assert_engine(together, engine)
    per_request = len(together.sequences) // len(rows)
    longest = max(_length(row[0]) for row in rows if row[0] is not None)
    for b, row in enumerate(rows):
        alone = lm.generate(
            [row], weights=None if weights is None else [weights[b]], trace=True, **options
        )
        for i in range(per_request):
            mine = _answer(together.sequences[b * per_request + i, longest:], lm)
            theirs = _answer(alone.sequences[i, _length(row[0]) :], lm)
            if mine != theirs:
                raise AssertionError(f"Request {b}: together {mine}, alone {theirs}.")
            a = together.statistics.pooled[b * per_request + i, : len(mine)]
            _assert_close(a, alone.statistics.pooled[i, : len(mine)], tolerance, f"request {b}")


def assert_pool_law(
    logprobs: Tensor,
    weights: Tensor,
    pooled: Tensor,
    pool: str = "product",
    tolerance: float = 1e-6,
) -> None:
    r"""Pooled probabilities are $\prod_k p_k^{w_k} / Z$ or $\sum_k w_k p_k$, in float64.

    Args:
        logprobs: `[K, V]` of the streams at one position. weights: `[K]`.
        pooled: `[V]` scores, any additive constant.
    """
    p = logprobs.double().exp()
    w = weights.double()
    if pool == "product":
        powers = torch.stack(
            [torch.where(p_k == 0, 0.0, p_k**w_k) for p_k, w_k in zip(p, w, strict=True) if w_k]
        )
        expected = powers.prod(0)
        expected = expected / expected.sum()
    else:
        expected = (w[:, None] * p).sum(0)
    _assert_close(pooled.double().softmax(-1), expected, tolerance, f"pooled probabilities, {pool}")


def assert_chain_law(
    lm: CoupledLM, rows: Sequence[Sequence[Row]], tokens: Tensor, tolerance: float = 1e-5
) -> None:
    r"""$\log \pi(y_{1..n}) = \log \pi(y_{1..m}) + \log \pi(y_{m+1..n} \mid y_{1..m})$.

    The second part reads contexts into which the first part was written.

    Args:
        tokens: `[n]` a continuation of the first request, n ≥ 2.
    """
    m = len(tokens) // 2
    whole = lm.score(rows, [tokens]).pooled[0]
    first = lm.score(rows, [tokens[:m]]).pooled[0]
    grown = [
        [extended_row(lm.model_of(k), row, tokens[:m]) for k, row in enumerate(request)]
        for request in rows
    ]
    second = lm.score(grown, [tokens[m:]]).pooled[0]
    _assert_close(torch.cat([first, second]), whole, tolerance, "chain of log-probabilities")


def assert_image_law(
    model: PreTrainedModel, tower: torch.nn.Module, run: Any, distinct_images: int
) -> None:
    """The vision tower runs once for each distinct set of images, never zero times.

    Args:
        tower: the vision encoder module inside `model`.
        run: called without arguments; everything that looks at the images.
        distinct_images: how many passes there must be.
    """
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = tower.register_forward_hook(count)
    try:
        run()
    finally:
        handle.remove()
    if calls != distinct_images:
        raise AssertionError(
            f"{type(model).__name__}: the vision tower ran {calls} times for {distinct_images} "
            "distinct images."
        )


def assert_image_matters(
    model: PreTrainedModel, row: Row, other: Row, minimum: float = 1e-2
) -> None:
    """Another image changes the next-token logits: the picture is really read.

    Args:
        row, other: rows that differ in their pixels only.
        minimum: least difference of some logit.
    """
    with torch.no_grad():
        a, b = (model(**r).logits[0, -1].float() for r in (row, other))
    if not (a - b).abs().max() > minimum:
        raise AssertionError(
            f"{type(model).__name__}: another image moves the logits by only "
            f"{(a - b).abs().max():.2e}."
        )


def _seeded(call: Any) -> Any:
    torch.manual_seed(0)
    return call()


def _length(row: Row | None) -> int:
    assert row is not None
    return prompt_length(row)


def _new(sequences: Tensor, row: Row) -> Tensor:
    return sequences[:, _length(row) :]


def extended_row(model: PreTrainedModel, row: Row, tokens: Tensor) -> dict[str, Any]:
    """The row as its processor would give it, had text tokens been part of the prompt.

    Args:
        tokens: `[n]`, written after the prompt.
    """
    new = tokens[None].to(row["input_ids"])
    # PaliGemma's prompt (type 0) is read both ways, its continuation (type 1) is causal; elsewhere
    # type 0 is text.
    written = 1 if model.config.model_type == "paligemma" else 0
    fills = {"attention_mask": 1, "token_type_ids": written, "mm_token_type_ids": 0}
    grown = {key: value for key, value in row.items() if key != "labels"}
    grown["input_ids"] = torch.cat([row["input_ids"], new], dim=1)
    for key, fill in fills.items():
        if row.get(key) is not None:
            grown[key] = torch.cat([row[key], torch.full_like(new, fill).to(row[key])], dim=1)
    if row.get("cross_attention_mask") is not None:  # new tokens see what the last token sees
        mask = row["cross_attention_mask"]
        grown["cross_attention_mask"] = torch.cat(
            [mask, mask[:, -1:].repeat(1, new.shape[1], 1, 1)], dim=1
        )
    return grown


def assert_backend_law(one: Any, other: Any, messages: Any, **generate_kwargs: Any) -> None:
    r"""The same method on two backends writes the same tokens, greedily, in float32.

    $\arg\max_y \sum_k w_k \log p_k(y)$ does not depend on what computes it, up to ties.

    Args:
        one, other: the method on each backend: `RED(model, processor)`, `RED(llm, processor)`.
        messages: a chat or a list of chats.
        **generate_kwargs: of both calls of `generate`.
    """
    answers = [method.generate(messages, **generate_kwargs) for method in (one, other)]
    left, right = (answer.sequences for answer in answers)
    assert left.shape == right.shape and bool((left.cpu() == right.cpu()).all()), (
        f"{type(one).__name__} on {answers[0].engines} wrote {answers[0].text!r}, on "
        f"{answers[1].engines} {answers[1].text!r}."
    )


def assert_lossless_law(
    model: PreTrainedModel, tokenizer: Any, text: bytes, tolerance: float = 1e-10
) -> None:
    r"""$P_S(y\,END) = \sum_{x: b(x) = y} P(x)\,p(END|x)$: no text gains or loses probability.

    The right side is the sum over every way to cut the text into tokens, each read by a forward of
    its own, the special tokens left out of the law as on the left side.

    Args:
        model: in float64, to reach the default tolerance.
        text: short: the ways to cut it grow with 2 to its length.
        tolerance: relative.
    """
    reduction = Reduction(Vocabulary.from_hf(tokenizer, model), mode="full")
    vocabulary = reduction.vocabulary

    kept = [*map(int, vocabulary.text_ids), *vocabulary.end_ids]

    def law(ids: list[int]) -> dict[int, float]:
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=model.device)).logits[0, -1].double()
        return dict(zip(kept, logits[kept].softmax(0).tolist(), strict=True))

    def ways(ids: list[int], rest: bytes, mass: float) -> float:
        masses = law(ids)
        if not rest:
            return mass * math.fsum(masses[id] for id in vocabulary.end_ids)
        spelt = {id: vocabulary.tokens[id] or b"" for id in masses}
        return math.fsum(
            ways([*ids, id], rest[len(text) :], mass * masses[id])
            for id, text in spelt.items()
            if text and rest.startswith(text)
        )

    start = list(vocabulary.empty_ids)
    expected = math.log(ways(start, text, 1.0))
    reader = Reader(reduction, language_model(model), prefetch=None)
    reducer = CertifiedReducer(reduction, eps=0.0)
    reducer.open(reader.begin([start])[0])
    for byte in text:
        reader.run([reducer.advance(byte)], [reducer])
    found = reducer.logprob_end()[0]
    if not abs(math.expm1(found - expected)) <= tolerance:
        raise AssertionError(f"{text!r}: log P is {found}, the sum over its tokens {expected}.")


def assert_certificate_law(
    model: PreTrainedModel, tokenizer: Any, text: str, eps: float = 1e-3, mode: Mode = "late"
) -> None:
    r"""$TV(p(\cdot|y), q(\cdot|y)) \le$ `tv_bound` $\le$ `eps` at every byte of a text.

    And the log-probability of every beginning lies between its bounds. The exact side has `eps` 0.
    """
    reduction = Reduction(Vocabulary.from_hf(tokenizer, model), mode=mode)
    vocabulary = reduction.vocabulary
    exact, pruned = CertifiedReducer(reduction, 0.0), CertifiedReducer(reduction, eps)
    readers = [Reader(reduction, language_model(model), prefetch=None) for _ in range(2)]
    for reducer, reader in zip((exact, pruned), readers, strict=True):
        reducer.open(reader.begin([list(vocabulary.empty_ids)])[0])
    for place, byte in enumerate(vocabulary.prefix + text.encode()):
        for reducer, reader in zip((exact, pruned), readers, strict=True):
            reader.run([reducer.advance(byte)], [reducer])
        apart = float(abs(exact.next() - pruned.next()).sum()) / 2
        (low, high), true = pruned.logprob(), exact.logprob()[0]
        slack = 1e-12 if model.dtype == torch.float64 else 1e-5
        if not apart <= pruned.tv_bound + slack or not pruned.tv_bound <= eps + slack:
            raise AssertionError(
                f"Byte {place}: the laws are {apart:.3g} apart, the bound is "
                f"{pruned.tv_bound:.3g}, eps {eps:g}."
            )
        if not low - slack <= true <= high + slack:
            raise AssertionError(f"Byte {place}: log P {true} is not in [{low}, {high}].")


def assert_sparse_code_law(
    F: Tensor, v: Tensor, w: Tensor, lam: float, positive: bool = False, tol: float = 1e-9
) -> None:
    r"""w minimises $\tfrac12|v - F^\top w|^2 + \lambda|w|_1$.

    Its duality gap is at most tol·|v|²; on the support $F_j r = \lambda\,\mathrm{sign}\,w_j$, and
    elsewhere $|F_j r| \le \lambda$, within 1e-6·λ. For codes of a solver
    of your own: F `[K, d]`, v `[d]`, w `[K]`.
    """
    one = torch.tensor([lam], dtype=torch.float64)
    problem = Problem(F.double()[None], v.double()[None], one, positive)
    gap = float(duality_gap(problem, w.double()[None]))
    if not gap <= tol * float(v.double() @ v.double()):
        raise AssertionError(f"The duality gap is {gap:.3g}, wanted {tol:g}·|v|².")
    off = float(kkt_violation(problem, w.double()[None]))
    if not off <= 1e-6 * lam:
        raise AssertionError(f"The optimality conditions are {off:.3g} off, at λ {lam:g}.")


def _answer(sequence: Tensor, lm: CoupledLM) -> list[int]:
    """New ids up to the first end token, or less the padding at the end."""
    eos, pad = lm.generation_config.eos_token_id, lm.generation_config.pad_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    ids = sequence.tolist()
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    while ids and ids[-1] == pad:
        ids.pop()
    return ids


def _assert_engine(output: Any, engine: str) -> None:
    ran = set(output.engines)
    if ran != {engine}:
        raise AssertionError(f"Expected the {engine} engine, but {sorted(ran)} ran.")


def _assert_same_tokens(a: Tensor, b: Tensor, left: str, right: str) -> None:
    if a.shape != b.shape or not torch.equal(a, b.to(a)):
        raise AssertionError(f"{left} gave {a.tolist()}, {right} gave {b.tolist()}.")


def _assert_close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    difference = (a - b.to(a)).abs()
    difference = difference[~(torch.isneginf(a) & torch.isneginf(b.to(a)))]
    worst = float(difference.max()) if difference.numel() else 0.0
    if not worst <= tolerance:
        raise AssertionError(f"{what}: they differ by {worst:.3g}, more than {tolerance:g}.")
