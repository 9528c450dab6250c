"""The certified reducer: a language model, symbol by symbol, over a smaller alphabet."""

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Real

import numpy as np

from infer_kit.errors import InferKitError
from infer_kit.vocab.canonical import Tokens, Window
from infer_kit.vocab.reduction import Reduction, Row
from infer_kit.vocab.trie import DfsTrie, Float
from infer_kit.vocab.utf8 import LONGEST_CHARACTER, open_tail

Request = tuple[int, int]  # a node of the model's forest, and the token to read after it
Answer = tuple[int, Row]  # the new node and its law
Steps = Generator[list[Request], list[Answer], None]

_SPARES = 16  # of what mode "full" dropped, kept in case that nothing else goes on
_HINTS = {
    "late": "Its tokenizer does not cut text so. Over bytes any text of its characters can be "
    'written; over other alphabets mode="early" offers no such symbol; mode="full" admits all.',
    "early": 'Its tokenizer does not cut text so; mode="full" admits every spelling.',
}


class ZeroProbability(InferKitError):
    """The text so far cannot be written by the model's tokenizer."""


@dataclass(slots=True)
class Hypothesis:
    """Tokens $x'$ that the model has read, and a token in progress.

    Attributes:
        node: of the forest, after $x'$.
        weight: $W = P(x')$, relative to the reducer's scale.
        since: tokens since the window's beginning.
        place: the node of the trie that the token in progress has reached.
        inner: the law of the tokens that go on from there; None at the root, where `row` has it.
        mass: $W M_+(u|x')$, at the root $W$.
    """

    node: int
    weight: float
    since: Tokens
    place: int
    inner: Float | None
    row: Row | None
    mass: float

    @property
    def masses(self) -> Float:
        """[range of `place`] law of the tokens that the one in progress may become."""
        if self.row is not None:
            return self.row.masses
        assert self.inner is not None
        return self.inner

    def masses_at(self, trie: DfsTrie, place: int) -> Float:
        """[range of `place`] the same for a node below the hypothesis's own."""
        low, high = trie.span(place)
        if self.row is not None:
            return self.row.part(low, high)
        assert self.inner is not None
        base = trie.span(self.place)[0]
        return self.inner[low - base : high - base]


@dataclass(slots=True)
class Unread:
    """A sequence $x'v$ that the model has not read: its mass is known, what follows is not.

    The mass is that of its cylinder when it was completed; it bounds the part that is compatible
    with the text as long as `states` is not empty, and is zero after.

    Attributes:
        node, token: $x'$ and $v$.
        window, since: at the completion of $v$.
        states: (tokens since the window's beginning, trie node) that canonical tokens over the
            symbols since can have reached.
        symbols: since the completion.
    """

    mass: float
    node: int
    token: int
    window: Window
    since: Tokens
    states: frozenset[tuple[Tokens, int]]
    symbols: tuple[int, ...] = ()

    @property
    def may_end(self) -> bool:
        """Whether a token can have been completed with the last symbol."""
        return any(place == DfsTrie.ROOT for _, place in self.states)


@dataclass(slots=True)
class Stats:
    """What a reducer did. `rows` are sequences read by the model, `calls` its forward calls."""

    symbols: int = 0
    rows: int = 0
    calls: int = 0
    revivals: int = 0
    largest_ledger: int = 0
    leak: float = 0.0  # canonical mass lost, summed over symbols
    dropped: float = 0.0  # "full": the fractions dropped, summed over symbols


@dataclass(slots=True)
class _Moved:
    """Hypotheses and ledger after a symbol, and the mass that was no canonical token's."""

    window: Window
    live: list[Hypothesis]
    unread: list[Unread]
    lost: float = 0.0


class CertifiedReducer:
    r"""The law of $Y = \phi(X)$, advanced symbol by symbol, with a bound on what was left out.

    $P(y) = \sum_{u \ne root} W M_+(u|x') + \sum_{u = root} W$, where $x'$ runs over the token
    sequences whose spelling is $y$ without a token in progress $u$. Only a completed token costs
    a row of the model. A completed token that the model does not read at once is kept, unread,
    in the ledger, with its mass. At every step the ledger's compatible mass $D$ and the retained
    mass $R$ give $TV(p, q) \le D/(R+D)$; while that is above `eps`, the largest entries are read,
    along all symbols since. So the bound holds at every step and no text is ever lost.

    Args:
        reduction: the model's vocabulary over the alphabet.
        eps: bound on the total variation of each next-symbol law, in [0, 1); 0 is exact.

    In mode "full" what is dropped is not read again while anything else goes on (`Stats.dropped`
    adds up the fractions, which bounds the law of the whole text): without canonical tokens the
    ledger would never empty. `eps` is there the share that is dropped at each step.

    Source: arXiv 2510.08102, theorems of the relative cover and the next law; the ledger, revival
    and the bounds are ours.
    """

    def __init__(self, reduction: Reduction, eps: float = 1e-3) -> None:
        check_eps(eps)
        self.reduction = reduction
        self.eps = eps
        self.stats = Stats()
        self.log_scale = 0.0
        self.given = 0.0  # how much more the mass of what is given may be, in nats
        self.text = b""
        self._live: list[Hypothesis] = []
        self._unread: list[Unread] = []
        self._window, _ = reduction.canonicality.open()
        self._forgotten = 0.0  # mass dropped in mode "full"
        self._spares: list[Unread] = []  # the heaviest of it
        self._given_symbols = 0
        self._next: Float | None = None
        self.ahead: Sequence[int] = ()  # the symbols that will come next, where they are known

    def open(self, answer: Answer, before: Sequence[int] = ()) -> None:
        """Begin after a prompt that the model has read.

        Args:
            answer: its node and law.
            before: the prompt's last tokens with text, for the tokenizer's rules.
        """
        reduction = self.reduction
        self._window, since = reduction.canonicality.open(before)
        self.text = reduction.vocabulary.spell(before[-LONGEST_CHARACTER:])
        self._live = [self._root(answer, 1.0, since, self._window)]

    def condition(self) -> None:
        """From now on `logprob` is given the symbols so far."""
        self.log_scale = 0.0
        self.given = math.log1p(self.ledger)
        self._given_symbols = self.stats.symbols

    def fork(self) -> "CertifiedReducer":
        """An independent copy that shares the model's nodes."""
        twin = CertifiedReducer(self.reduction, self.eps)
        twin.stats = replace(self.stats)
        twin.log_scale, twin.text, twin._window = self.log_scale, self.text, self._window
        twin._live = [replace(hypothesis) for hypothesis in self._live]
        twin._unread = [replace(entry) for entry in self._unread]
        twin._spares = [replace(entry) for entry in self._spares]
        twin._forgotten, twin.given = self._forgotten, self.given
        twin._given_symbols = self._given_symbols
        return twin

    # What is known ----------------------------------------------------------------------------

    @property
    def ledger(self) -> float:
        """$D$: mass not read and still compatible with the text, relative to the retained."""
        return self._forgotten + math.fsum(entry.mass for entry in self._unread)

    @property
    def tv_bound(self) -> float:
        """Bound on the total variation between `next()` and the exact law of the mode."""
        dropped = self.ledger
        return dropped / (1.0 + dropped)

    @property
    def log_masses(self) -> tuple[float, float]:
        """Bounds on the log of the mass now, by the mass that was retained after the prompt."""
        return self.log_scale, self.log_scale + math.log1p(self.ledger)

    def logprob(self) -> tuple[float, float]:
        """Bounds on the log-probability of the symbols so far, in nats."""
        low, high = self.log_masses
        return low - self.given, high

    def logprob_end(self) -> tuple[float, float]:
        """Bounds on the log-probability of the symbols so far and END."""
        ends = math.fsum(h.weight * h.row.end for h in self._live if h.row is not None)
        most = ends + self._forgotten + math.fsum(e.mass for e in self._unread if e.may_end)
        log = [math.log(mass) if mass > 0 else -math.inf for mass in (ends, most)]
        return self.log_scale - self.given + log[0], self.log_scale + log[1]

    def next(self) -> Float:
        """[symbols + 1] law of the next symbol, END last; float64, sums to 1."""
        if self._next is None:
            trie = self.reduction.trie
            law = np.zeros(len(self.reduction.symbols) + 1)
            for h in self._live:
                masses = trie.child_masses(h.place, h.masses)
                law[trie.child_symbols(h.place)] += h.weight * masses
                if h.row is not None:
                    law[-1] += h.weight * h.row.end
            self._next = law / law.sum()
        return self._next

    def nodes(self) -> Iterable[int]:
        """Nodes of the forest that the reducer may go on from."""
        yield from (h.node for h in self._live)
        yield from (entry.node for entry in chain(self._unread, self._spares))

    def likely(self, share: float) -> list[tuple[float, Request]]:
        """What will probably have to be read next, with its share of the mass.

        Completions of the tokens in progress that have at least `share` of the mass; or, where
        the symbols that come are known (`ahead`), the completions along them that will not be left
        out, whatever `share`.
        """
        return self._completions_ahead() if self.ahead else self._completions(share)

    def _completions(self, share: float) -> list[tuple[float, Request]]:
        trie, tokens = self.reduction.trie, self.reduction.tokens
        found: list[tuple[float, Request]] = []
        for h in self._live:
            if h.mass < share:
                continue
            low, ending = trie.span(h.place)[0], trie.ending(h.place)
            masses = h.masses
            for at in np.flatnonzero(masses[ending:] * h.weight >= share) + ending:
                found.append((h.weight * float(masses[at]), (h.node, int(tokens[low + at]))))
        return found

    def _completions_ahead(self) -> list[tuple[float, Request]]:
        trie, tokens = self.reduction.trie, self.reduction.tokens
        found: list[tuple[float, Request]] = []
        paths = [(h, h.place) for h in self._live]
        for symbol in self.ahead:
            paths = [
                (h, place) for h, node in paths if (place := trie.child(node, symbol)) is not None
            ]
            if not paths:
                break
            ended: list[tuple[float, Request]] = []
            total = 0.0
            for h, place in paths:
                masses = h.masses_at(trie, place)
                low = trie.span(place)[0]
                total += h.weight * float(masses.sum())
                for at in range(trie.ending(place)):
                    ended.append((h.weight * float(masses[at]), (h.node, int(tokens[low + at]))))
            if total > 0:
                found += [(m / total, r) for m, r in ended if m > self.eps / 2 * total]
        return found

    # Steps ------------------------------------------------------------------------------------

    @property
    def character(self) -> bytes:
        """The bytes of an incomplete last character."""
        return open_tail(self.text)

    def may_follow(self, symbol: int) -> bool:
        """Whether something unread can go on with a symbol; END comes after the last symbol."""
        if symbol == len(self.reduction.symbols):
            return any(entry.may_end for entry in self._unread)
        return bool(self._move(_Moved(self._window, [], self._unread), symbol).unread)

    def advance(self, symbol: int) -> Steps:
        """Go on by one symbol: yields what the model must read, is sent the answers.

        Raises:
            ZeroProbability: no tokens of the model spell the text so.
        """
        moved = self._move(_Moved(self._window, self._live, self._unread), symbol)
        spares = self._spares
        if spares:
            spares = self._move(_Moved(self._window, [], spares), symbol).unread
        text = self.text + self.reduction.symbols[symbol]
        self.text = text if len(text) < 4096 else text[-2048:]
        retained = math.fsum(h.mass for h in moved.live)
        unread = math.fsum(entry.mass for entry in moved.unread)
        if not retained + unread > 0 and spares:  # back to what was dropped
            moved.unread, spares = spares, []
            unread = math.fsum(entry.mass for entry in moved.unread)
            self._forgotten = max(self._forgotten - unread, 0.0)
        if not retained + unread > 0:
            raise self._impossible(symbol, self.stats.symbols)
        self._spares = spares
        self._live, self._unread, self._window = moved.live, moved.unread, moved.window
        self._next = None
        self.stats.symbols += 1
        self.stats.leak += moved.lost / (moved.lost + retained + unread)
        yield from self._read_unread()
        if not self._live:  # what was unread has turned out to have no mass
            raise self._impossible(symbol, self.stats.symbols - 1)
        self._rescale()
        self.stats.largest_ledger = max(self.stats.largest_ledger, len(self._unread))

    def read_ends(self) -> Steps:
        """Let the model read all that may end here, which `logprob_end` then knows."""
        while ends := [entry for entry in self._unread if entry.may_end]:
            yield from self._read(ends)
        self._next = None
        self._rescale()

    def _impossible(self, symbol: int, place: int) -> ZeroProbability:
        """The error for a symbol that cannot come; it is at the end of `text` already."""
        written = self.reduction.symbols[symbol]
        return ZeroProbability(
            f"The model cannot write {written!r} after {self.text[: -len(written)][-40:]!r} "
            f"({self._place(place)}).",
            hint=f"More than it was dropped at eps={self.eps}; give a smaller eps."
            if self._forgotten
            else _HINTS.get(self.reduction.mode),
        )

    def _place(self, symbol: int) -> str:
        given = self._given_symbols
        return f"symbol {symbol - given} of the text" if symbol >= given else "in the prompt"

    def _read_unread(self) -> Steps:
        """Let the model read what is too heavy to be left out."""
        while wanted := self._wanted():
            yield from self._read(wanted)
        if self.reduction.mode == "full" and self._unread:
            retained = math.fsum(h.mass for h in self._live)
            dropped = math.fsum(entry.mass for entry in self._unread)
            self.stats.dropped += dropped / (retained + dropped)
            self._forgotten += dropped
            spares = sorted((*self._spares, *self._unread), key=lambda entry: -entry.mass)
            self._spares = spares[:_SPARES]
            self._unread = []

    def _read(self, wanted: Sequence[Unread]) -> Steps:
        chosen = {id(entry) for entry in wanted}
        self._unread = [entry for entry in self._unread if id(entry) not in chosen]
        answers = yield [(entry.node, entry.token) for entry in wanted]
        self.stats.calls += 1
        self.stats.rows += len(wanted)
        for entry, answer in zip(wanted, answers, strict=True):
            self._revive(entry, answer)

    def _wanted(self) -> list[Unread]:
        """The largest entries, so that the rest is within the bound."""
        if not self._unread:
            return []
        retained = math.fsum(h.mass for h in self._live)
        rest = math.fsum(entry.mass for entry in self._unread)
        total = retained + rest
        if retained > 0 and rest <= self.eps * total:
            return []
        wanted: list[Unread] = []
        for entry in sorted(self._unread, key=lambda entry: -entry.mass):
            if rest <= self.eps * total / 2 and (retained > 0 or wanted):
                break
            wanted.append(entry)
            rest -= entry.mass
        return wanted

    def _revive(self, entry: Unread, answer: Answer) -> None:
        """The entry's hypotheses now, exactly: its law along the symbols since."""
        if entry.symbols:
            self.stats.revivals += 1
        root = self._root(answer, entry.mass, entry.since, entry.window)
        moved = _Moved(entry.window, [root], [])
        for symbol in entry.symbols:
            moved = self._move(moved, symbol)
        self._live += moved.live
        self._unread += moved.unread

    def _rescale(self) -> None:
        retained = math.fsum(h.mass for h in self._live)
        for h in self._live:
            h.weight /= retained
            h.mass /= retained
        for entry in chain(self._unread, self._spares):
            entry.mass /= retained
        self._forgotten /= retained
        self.log_scale += math.log(retained)

    def _move(self, now: _Moved, symbol: int) -> _Moved:
        """All hypotheses and ledger entries one symbol further. Reads nothing."""
        trie, follow = self.reduction.trie, self.reduction.canonicality.follow
        window = now.window.step(self.reduction.symbols[symbol])
        lost = 0.0
        live: list[Hypothesis] = []
        unread: list[Unread] = []
        for h in now.live:
            place = trie.child(h.place, symbol)
            if place is None:
                continue
            masses = h.masses_at(trie, place)
            low, ending = trie.span(place)[0], trie.ending(place)
            for at in range(ending):
                mass = h.weight * float(masses[at])
                token = int(self.reduction.tokens[low + at])
                since = follow(window, h.since, token)
                if since is None:
                    lost += mass
                elif mass > 0:
                    state = frozenset([(since, DfsTrie.ROOT)])
                    unread.append(Unread(mass, h.node, token, window, since, state))
            inner = h.weight * float(masses[ending:].sum())
            if inner > 0:
                # A copy: a view would keep the law of all tokens alive.
                kept = masses.copy()
                live.append(Hypothesis(h.node, h.weight, h.since, place, kept, None, inner))
        for entry in now.unread:
            states = self._states(entry.states, window, symbol)
            if states:
                symbols = (*entry.symbols, symbol)
                unread.append(replace(entry, states=states, symbols=symbols))
        return _anchored(_Moved(window, live, unread, lost))

    def _states(
        self, states: frozenset[tuple[Tokens, int]], window: Window, symbol: int
    ) -> frozenset[tuple[Tokens, int]]:
        """Where canonical tokens can have led by now; empty when nowhere."""
        trie, follow = self.reduction.trie, self.reduction.canonicality.follow
        reached = set()
        for since, node in states:
            place = trie.child(node, symbol)
            if place is None:
                continue
            if trie.is_inner(place):
                reached.add((since, place))
            low, _ = trie.span(place)
            for token in self.reduction.tokens[low : low + trie.ending(place)]:
                followed = follow(window, since, int(token))
                if followed is not None:
                    reached.add((followed, DfsTrie.ROOT))
        return frozenset(reached)

    def _root(self, answer: Answer, weight: float, since: Tokens, window: Window) -> Hypothesis:
        node, row = answer
        if self.reduction.mode == "early":
            row = row.restricted(self.reduction.successors(window, since))
        return Hypothesis(node, weight, since, DfsTrie.ROOT, None, row, weight)


def _anchored(moved: _Moved) -> _Moved:
    """Without the hypotheses that are not what the tokenizer has certainly written."""
    window, certain = moved.window.anchored()
    if window is moved.window:
        return moved
    count = len(certain)
    live, lost = [], moved.lost
    for h in moved.live:
        if h.since[:count] == certain:
            live.append(replace(h, since=h.since[count:]))
        else:
            lost += h.mass
    unread = []
    for entry in moved.unread:
        states = frozenset((s[count:], place) for s, place in entry.states if s[:count] == certain)
        if not states:
            lost += 0.0 if entry.symbols else entry.mass
            continue
        if not entry.symbols:  # completed here: it goes on from the new window
            entry = replace(entry, window=window, since=entry.since[count:])
        unread.append(replace(entry, states=states))
    return _Moved(window, live, unread, lost)


def check_eps(eps: float) -> None:
    if not (isinstance(eps, Real) and 0 <= eps < 1):
        raise InferKitError(
            f"eps is {eps!r}; expected 0 <= eps < 1.",
            hint="eps bounds the error of each next-symbol law; 0 is exact, 1e-3 is quick.",
        )
