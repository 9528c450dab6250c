"""Rows of a table of unit features that are close to others."""

import torch
from torch import Tensor
from tqdm import tqdm

from infer_kit.concepts.retrieval import CHUNK, topk

_NEIGHBOURS = 512  # of each class name, among which close phrases are looked for
_BLOCK = 2048
_LONG = 8  # blocks from which on there is a progress bar


@torch.no_grad()
def far_from(bank: Tensor, queries: Tensor, cosine: float) -> Tensor:
    """`[N]`: whether a row `[N, d]` has a smaller cosine to every query `[C, d]`.

    Only the 512 nearest rows of each query are looked at, as published.
    """
    values, rows = topk(queries, bank, min(_NEIGHBOURS, len(bank)))
    far = torch.ones(len(bank), dtype=torch.bool)
    far[rows[values >= cosine].cpu()] = False
    return far


@torch.no_grad()
def first_of_each(bank: Tensor, cosine: float) -> Tensor:
    """`[N]`: whether a row has a smaller cosine to every earlier row that stays.

    Quadratic in N, in blocks: 60,000 rows of 512 numbers took 43 s on a core, a million would take
    hours. On a GPU where the bank is on one.
    """
    kept = torch.zeros(len(bank), dtype=torch.bool)
    starts = range(0, len(bank), _BLOCK)
    for start in tqdm(starts, desc="near duplicates", disable=len(starts) < _LONG):
        block = bank[start : start + _BLOCK].float()
        fresh = torch.ones(len(block), dtype=torch.bool)
        for low in range(0, start, CHUNK):
            some = slice(low, min(low + CHUNK, start))
            earlier = bank[some][kept[some].to(bank.device)].float()
            if len(earlier):
                fresh &= ((block @ earlier.T).amax(1) < cosine).cpu()
        kept[start : start + _BLOCK] = fresh & _first(block[fresh.to(bank.device)], fresh, cosine)
    return kept


def _first(block: Tensor, fresh: Tensor, cosine: float) -> Tensor:
    """The same within a block, whose rows are `fresh` ones of `[n]`."""
    close = (block @ block.T >= cosine).cpu().tril(-1)  # [m, m]: to which earlier ones
    stays = torch.zeros(len(block), dtype=torch.bool)
    open_ = torch.ones_like(stays)
    while bool(open_.any()):
        # all whose earlier neighbours have gone stay; their later neighbours go
        settled = open_ & ~(close & open_[None]).any(1)
        stays |= settled
        open_ &= ~settled & ~(close & settled[None]).any(1)
    out = torch.zeros_like(fresh)
    out[fresh] = stays
    return out
