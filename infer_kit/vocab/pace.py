"""Texts that go on symbol by symbol, each at its own pace, and share the models' forwards."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from infer_kit.vocab.pooled_text import Before, PooledText
from infer_kit.vocab.reading import Reader, Waiting

_AHEAD = 32  # symbols of a text to score that reading ahead looks at


@dataclass(slots=True)
class _Step:
    """A text between two symbols.

    Attributes:
        before: what was known before the symbol.
        waiting: by member, what its model must read first.
    """

    symbol: int
    before: Before
    waiting: dict[int, Waiting]


class Pace:
    """Which of many texts have read their last symbol, and which wait for a model.

    A byte asks for a forward now and then only, and not for every text at once. Texts that went
    on in step would need one at nearly every byte; so those that wait do so until all wait, and
    one forward of each model then serves them all.

    Args:
        texts: of one ensemble. readers: of its members.
    """

    def __init__(self, texts: Sequence[PooledText], readers: Sequence[Reader]) -> None:
        self.texts = list(texts)
        self.readers = tuple(readers)
        self._steps: dict[int, _Step] = {}

    def waits(self, row: int) -> bool:
        """Whether a text needs a forward before its next law is known."""
        return row in self._steps

    def start(self, row: int, symbol: int) -> None:
        """A text that does not wait goes on by a symbol, as far as it gets without a forward."""
        text = self.texts[row]
        step = _Step(symbol, text.before(), {})
        for member, (reader, reducer) in enumerate(zip(self.readers, text.reducers, strict=True)):
            waiting = reader.go_on(reducer, reducer.advance(symbol))
            if waiting is not None:
                step.waiting[member] = waiting
        if step.waiting:
            self._steps[row] = step
        else:
            text.after(symbol, step.before)

    def read(self, rows: Iterable[int]) -> None:
        """One forward of each model that a text waits for.

        Args:
            rows: texts for which to read ahead as well.
        """
        ahead = list(rows)
        for member, reader in enumerate(self.readers):
            steps = [step for step in self._steps.values() if member in step.waiting]
            if not steps:
                continue
            reducers = [self.texts[row].reducers[member] for row in ahead]
            still = reader.read([step.waiting.pop(member) for step in steps], reducers)
            for step, waiting in zip(steps, still, strict=True):
                if waiting is not None:
                    step.waiting[member] = waiting
        for row, step in [(row, step) for row, step in self._steps.items() if not step.waiting]:
            del self._steps[row]
            self.texts[row].after(step.symbol, step.before)

    def score(self, symbols: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
        """Read what is to be scored to its end; yields row and place before each symbol is read."""
        places = [0] * len(symbols)
        going = set(range(len(symbols)))
        while going:
            for row in [row for row in going if not self.waits(row)]:
                place, places[row] = places[row], places[row] + 1
                if place == len(symbols[row]):
                    going.remove(row)
                    continue
                yield row, place
                self.texts[row].foresee(symbols[row][place + 1 : place + 1 + _AHEAD])
                self.start(row, symbols[row][place])
            if going and all(map(self.waits, going)):
                self.read(going)
            self.forget()

    def forget(self) -> None:
        """Free what no text can go on from; call it after each symbol."""
        for member, reader in enumerate(self.readers):
            steps = self._steps.values()
            reader.forget(
                (text.reducers[member] for text in self.texts),
                (step.waiting[member] for step in steps if member in step.waiting),
            )
