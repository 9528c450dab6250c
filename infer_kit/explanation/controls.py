"""What the page lets one move: the method's knob, or the weight of each stream."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infer_kit.methods.recipe import KLBudget, Recipe, WeightedRecipe
from infer_kit.streams import Group
from infer_kit.trace import Trace

STOPS = 161
LARGEST = 100.0  # of the weights that `solve_kl_budget` returns
_FURTHEST = 20.0


@dataclass(frozen=True)
class Slider:
    """One number s that moves the weights.

    Attributes:
        name: of the knob or of the stream.
        stops: the values it can take, ascending; the neutral one and the one in force are among
            them.
        neutral: where the method does nothing, or None.
        values: `[T]`, in force at each token.
        direction: `[K]`, how the weights move with s.
    """

    name: str
    stops: tuple[float, ...]
    neutral: float | None
    values: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def start(self) -> int:
        """The stop nearest to the median of the values in force."""
        return int(np.abs(np.array(self.stops) - _middle(self.values)).argmin())


@dataclass(frozen=True)
class Controls:
    r"""Sliders, and the weights that they stand for: $w = w_0 + \sum_j s_j d_j$.

    Attributes:
        base: `[K]`, $w_0$. sliders: none where there is nothing to move.
        normalize: whether the weights are divided by their sum.
        note: what is to be said of it, or "".
    """

    base: tuple[float, ...]
    sliders: tuple[Slider, ...]
    normalize: bool
    note: str = ""

    def weights(self, settings: Sequence[float]) -> np.ndarray | None:
        """`[K]` at one value for each slider; None where the engine would refuse them."""
        w = np.array(self.base)
        for s, slider in zip(settings, self.sliders, strict=True):
            w = w + s * np.array(slider.direction)
        if self.normalize:
            if abs(w.sum()) < 1e-12:
                return None
            w = w / w.sum()
        return w if w.any() else None


def controls_of(recipe: Recipe, group: Group, trace: Trace) -> Controls:
    """The sliders for one answer.

    Args:
        group: that was decoded. trace: of the answer.
    """
    names, left, ran = [s.name for s in group.streams], list(trace.streams), []
    for k, name in enumerate(names):
        if left and name == left[0]:
            ran.append(k)
            left.pop(0)
    normalize = recipe.normalize or trace.pool == "mixture"
    nothing = Controls(tuple([0.0] * len(ran)), (), normalize)
    if len(ran) < 2:
        idle = " and ".join(repr(name) for name in trace.idle)
        note = "One stream alone was run: there is nothing to weigh it against."
        if idle:
            note = (
                f"Only {trace.streams[0]!r} was run, {idle} having weight 0: there is nothing to "
                "slide. Explain with a weight other than 0, and slide to 0 from there."
            )
        return Controls(nothing.base, (), normalize, note)
    knob = _knob(recipe, trace, len(names), ran, normalize)
    if knob is not None:
        return knob
    sliders = []
    for k, name in enumerate(trace.streams):
        values = trace.weights[:, k]
        reach = 2 * float(np.abs(values).max(initial=0.0))
        low = -max(reach, 1.0) if values.min(initial=0.0) < 0 else 0.0
        direction = [float(j == k) for j in range(len(ran))]
        stops = _stops(low, max(reach, 1.0), [0.0, *_single(values)])
        sliders.append(Slider(name, stops, None, tuple(values.tolist()), tuple(direction)))
    note = "The weights are divided by their sum." if normalize else ""
    if trace.idle:
        note = f"{note} Not run, having weight 0: {', '.join(trace.idle)}.".strip()
    return Controls(nothing.base, tuple(sliders), normalize, note)


def _knob(
    recipe: Recipe, trace: Trace, streams: int, ran: list[int], normalize: bool
) -> Controls | None:
    """One slider for the method's knob; None where the weights are no function of it."""
    if not isinstance(recipe, WeightedRecipe) or getattr(recipe, "setting", None) is None:
        return None
    base, further, third = (np.array(recipe.stream_weights(s)) for s in (0.0, 1.0, 2.0))
    d = further - base
    if len(base) != streams or not np.allclose(third, base + 2 * d):
        return None
    idle = [k for k in range(streams) if k not in ran]
    if d[idle].any():
        return None
    values = _values(trace.weights, base, d, ran, normalize)
    if values is None:
        return None
    setting, neutral = recipe.setting, recipe.neutral
    if not isinstance(setting, KLBudget) and np.allclose(values, setting, rtol=1e-5, atol=1e-6):
        values = np.full(len(values), float(setting))
    reach = float(np.clip(2 * _middle(values) - neutral, -_FURTHEST, _FURTHEST))
    low, high = min(0.0, neutral, reach), max(neutral + 2, reach)
    slider = Slider(
        recipe.knob,
        _stops(low, high, [0.0, neutral, *_single(values)]),
        neutral,
        tuple(values.tolist()),
        tuple(d[ran].tolist()),
    )
    note = "The weights are divided by their sum." if normalize else ""
    if isinstance(setting, KLBudget):
        note = (
            f"A budget of {setting.nats:g} nats a token set {recipe.knob} at every token, from "
            f"{values.min(initial=np.inf):.3g} to {values.max(initial=-np.inf):.3g}. The slider "
            "sets one value for all."
        )
    return Controls(tuple(base[ran].tolist()), (slider,), normalize, note)


def _values(
    weights: np.ndarray, base: np.ndarray, d: np.ndarray, ran: list[int], normalize: bool
) -> np.ndarray | None:
    """`[T]` the s for which the weights in force are $w_0 + s d$, divided by their sum if so."""
    found = []
    for w in weights:
        if normalize:  # w (Σ w0 + s Σ d) = w0 + s d
            left, right = w * base.sum() - base[ran], d[ran] - w * d.sum()
        else:
            left, right = w - base[ran], d[ran]
        k = int(np.abs(right).argmax())
        if right[k] == 0:
            return None
        s = left[k] / right[k]
        again = base[ran] + s * d[ran]
        again = again / (base + s * d).sum() if normalize else again
        if not np.allclose(again, w, rtol=1e-4, atol=1e-5):
            return None
        found.append(float(s))
    return np.array(found)


def _middle(values: Sequence[float] | np.ndarray) -> float:
    """Their median; those that a budget could not spend, 100, count where there are no others."""
    every = np.array(values)
    spent = every[np.abs(every) < 0.999 * LARGEST]
    chosen = spent if len(spent) else every
    return float(np.median(chosen)) if len(chosen) else 0.0


def _single(values: np.ndarray) -> list[float]:
    """The value in force where it is one for all tokens."""
    return [float(values[0])] if len(values) and (values == values[0]).all() else []


def _stops(low: float, high: float, also: list[float]) -> tuple[float, ...]:
    """`STOPS` even values, each of `also` in the place of the nearest."""
    values = np.round(np.linspace(low, high, STOPS), 10)
    for value in also:
        if low <= value <= high:
            values[int(np.abs(values - value).argmin())] = value
    return tuple(np.unique(values).tolist())
