"""The K phrases of a bank that are nearest to an image: exactly, or by an index of FAISS."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from infer_kit.errors import InferKitError, MissingExtra

CHUNK = 16_384
"""Rows of the bank that are scored at a time."""

_TRAINING = 500_000  # rows that an approximate index is trained on, evenly spaced


class Retriever(Protocol):
    """Anything that finds phrases: `FaissIndex`, or an object of one's own."""

    def topk(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Inner products `[B, k]`, descending, and the phrases' numbers `[B, k]`."""
        ...


@torch.no_grad()
def topk(
    queries: Tensor, bank: Tensor, k: int, chunk: int = CHUNK, mean: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows with the largest inner products, over all rows of the bank.

    Equal to a sort of all products but for rows that float32 cannot tell apart; the memory needed
    does not grow with the bank.

    Args:
        queries: `[B, d]`, on the device to compute on. bank: `[N, d]`, float32 or float16, in
            memory or mapped from a file. mean: `[d]`, taken from each row, which is then made
            unit again.

    Returns:
        Products `[B, k]`, float32, descending, and row numbers `[B, k]`; equal products in the
        order of their rows.

    Raises:
        InferKitError: k is not between 1 and N; queries do not fit the bank, or are not finite.
    """
    if not 1 <= k <= len(bank):
        raise InferKitError(
            f"k={k} phrases are asked for, the bank has {len(bank)}.",
            hint=f"Give a k from 1 to {len(bank)}.",
        )
    if chunk < 1:
        raise InferKitError(f"chunk is a number from 1 on, got {chunk}.")
    _check_queries(queries, bank.shape[1])
    queries = queries.float()
    if not len(queries):
        return queries.new_empty(0, k), queries.new_empty(0, k, dtype=torch.long)
    best = torch.empty(len(queries), 0, device=queries.device)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    floor = torch.full((len(queries), 1), -torch.inf, device=queries.device)
    for start in range(0, len(bank), chunk):
        part = bank[start : start + chunk].to(queries.device).float()
        if mean is not None:
            part = torch.nn.functional.normalize(part - mean.to(part), dim=1)
        scores = queries @ part.T
        # what is below k scores that were found already is no candidate
        width = min(k, int((scores > floor).sum(1).max()))
        scores, at = scores.topk(width, dim=1, sorted=False)
        best, rows = torch.cat([best, scores], 1), torch.cat([rows, at + start], 1)
        if best.shape[1] >= 2 * k:
            best, at = best.topk(k, dim=1, sorted=False)
            rows, floor = rows.gather(1, at), best.amin(1, keepdim=True)
    best, at = best.topk(k, dim=1)
    rows = rows.gather(1, at)
    rows, order = rows.sort(dim=1)
    best, by_score = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, rows.gather(1, by_score)


def _check_queries(queries: Tensor, d: int) -> None:
    if queries.dim() != 2 or queries.shape[1] != d:
        raise InferKitError(f"queries have shape {list(queries.shape)}; expected [B, {d}].")
    if not bool(queries.isfinite().all()):
        raise InferKitError("queries have numbers that are not finite.")


class FaissIndex:
    """An index of FAISS over a bank: for banks on disk, and for approximate search.

    In memory the exact `topk` above is faster at the K of concept bottlenecks.

    Attributes:
        index: the index of FAISS.
    """

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, bank: Tensor, factory: str = "Flat", chunk: int = CHUNK) -> "FaissIndex":
        """Index the rows `[N, d]` of a bank.

        Args:
            factory: FAISS's description of an index: "Flat" is exact, "IVF1024,SQfp16" is not.

        Raises:
            InferKitError: FAISS knows no such index, or the bank is too small for it.
        """
        faiss = _faiss()
        try:
            index = faiss.index_factory(bank.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(bank[:: -(-len(bank) // _TRAINING)].float().cpu().numpy())
        except RuntimeError as error:
            raise InferKitError(
                f"FAISS cannot make the index {factory!r} of {len(bank)} rows: {error}"
            ) from error
        for start in range(0, len(bank), chunk):
            index.add(bank[start : start + chunk].float().cpu().numpy())
        return cls(index)

    def check(self, bank: Tensor) -> None:
        """Refuse a bank `[N, d]` that the index cannot be of."""
        shape = [self.index.ntotal, self.index.d]
        if shape != list(bank.shape):
            raise InferKitError(
                f"The index is of a bank of shape {shape}, this one has {list(bank.shape)}.",
                hint="FaissIndex.build(bank.features)",
            )

    def topk(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Retriever`.

        Raises:
            InferKitError: the index finds fewer than k phrases; queries do not fit it.
        """
        if k < 1:
            raise InferKitError(f"k={k} phrases are asked for.", hint="Give a k from 1 on.")
        _check_queries(queries, self.index.d)
        scores, rows = self.index.search(queries.float().cpu().numpy(), k)
        if (rows < 0).any():
            raise InferKitError(
                f"The index finds fewer than k={k} phrases for an image.",
                hint="Of an IVF index raise index.nprobe, or give a smaller k.",
            )
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def save(self, path: str | Path) -> None:
        """Write it to a file."""
        _faiss().write_index(self.index, str(path))

    @classmethod
    def load(cls, path: str | Path, mmap: bool = False) -> "FaissIndex":
        """Read it from a file; `mmap`: leave it there."""
        faiss = _faiss()
        if not Path(path).is_file():
            raise InferKitError(f"No index at {str(path)!r}: there is no such file.")
        flags = faiss.IO_FLAG_MMAP if mmap else 0
        try:
            return cls(faiss.read_index(str(path), flags))
        except RuntimeError as error:
            raise InferKitError(f"{str(path)!r} is no index of FAISS: {error}") from error


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra(
            "faiss is not installed.", hint="pip install 'infer-kit[concepts]'"
        ) from error
    return faiss
