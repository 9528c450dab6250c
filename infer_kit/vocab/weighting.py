"""Weights of an ensemble's members: fixed, or learnt from the text so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from infer_kit.errors import InferKitError
from infer_kit.vocab.trie import Float

WeightRule = Callable[[Float, Float], Float]
RULES = ("bayes", "fixed_share", "entropy")
SWITCHING_RATE = 0.01


@dataclass(frozen=True)
class Weighting:
    r"""How the weights of N members go along with a text.

    With prior weights $w_i$ and $p_i(y_t)$ what member i gave the symbol that came:

    * None: fixed, $w_i$.
    * "bayes": $w_i \prod_t p_i(y_t)$, normalised: the posterior. The mixture of the next-symbol
      laws is then the mixture of whole texts, so its log loss is at most that of the best member
      plus $-\log w_i$, on every text (log N for equal priors).
    * "fixed_share": the posterior after each symbol is mixed with the prior,
      $(1-\alpha) w + \alpha w_0$, for texts whose best member changes (Herbster and Warmuth,
      "Tracking the best expert", 1998).
    * "entropy": $w_i e^{-H(q_i)}$, normalised: at each step the surer member counts more.
    * a function of (laws [N, symbols + 1], prior [N]) that gives weights [N].

    Args:
        prior: [N] weights; those of a mixture are normalised.
        rule: one of the above.
        switching_rate: $\alpha$ of "fixed_share", per symbol.
    """

    prior: tuple[float, ...]
    rule: str | WeightRule | None = None
    switching_rate: float = SWITCHING_RATE

    @property
    def needs_laws(self) -> bool:
        """Whether the weights of a step depend on the members' laws at that step."""
        return self.rule == "entropy" or callable(self.rule)

    def start(self) -> Float:
        """[N] weights before any symbol."""
        return np.array(self.prior)

    def at(self, weights: Float, laws: Float) -> Float:
        """[N] weights of this step.

        Args:
            weights: what `start` or `after` gave. laws: [N, symbols + 1] of the members.
        """
        if callable(self.rule):
            chosen = np.asarray(self.rule(laws, self.start()), np.float64)
            if chosen.shape != weights.shape or not np.isfinite(chosen).all():
                raise InferKitError(
                    f"The weight function returned shape {list(chosen.shape)}; expected "
                    f"{list(weights.shape)} finite weights, one for each member."
                )
            return chosen
        if self.rule == "entropy":
            entropy = -(laws * np.log(laws, where=laws > 0, out=np.zeros_like(laws))).sum(-1)
            surer = weights * np.exp(entropy.min() - entropy)
            return surer / surer.sum()
        return weights

    def after(self, weights: Float, likelihoods: Float, logprobs: Float) -> Float:
        """[N] weights after a symbol.

        Args:
            weights: before it. likelihoods: [N] what each member gave it.
            logprobs: [N] what each gave all symbols so far, in logs, which do not underflow.
        """
        if self.rule == "bayes":
            with np.errstate(divide="ignore"):
                logs = np.log(self.start()) + logprobs
            posterior = np.exp(logs - logs.max())
            return posterior / posterior.sum()
        if self.rule != "fixed_share":
            return weights
        posterior = weights * likelihoods
        if not posterior.sum() > 0:
            return weights  # underflow of all: nothing was learnt
        posterior /= posterior.sum()
        return (1 - self.switching_rate) * posterior + self.switching_rate * self.start()


def make_weighting(
    weights: Sequence[float] | str | WeightRule | None,
    members: int,
    pool: object,
    switching_rate: float | None,
) -> Weighting:
    """The weighting that a user asked for, checked.

    Raises:
        InferKitError: as many weights as members, for a mixture non-negative and not all 0; an
            unknown rule; a rule that makes no sense for a product.
    """
    if switching_rate is None:
        switching_rate = SWITCHING_RATE
    elif not isinstance(switching_rate, Real):
        raise InferKitError(f"switching_rate is {switching_rate!r}; expected between 0 and 1.")
    elif weights != "fixed_share":
        raise InferKitError(f"switching_rate is that of weights='fixed_share', not of {weights!r}.")
    if not 0 <= switching_rate <= 1:
        raise InferKitError(f"switching_rate is {switching_rate}; expected between 0 and 1.")
    equal = (1 / members,) * members if pool != "product" else (1.0,) * members
    if weights is None:
        return Weighting(equal)
    if isinstance(weights, str):
        if weights not in RULES:
            raise InferKitError(
                f"Unknown weights {weights!r}; expected numbers, a function or one of "
                f"{', '.join(RULES)}."
            )
        if pool != "mixture":
            raise InferKitError(f"weights={weights!r} are those of a mixture, not of {pool!r}.")
        return Weighting(equal, weights, switching_rate)
    if callable(weights):
        return Weighting(equal, weights)
    try:
        given = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError):
        raise InferKitError(
            f"weights is {weights!r}; expected a number for each of {members} members, a function "
            f"or one of {', '.join(RULES)}."
        ) from None
    if len(given) != members or not all(np.isfinite(given)):
        raise InferKitError(
            f"Got weights {given} for {members} members; expected as many finite numbers."
        )
    if not any(given):
        raise InferKitError("All weights are 0.")
    if pool == "mixture":
        if min(given) < 0 or not sum(given) > 0:
            raise InferKitError(f"The weights of a mixture are not negative, got {given}.")
        given = tuple(weight / sum(given) for weight in given)
    return Weighting(given)
