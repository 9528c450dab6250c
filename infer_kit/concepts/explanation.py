"""One image explained: its phrases and weights, its class, and what changes if phrases change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from infer_kit.concepts.encoders import text_features
from infer_kit.concepts.lasso import sparse_code
from infer_kit.concepts.phrase_lists import normalised
from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from infer_kit.concepts.cbm import Decomposition, ZeroShotCBM

SHOWN = 16
"""Phrases that are shown, as published."""

Order = Literal["descending", "ascending", "random"]
Refit = Literal["lasso", "ols"]

_MOST = 0.95  # share of the weight that may stand for all of it
_FAR = 0.3  # cosine below which the phrases do not describe the image


@dataclass(frozen=True)
class Explanation:
    """Phrases that rebuild an image's feature, and the class that is read from it.

    Attributes:
        phrases: those with weight, by falling |w|. weights: `[n]` float64.
        label: the most probable class; None where no phrase has weight.
        probabilities: of the classes, from the rebuilt feature.
        zero_shot: of the classes, from the image's own feature.
        cosine: of the rebuilt feature to what was to be rebuilt. residual: their distance.
        gap: duality gap of the lasso; None after an intervention that does not refit it.
        converged, unique: see `Code`. lam, lam_max: λ, and the λ at which no phrase has weight.
        k: phrases among which the lasso chose.
        features: `[n, d]` float64, of the phrases. target: `[d]` float64, what is rebuilt.
        candidates: `[k]`, numbers in the bank of the phrases that were retrieved.
        gone: phrases that were deleted. added: features `[d]` of phrases that were inserted.
        model: what explained.
    """

    phrases: tuple[str, ...]
    weights: Tensor
    label: str | None
    probabilities: Mapping[str, float]
    zero_shot: Mapping[str, float]
    cosine: float
    residual: float
    gap: float | None
    converged: bool
    unique: bool
    lam: float
    lam_max: float
    k: int
    features: Tensor
    target: Tensor
    candidates: Tensor
    model: ZeroShotCBM
    gone: frozenset[str] = frozenset()
    added: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ZeroShotCBM, part: Decomposition, b: int) -> Explanation:
        """Image b of a decomposition over the phrases of the model's bank."""
        code = part.code[b]
        at = _by_size(code.w)
        numbers = part.rows[b][at.to(part.rows.device)].tolist()
        return cls(
            **_outcome(model, code.w[at], part.F[b][at].double(), part.target[b].double()),
            phrases=tuple(model.bank.phrases[n] for n in numbers),
            zero_shot=_named(model, part.v[b]),
            gap=float(code.gap),
            converged=bool(code.converged),
            unique=bool(code.unique),
            lam=float(code.lam),
            lam_max=float(code.lam_max),
            k=part.F.shape[1],
            candidates=part.rows[b],
            model=model,
        )

    @property
    def says_nothing(self) -> bool:
        """Whether no phrase has weight, or the phrases hardly rebuild the image."""
        return not self.phrases or self.cosine < _FAR

    @property
    def remarks(self) -> list[str]:
        """What a reader should know of this explanation, the gravest first."""
        said = []
        if not self.phrases:
            said.append(
                f"no phrase has weight: λ = {self.lam:.2g} against λ_max = {self.lam_max:.2g}, so "
                "there is no label"
                if self.lam >= self.lam_max
                else "no phrase has weight, so there is no label"
            )
        elif self.cosine < _FAR:
            said.append(f"the phrases rebuild the image at cosine {self.cosine:.2f} only")
        if not self.converged:
            gap = "" if self.gap is None else f": gap {self.gap:.1e}"
            said.append(f"the lasso did not converge{gap}")
        if not self.unique:
            said.append("phrases with the same feature share a weight, which is not unique")
        size = self.weights.abs()
        share = float(size[:SHOWN].sum() / size.sum()) if len(size) else 1.0
        if share < _MOST:
            said.append(f"the first {SHOWN} of {len(size)} phrases carry {share:.0%} of the weight")
        if len(size) and (negative := float(size[self.weights < 0].sum() / size.sum())) > 0.25:
            said.append(f"{negative:.0%} of the weight says what is not there")
        return said

    def top(self, n: int = SHOWN) -> list[tuple[str, float]]:
        """The n phrases with the largest |w|; one of negative weight as "NOT phrase"."""
        some = zip(self.phrases[:n], self.weights[:n].tolist(), strict=True)
        return [(f"NOT {phrase}" if w < 0 else phrase, w) for phrase, w in some]

    def has(self, phrase: str) -> bool:
        """Whether a phrase, with or without the NOT of `top`, has weight."""
        return normalised(phrase.removeprefix("NOT ")) in self.phrases

    def delete(
        self,
        what: int | str | Sequence[str],
        order: Order = "descending",
        refit: bool = False,
        seed: int = 0,
    ) -> Explanation:
        """The explanation without some phrases.

        Args:
            what: phrases, with or without the NOT of `top`; or how many of those with weight.
            order: of a number: by falling or rising |w|, or at random.
            refit: False, as in the paper: their weights become 0 and the class is read again. True:
                the lasso chooses anew among the other candidates, which may put the same thing in
                other words.
            seed: of the random order.

        Raises:
            InferKitError: a phrase has no weight here; the number is out of range.
        """
        out = self._numbers(what, order, seed)
        stays = torch.ones(len(self.phrases), dtype=torch.bool)
        stays[out] = False
        now = {self.phrases[n] for n in out}
        gone = self.gone | now
        added = {name: F for name, F in self.added.items() if name not in now}
        if not refit:
            kept = torch.where(stays.to(self.weights.device), self.weights, 0.0)
            return self._fixed(self.phrases, kept, self.features, gone, added)
        bank = self.model.bank
        rows = [n for n in self.candidates.tolist() if bank.phrases[n] not in {*gone, *added}]
        names = (*(bank.phrases[n] for n in rows), *added)
        if not names:
            return self._fixed((), self.weights[:0], self.features[:0], gone, added)
        own = bank.rows(torch.tensor(rows, dtype=torch.long)).to(self.target.device)
        retrieved = self.model.phrase_features(own).double()
        F = torch.cat([retrieved, *(feature[None] for feature in added.values())])
        return self._refitted(names, F, gone, added)

    def insert(
        self, what: str | Sequence[str] | Mapping[str, float], refit: Refit = "lasso"
    ) -> Explanation:
        """The explanation with further phrases, which need not be in the bank.

        Args:
            what: phrases; or phrases with weights, which are then set and nothing is refitted.
            refit: how the weights of these and of the phrases here are found: "lasso" with the
                model's λ; "ols", as in the paper (second-hand), by least squares, which changes
                the label by itself, since it shrinks nothing.

        Raises:
            InferKitError: a phrase is empty, or is here already.
        """
        names = self._new_names(what)
        prompt = self.model.bank.prompt
        encoded = text_features(self.model.encoder, [prompt.format(name) for name in names])
        new = self.model.phrase_features(encoded.to(self.target.device)).double()
        phrases, F = (*self.phrases, *names), torch.cat([self.features, new])
        gone = self.gone - set(names)
        added = {**self.added, **dict(zip(names, new, strict=True))}
        if isinstance(what, Mapping):
            given = torch.tensor(_finite(what), dtype=torch.float64)
            weights = torch.cat([self.weights, given.to(F.device)])
            return self._fixed(phrases, weights, F, gone, added)
        if refit == "ols":
            w = torch.linalg.lstsq(F.T.cpu(), self.target[:, None].cpu(), driver="gelsd").solution
            return self._fixed(phrases, w[:, 0].to(F.device), F, gone, added)
        if refit != "lasso":
            raise InferKitError(f"refit is 'lasso' or 'ols', got {refit!r}.")
        return self._refitted(phrases, F, gone, added)

    def table(self, n: int = SHOWN) -> Any:
        """A table of `rich`: phrases with bars, and under it what a reader should know."""
        from infer_kit.concepts.shown import table

        return table(self, n)

    def figure(self, path: str | Path, picture: Any = None, n: int = SHOWN) -> Path:
        """A figure of bars, beside the picture where one is given."""
        from infer_kit.concepts.shown import figure

        return figure(self, Path(path), picture, n)

    def to_dict(self, n: int | None = None) -> dict[str, Any]:
        """The figures as JSON can have them; of the phrases the first n, or all."""
        some = zip(self.phrases[:n], self.weights[:n].tolist(), strict=True)
        return {
            "label": self.label,
            "probabilities": dict(self.probabilities),
            "zero_shot": dict(self.zero_shot),
            "phrases": [{"phrase": phrase, "weight": w} for phrase, w in some],
            "nonzero": len(self.phrases),
            "candidates": self.k,
            "cosine": self.cosine,
            "residual": self.residual,
            "gap": self.gap,
            "converged": self.converged,
            "unique": self.unique,
            "lambda": self.lam,
            "lambda_max": self.lam_max,
            "remarks": self.remarks,
        }

    def _numbers(self, what: int | str | Sequence[str], order: Order, seed: int) -> list[int]:
        """Which phrases `delete` takes out."""
        size = len(self.phrases)
        if isinstance(what, int) and not isinstance(what, bool):
            if not 0 <= what <= size:
                raise InferKitError(f"{what} phrases cannot be deleted: {size} have weight.")
            if order == "random":
                shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
                return shuffled[:what].tolist()
            if order not in ("descending", "ascending"):
                raise InferKitError(f"order is descending, ascending or random, got {order!r}.")
            return list(range(what) if order == "descending" else range(size - what, size))
        names = [what] if isinstance(what, str) else [str(name) for name in _listed(what)]
        names = [name.removeprefix("NOT ") for name in names]  # as `top` shows them
        here = {phrase: n for n, phrase in enumerate(self.phrases)}
        absent = [name for name in names if normalised(name) not in here]
        if absent:
            raise InferKitError(
                f"{absent[0]!r} has no weight in this explanation.",
                hint=f"It has: {', '.join(self.phrases[:8])}{', …' if size > 8 else ''}.",
            )
        return [here[normalised(name)] for name in names]

    def _new_names(self, what: str | Sequence[str] | Mapping[str, float]) -> list[str]:
        names = [normalised(name) for name in ([what] if isinstance(what, str) else what)]
        if not names or not all(names):
            raise InferKitError("No phrase is given, or one is empty.")
        twice = [name for n, name in enumerate(names) if name in (*self.phrases, *names[:n])]
        if twice:
            raise InferKitError(
                f"{twice[0]!r} is in this explanation already.", hint="Delete it first."
            )
        return names

    def _refitted(
        self,
        phrases: tuple[str, ...],
        F: Tensor,
        gone: frozenset[str],
        added: Mapping[str, Tensor],
    ) -> Explanation:
        m = self.model
        code = sparse_code(
            F, self.target, m.alpha, m.scale, m.positive, m.solver, m.tol, m.max_iter
        )
        at = _by_size(code.w)
        return replace(
            self,
            **_outcome(m, code.w[at], F[at], self.target),
            phrases=tuple(phrases[n] for n in at.tolist()),
            gap=float(code.gap),
            converged=bool(code.converged),
            unique=bool(code.unique),
            lam_max=float(code.lam_max),
            k=len(F),
            gone=gone,
            added=added,
        )

    def _fixed(
        self,
        phrases: tuple[str, ...],
        w: Tensor,
        F: Tensor,
        gone: frozenset[str],
        added: Mapping[str, Tensor],
    ) -> Explanation:
        at = _by_size(w)
        return replace(
            self,
            **_outcome(self.model, w[at], F[at], self.target),
            phrases=tuple(phrases[n] for n in at.tolist()),
            gap=None,
            gone=gone,
            added=added,
        )


def _finite(weights: Mapping[str, Any]) -> list[float]:
    for phrase, w in weights.items():
        if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w):
            raise InferKitError(f"The weight of {phrase!r} is {w!r}; expected a number.")
    return [float(w) for w in weights.values()]


def _listed(what: Any) -> Sequence[Any]:
    if isinstance(what, bool) or not isinstance(what, Sequence):
        raise InferKitError(f"Expected phrases, or how many of them, got {what!r}.")
    return what


def _by_size(w: Tensor) -> Tensor:
    """Numbers of the phrases with weight, by falling |w|."""
    at = w.abs().argsort(descending=True, stable=True)
    return at[: int((w != 0).sum())]


def _named(model: ZeroShotCBM, z: Tensor) -> dict[str, float]:
    return dict(zip(model.classes, model.read(z[None])[0].tolist(), strict=True))


def _outcome(model: ZeroShotCBM, w: Tensor, F: Tensor, target: Tensor) -> dict[str, Any]:
    """What follows from weights `[n]` of phrases `[n, d]`."""
    z = w @ F
    probabilities = _named(model, model.rebuilt(z[None])[0])
    length = float(z.norm())
    cosine = float(z @ target) / (length * float(target.norm())) if length > 0 else 0.0
    return {
        "weights": w,
        "features": F,
        "target": target,
        "label": max(probabilities, key=lambda c: probabilities[c]) if len(w) else None,
        "probabilities": probabilities,
        "cosine": cosine,
        "residual": float((target - z).norm()),
    }
