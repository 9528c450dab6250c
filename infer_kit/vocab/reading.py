"""Rows of one model for the reducers of many requests, read in shared forwards."""

from collections.abc import Iterable, Sequence
from typing import Any

from infer_kit.vocab.reducer import Answer, CertifiedReducer, Request, Steps
from infer_kit.vocab.reduction import Reduction

PREFETCH = 0.02  # least share of a reducer's mass for which a completion is read ahead
_MOST_AHEAD = 16  # completions that are read ahead in one forward
_KEEP_EVERY = 8  # symbols between two clearings of the model's cache


class Reader:
    """Answers what reducers ask of one model; requests made together share a forward.

    When a forward is due anyway, the likely completions of the tokens in progress are read with
    it, since a row in a forward costs less than a forward. Answers are the same without.

    Args:
        reduction: the model's vocabulary over the alphabet.
        language_model: a forest over the model, `TreeKV` or `BatchedKV`.
        prefetch: least share of the mass for which a completion is read ahead; None reads nothing
            ahead.

    Attributes:
        calls: forwards of the model. rows: token positions that they computed after the prompts.
    """

    def __init__(
        self, reduction: Reduction, language_model: Any, prefetch: float | None = PREFETCH
    ) -> None:
        self.reduction = reduction
        self._lm = language_model
        self._prefetch = prefetch
        self._ahead: dict[Request, Answer] = {}
        self._used: set[Request] = set()  # forks of one reducer ask for the same
        self._since_keep = 0

    @property
    def calls(self) -> int:
        return int(self._lm.calls)

    @property
    def rows(self) -> int:
        return int(self._lm.rows)

    def begin(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """Read prompts (token ids, none empty), in as few forwards as fit."""
        nodes, logits = self._lm.prefill(prompts)
        return list(zip(nodes, self.reduction.rows(logits), strict=True))

    def run(self, steps: Sequence[Steps], reducers: Sequence[CertifiedReducer]) -> None:
        """Run the steps of many reducers side by side until all are done."""
        waiting = [(step, asked) for step in steps if (asked := next(step, None)) is not None]
        while waiting:
            answers = self._answers([r for _, asked in waiting for r in asked], reducers)
            going = []
            for step, asked in waiting:
                mine, answers = answers[: len(asked)], answers[len(asked) :]
                try:
                    going.append((step, step.send(mine)))
                except StopIteration:
                    continue
            waiting = going

    def forget(self, reducers: Iterable[CertifiedReducer]) -> None:
        """Free what no reducer can go on from; call it after each symbol."""
        self._since_keep += 1
        if self._since_keep < _KEEP_EVERY:
            return
        self._since_keep = 0
        live = {node for reducer in reducers for node in reducer.nodes()}
        self._ahead = {
            key: answer
            for key, answer in self._ahead.items()
            if key[0] in live and key not in self._used
        }
        self._used.clear()
        self._lm.keep(live | {node for node, _ in self._ahead.values()})

    def _answers(
        self, requests: list[Request], reducers: Sequence[CertifiedReducer]
    ) -> list[Answer]:
        missing = [request for request in requests if request not in self._ahead]
        if missing:
            # A due forward takes along what will probably be asked for next. With many texts one
            # is due at nearly every symbol anyway, and reading ahead spares none.
            wanted = dict.fromkeys(missing)
            if self._prefetch is not None:
                likely = [entry for r in reducers for entry in r.likely(self._prefetch)]
                likely.sort(key=lambda entry: -entry[0])
                ahead = [request for _, request in likely if request not in self._ahead]
                wanted |= dict.fromkeys(ahead[: _MOST_AHEAD // len(reducers)])
            nodes, logits = self._lm.extend(list(wanted))
            rows = self.reduction.rows(logits)
            self._ahead.update(zip(wanted, zip(nodes, rows, strict=True), strict=True))
        self._used.update(requests)
        return [self._ahead[request] for request in requests]
