"""Given continuations read by all streams of a call, in one pass a stream.

Shape letters: R sequences, K streams, n positions, V tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infer_kit.engine.recording import Recorder
from infer_kit.engine.stream_cache import StreamCache


@dataclass(frozen=True)
class Forced:
    """Some positions of the continuations.

    Attributes:
        position: index of the first of them. logits: `[R, K, n, V]` before each token.
        chosen: `[R, n]` the tokens.
    """

    position: int
    logits: Tensor
    chosen: Tensor


def teacher_forced(cache: StreamCache, continuations: Tensor) -> Iterator[Forced]:
    """Prefill, then feed `continuations` `[R, N]`, R a multiple of the number of requests.

    In parts, since the logits of a long continuation over all streams are large.
    """
    logits = cache.prefill(len(continuations))
    done = 0
    while True:
        chosen = continuations[:, done : done + logits.shape[2]]
        yield Forced(done, logits, chosen)
        done += chosen.shape[1]
        if done == continuations.shape[1]:
            return
        end = min(done - 1 + Recorder.CHUNK, continuations.shape[1] - 1)
        logits = cache.step(continuations[:, done - 1 : end])


def candidate_scores(
    cache: StreamCache, candidates: Sequence[Sequence[Tensor]], tables: Tensor
) -> Tensor:
    r"""log π of fixed candidates under several sets of weights, from one pass.

    $\log \pi_w(c) = \sum_t \log \pi_w(c_t \mid c_{<t})$, normalised at every token.

    Args:
        cache: of a call whose streams all run, not yet prefilled.
        candidates: `candidates[b][c]`, token ids `[n]`.
        tables: `[W, B, K]` weights.

    Returns:
        `[W, B, C]` float32; −inf for places that a request with fewer candidates lacks.
    """
    requests, width = len(candidates), max(len(several) for several in candidates)
    device = cache.request.device
    longest = max(len(ids) for several in candidates for ids in several)
    tokens = torch.zeros(requests, width, longest, dtype=torch.long)
    lengths = torch.zeros(requests, width, dtype=torch.long)
    for b, several in enumerate(candidates):
        for c, ids in enumerate(several):
            tokens[b, c, : len(ids)], lengths[b, c] = ids, len(ids)
    tokens, lengths = tokens.flatten(0, 1).to(device), lengths.flatten().to(device)
    # Weights of any sign and of any size may come: guard against −inf.
    pooling = replace(cache.pooling, weights=None)
    totals = torch.zeros(len(tables), len(tokens), device=device)
    for part in teacher_forced(cache, tokens):
        there = part.position + torch.arange(part.chosen.shape[1], device=device)
        read = there < lengths[:, None]
        for w, table in enumerate(tables.to(device, torch.float32)):
            weights = table.index_select(0, cache.request)
            pooled = pooling(part.logits, weights, cache.request).log_softmax(-1)
            of_token = pooled.gather(-1, part.chosen[..., None]).squeeze(-1)
            totals[w] += torch.where(read, of_token, 0.0).sum(1)
    return totals.masked_fill(lengths == 0, -torch.inf).view(len(tables), requests, width)
