r"""What each stream contributed to each token of an answer.

For a product pool the log-odds of the chosen token $a$ over any other token $b$ is exactly a sum:
$\log \pi(a) - \log \pi(b) = \sum_k w_k (\log p_k(a) - \log p_k(b))$. A trace gives the parts over
the runner-up.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_kit.canvas import canvas, saved
from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from rich.table import Table

    from infer_kit.token_statistics import TokenStatistics

_COLUMNS = 3
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")


@dataclass(frozen=True)
class Trace:
    """One answer of T tokens, drawn from K streams. Natural logarithms.

    Attributes:
        streams: names of the K streams.
        pool: "product", "mixture" or "custom".
        tokens: T texts. token_ids: `[T]`.
        pooled: `[T]` log π of each token under the normalised pool.
        logprobs: `[T, K]` log p_k of each token; NaN for a stream that did not run.
        weights: `[T, K]` the weights in force at each token.
        runner_up: T texts, the best token other than the chosen one.
        runner_up_pooled: `[T]`. runner_up_logprobs: `[T, K]`.
        top: T × K texts, each stream's own best token.
        decisive: `[T, K]` bool, whether the pool's best token would be another one without the
            stream.
        divergence: `[T]` Jensen–Shannon divergence between the streams, nats, at most log K.
        idle: names of the request's streams that did not run, having weight 0.
        plausibility: β of the cut-off in force, 0 for none.
        experts: places among `streams` of those that say what is plausible.

    With `trace=n` also, and None without, what other choices can be made from (see
    `infer_kit.explanation`): the union of each stream's n best tokens, the pool's n best, the
    chosen token and the runner-up.

    Attributes:
        candidate_ids: T arrays `[C_t]`, ascending. candidates: T tuples of their texts.
        candidate_logprobs: T arrays `[C_t, K]`, log p_k of each.
        floors: `[T, K]` log p_k of each stream's best token that is no candidate.
        pooled_floor: `[T]` log π of the pool's best token that is no candidate.
    """

    streams: tuple[str, ...]
    pool: str
    tokens: tuple[str, ...]
    token_ids: np.ndarray
    pooled: np.ndarray
    logprobs: np.ndarray
    weights: np.ndarray
    runner_up: tuple[str, ...]
    runner_up_pooled: np.ndarray
    runner_up_logprobs: np.ndarray
    top: tuple[tuple[str, ...], ...]
    decisive: np.ndarray
    divergence: np.ndarray
    idle: tuple[str, ...] = ()
    plausibility: float = 0.0
    experts: tuple[int, ...] = ()
    candidates: tuple[tuple[str, ...], ...] | None = None
    candidate_ids: tuple[np.ndarray, ...] | None = None
    candidate_logprobs: tuple[np.ndarray, ...] | None = None
    floors: np.ndarray | None = None
    pooled_floor: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def margin(self) -> np.ndarray:
        """`[T]` log π(chosen) − log π(runner-up); negative where sampling took a lesser token.

        Infinite where a plausibility cut-off left no other token.
        """
        return self.pooled - self.runner_up_pooled

    @property
    def parts(self) -> np.ndarray:
        """`[T, K]` what each stream adds to the margin; they sum to it. Product pools only.

        Where a plausibility cut-off left no other token they are over a token that was cut off.
        """
        if self.pool != "product":
            raise InferKitError(f"Margins are sums over streams for a product, not a {self.pool}.")
        parts = self.weights * (self.logprobs - self.runner_up_logprobs)
        return np.where(np.isnan(self.logprobs), 0.0, parts)

    @property
    def leading(self) -> tuple[str, ...]:
        """T names, the stream that adds most to each token's margin. Product pools only."""
        return tuple(self.streams[int(k)] for k in self.parts.argmax(1))

    def mattered(self, stream: str) -> bool:
        """Whether some token's greedy choice would have been another one without `stream`.

        False for a stream that did not run (weight 0).

        Raises:
            InferKitError: there is no such stream.
        """
        if stream in self.idle:
            return False
        if stream not in self.streams:
            raise InferKitError(
                f"No stream {stream!r}; this trace has {[*self.streams, *self.idle]}."
            )
        return bool(self.decisive[:, self.streams.index(stream)].any())

    def table(self, title: str | None = None) -> "Table":
        """A rich table, a row a token, coloured by the stream that added most to its margin.

        Up to three streams have columns of their own; of more, the one that added most and those
        that decided the token are named.
        """
        from rich.table import Table
        from rich.text import Text

        split, apart = self.pool == "product", len(self.streams) <= _COLUMNS
        table = Table(title=title)
        table.add_column("token")
        table.add_column("p", justify="right")
        table.add_column("over")
        for k, name in enumerate(self.streams if apart else ()):
            table.add_column(f"{name} wants", style=_COLOURS[k % len(_COLOURS)])
            if split:
                table.add_column("adds", justify="right", style=_COLOURS[k % len(_COLOURS)])
        if not apart:
            if split:
                table.add_column("added most")
            table.add_column("decided by")
        table.add_column("JSD", justify="right")
        parts = self.parts if split else np.zeros_like(self.logprobs)
        for t, token in enumerate(self.tokens):
            most = int(parts[t].argmax()) if len(self.streams) else 0
            colour = _COLOURS[most % len(_COLOURS)] if len(self.streams) else ""
            cells: list[Any] = [
                Text(repr(token), style=f"bold {colour}"),
                f"{np.exp(self.pooled[t]):.2f}",
                Text(repr(self.runner_up[t])),
            ]
            for k in range(len(self.streams) if apart else 0):
                mark = " *" if self.decisive[t, k] else ""
                cells.append(Text(repr(self.top[t][k]) + mark))
                if split:
                    cells.append(f"{parts[t, k]:+.2f}")
            if not apart:
                if split:
                    cells.append(f"{self.streams[most]} {parts[t, most]:+.2f}")
                pairs = zip(self.streams, self.decisive[t], strict=True)
                cells.append(", ".join(name for name, decided in pairs if decided))
            table.add_row(*cells, f"{self.divergence[t]:.2f}")
        decided = "; *: decided the token" if apart else ""
        table.caption = f"adds: nats for the token over the runner-up{decided}"
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON. What is not finite becomes None."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            out[field.name] = _plain(value)
        out["margin"] = _plain(self.margin)
        if self.pool == "product":
            out["parts"] = _plain(self.parts)
            out["leading"] = list(self.leading)
        return out

    def figure(self, path: str | Path, title: str | None = None) -> Path:
        """Save a bar chart of each stream's part in each token's margin; PNG, SVG or PDF.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        parts, count = self.parts, len(self.streams)
        places = np.arange(len(self))
        figure, axes = canvas(max(4.0, 0.6 * len(self) + 2), 3.2)
        for k, name in enumerate(self.streams):
            left = places + (k - (count - 1) / 2) * 0.8 / count
            axes.bar(left, parts[:, k], 0.8 / count, label=f"{name} (w={self._weight(k)})")
        axes.plot(places, self.margin, "k_", markersize=14, label="margin")
        axes.axhline(0, color="grey", linewidth=0.8)
        pairs = zip(self.tokens, self.runner_up, strict=True)
        axes.set_xticks(places, [f"{a!r}\nnot {b!r}".replace("$", r"\$") for a, b in pairs])
        axes.set_ylabel("nats over the runner-up")
        if title:
            lines = textwrap.fill(title, int(12 * figure.get_figwidth()))
            axes.set_title(lines.replace("$", r"\$"), fontsize="small")
        axes.legend(fontsize="small")
        return saved(figure, Path(path))

    def _weight(self, k: int) -> str:
        """The weight of stream k, or its range where it changes by the step."""
        low, high = self.weights[:, k].min(initial=np.inf), self.weights[:, k].max(initial=-np.inf)
        return f"{low:g}" if low == high else f"{low:.2g}…{high:.2g}"


def checked_depth(trace: Any) -> int:
    """How many candidates a stream `trace=` asks for: 0 for True and False, n for n.

    Raises:
        InferKitError: it is none of these.
    """
    if isinstance(trace, bool | np.bool_):
        return 0
    if isinstance(trace, Integral) and int(trace) >= 1:
        return int(trace)
    raise InferKitError(
        f"trace is True, False, or how many candidates a stream to keep of each token (1 or "
        f"more); got {trace!r}."
    )


def trace_of(
    statistics: "TokenStatistics",
    row: int,
    length: int,
    slots: Sequence[int],
    streams: Sequence[str],
    idle: Sequence[str],
    pool: str,
    decode: Callable[[int], str],
    plausibility: float = 0.0,
    experts: Sequence[int] = (),
) -> Trace:
    """The trace of one sequence out of a batch's figures.

    Args:
        statistics: of all sequences. row: which one. length: its tokens without padding.
        slots: which of the pool's streams this sequence has. streams: their names.
        idle: names of those that did not run.
        pool: "product", "mixture" or "custom".
        decode: one token id to text.
        plausibility: β of the cut-off. experts: the pool's streams that say what is plausible.
    """

    def array_of(name: str) -> np.ndarray:
        values = getattr(statistics, name)[row, :length].cpu()
        return (values.double() if values.is_floating_point() else values).numpy()

    def array(name: str) -> np.ndarray:
        values = array_of(name)
        return values[:, list(slots)] if values.ndim == 2 else values

    ids = array("chosen")
    kept: dict[str, Any] = {}
    if statistics.candidates is not None:
        every = array_of("candidates")
        texts = {int(i): decode(int(i)) for i in np.unique(every) if i >= 0}
        logprobs = array_of("candidate_logprobs")[..., list(slots)]
        kept = {
            "candidate_ids": tuple(row[row >= 0] for row in every),
            "candidates": tuple(tuple(texts[int(i)] for i in row if i >= 0) for row in every),
            "candidate_logprobs": tuple(
                values[row >= 0] for values, row in zip(logprobs, every, strict=True)
            ),
            "floors": array("floors"),
            "pooled_floor": array("pooled_floor"),
        }
    return Trace(
        **kept,
        streams=tuple(streams),
        pool=pool,
        tokens=tuple(decode(int(i)) for i in ids),
        token_ids=ids,
        pooled=array("pooled"),
        logprobs=array("logprobs"),
        weights=array("weights"),
        runner_up=tuple(decode(int(i)) for i in array("runner_up")),
        runner_up_pooled=array("runner_up_pooled"),
        runner_up_logprobs=array("runner_up_logprobs"),
        top=tuple(tuple(decode(int(i)) for i in tokens) for tokens in array("top")),
        decisive=array("decisive"),
        divergence=array("divergence"),
        idle=tuple(idle),
        plausibility=float(plausibility),
        experts=tuple(list(slots).index(k) for k in experts if k in slots and plausibility),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
