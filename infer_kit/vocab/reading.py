"""Rows of one model for the reducers of many requests, read in shared forwards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from infer_kit.vocab.reducer import Answer, CertifiedReducer, Request, Steps
from infer_kit.vocab.reduction import Reduction

PREFETCH = 0.02  # least share of a reducer's mass for which a completion is read ahead
_MOST_AHEAD = 16  # completions that are read ahead in one forward; of many texts, one of each
_KEEP_EVERY = 8  # symbols between two clearings of the model's cache


@dataclass(slots=True)
class Waiting:
    """A reducer's steps, and what the model must read before they go on."""

    reducer: CertifiedReducer
    steps: Steps
    asked: list[Request]


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
        """Run the steps of many reducers, each at its own pace, until all are done."""
        waiting = [w for r, s in zip(reducers, steps, strict=True) if (w := self.go_on(r, s))]
        while waiting:
            waiting = [w for w in self.read(waiting, [w.reducer for w in waiting]) if w]

    def go_on(self, reducer: CertifiedReducer, steps: Steps) -> Waiting | None:
        """Run steps as far as they get without a forward; None where they are done."""
        return self._run(reducer, steps, next(steps, None))

    def read(
        self, waiting: Sequence[Waiting], reducers: Sequence[CertifiedReducer]
    ) -> list[Waiting | None]:
        """One forward for all that wait; then each as far as it gets.

        Args:
            waiting: of this model.
            reducers: for which to read ahead.
        """
        # A due forward takes along what will probably be asked for next.
        wanted = dict.fromkeys(r for w in waiting for r in w.asked if r not in self._ahead)
        if self._prefetch is not None and reducers:
            likely = [entry for r in reducers for entry in r.likely(self._prefetch)]
            likely.sort(key=lambda entry: -entry[0])
            ahead = [r for _, r in likely if r not in self._ahead and r not in wanted]
            wanted |= dict.fromkeys(ahead[: max(_MOST_AHEAD // len(reducers), len(reducers))])
        nodes, logits = self._lm.extend(list(wanted))
        rows = self.reduction.rows(logits)
        self._ahead.update(zip(wanted, zip(nodes, rows, strict=True), strict=True))
        return [self._run(w.reducer, w.steps, w.asked) for w in waiting]

    def _run(
        self, reducer: CertifiedReducer, steps: Steps, asked: list[Request] | None
    ) -> Waiting | None:
        while asked is not None:
            if any(request not in self._ahead for request in asked):
                return Waiting(reducer, steps, asked)
            self._used.update(asked)
            try:
                asked = steps.send([self._ahead[request] for request in asked])
            except StopIteration:
                break
        return None

    def forget(self, reducers: Iterable[CertifiedReducer], waiting: Iterable[Waiting] = ()) -> None:
        """Free what no reducer can go on from, nor waits for; call it after each symbol."""
        self._since_keep += 1
        if self._since_keep < _KEEP_EVERY:
            return
        self._since_keep = 0
        live = {node for reducer in reducers for node in reducer.nodes()}
        asked = {request for w in waiting for request in w.asked}
        live |= {node for node, _ in asked}
        self._ahead = {
            key: answer
            for key, answer in self._ahead.items()
            if key[0] in live and (key in asked or key not in self._used)
        }
        self._used.clear()
        self._lm.keep(live | {node for node, _ in self._ahead.values()})
