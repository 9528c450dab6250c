"""The mask of a ticket: which weights a score keeps, and how gradients reach the scores.

    y = op(x, w m c),  m = mask(s) in {0, 1},  ds = d(w m c) c w   for every entry, kept or not

w never learns; c rescales what is kept: 1, 1 / sqrt(1 - sparsity of the whole) ("static"), or of
the layer ("dynamic"). The gradient of the step function is taken to be 1 (straight through).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from infer_kit.errors import InferKitError
from infer_kit.training.tickets.freeze import LOCKED, PRUNED, SEARCHED

Scale = Literal["static", "dynamic"] | None


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest number (from 1) of a tensor, as a tensor of no dimension on its device."""
    flat = values.detach().flatten()
    if flat.dtype in (torch.float16, torch.bfloat16):  # of which NumPy knows one, slowly
        flat = flat.float()
    if flat.device.type == "cpu" and not torch.compiler.is_compiling():
        # NumPy's partial sort is vectorised: many times faster than torch.kthvalue on a CPU.
        found = torch.from_numpy(np.partition(flat.numpy(), k - 1)[k - 1 : k]).squeeze(0)
    else:
        found = torch.kthvalue(flat, k).values
    return found.to(values.dtype)


@dataclass(frozen=True)
class TopK:
    """Keep the highest scores, anew at every forward.

    scope="layer" (Chijiwa et al., IteRand, arXiv 2106.09269): k = 1 + round(p (n - 1)), t the k-th
    smallest score of the layer, m = 1[s >= t], so that ties keep more.

    scope="global" (Otsuka et al., arXiv 2402.14029): k = int(N p) over all layers together, t the
    k-th smallest |s| with frozen weights at the ends, m = 1[|s| > t]; then pruned weights are out
    and locked ones in. p is then of all weights, frozen ones included. t is computed once for each
    change of the scores; a change through `.data` is noticed at the next train() or eval(). With
    k = 0 everything that is not pruned is kept, where the published code prunes everything.

    Attributes:
        p: share pruned. scope: "layer" or "global".
        signed: compare scores, not their absolute values; None is what the paper of the scope does:
            signed in a layer, absolute over all. The gradient of |s| has the sign of s.

    Raises:
        InferKitError: p outside [0, 1], or an unknown scope.
    """

    p: float = 0.5
    scope: Literal["layer", "global"] = "layer"
    signed: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise InferKitError(
                f"TopK(p={self.p}): p is the share of weights that is pruned, from 0 to 1.",
                "Where another library asks for the share that is kept, give one minus it.",
            )
        if self.scope not in ("layer", "global"):
            raise InferKitError(f'TopK has no scope {self.scope!r}: use "layer" or "global".')
        if self.signed is None:
            object.__setattr__(self, "signed", self.scope == "layer")

    def key(self, scores: Tensor, frozen: Tensor | None) -> Tensor:
        """What is ranked: s or |s|, float32, -inf where pruned and +inf where locked."""
        z = scores.detach() if self.signed else scores.detach().abs()
        if frozen is None:
            return z
        return z.masked_fill(frozen == PRUNED, -inf).masked_fill(frozen == LOCKED, inf)

    def level(self, keys: Sequence[Tensor], p: float) -> Tensor:
        """The threshold t over these keys together, with the share p pruned."""
        joined = keys[0].flatten() if len(keys) == 1 else torch.cat([z.flatten() for z in keys])
        k = self.rank(joined.numel(), p)
        if k == 0:
            return joined.new_tensor(-inf if self.signed else -1.0)
        return kth_smallest(joined, k)

    def rank(self, n: int, p: float) -> int:
        """k: which of n scores in ascending order, from 1, is the threshold; 0 for none."""
        return 1 + round(p * (n - 1)) if self.scope == "layer" else int(n * p)

    def kept(self, scores: Tensor, t: Tensor, frozen: Tensor | None) -> Tensor:
        """bool of scores' shape: the mask under the threshold t."""
        z = scores if self.signed else scores.abs()
        return _with_frozen(z >= t if self.scope == "layer" else z > t, frozen)

    def masks(
        self,
        scores: Mapping[str, Tensor],
        frozen: Mapping[str, Tensor | None] | None = None,
    ) -> dict[str, Tensor]:
        """bool masks of all layers.

        Args:
            scores: of each layer, float32. frozen: int8 -1 pruned, 0 searched, 1 locked, or None.
        """
        part = dict.fromkeys(scores) if frozen is None else frozen
        keys = {name: self.key(s, part[name]) for name, s in scores.items()}
        if self.scope == "global":
            together = self.level(list(keys.values()), self.p)
            levels = dict.fromkeys(scores, together)
        else:
            levels = {name: self.level([z], self.p) for name, z in keys.items()}
        return {name: self.kept(s, levels[name], part[name]) for name, s in scores.items()}

    def mask(self, scores: Tensor, frozen: Tensor | None = None) -> Tensor:
        """The bool mask of a single layer."""
        return self.masks({"": scores}, {"": frozen})[""]

    def check(self, sizes: Mapping[str, tuple[int, int, int]]) -> None:
        """Whether the threshold falls among the weights that are searched.

        Args:
            sizes: weights, pruned ones and locked ones of each layer.

        Raises:
            InferKitError: it does not, so that no score would matter.
        """
        if self.scope == "global":
            n, pruned, locked = (sum(column) for column in zip(*sizes.values(), strict=True))
            sizes = {"the network": (n, pruned, locked)}
        for name, (n, pruned, locked) in sizes.items():
            k = self.rank(n, self.p)
            # In a layer the k-th itself is kept, so that k - 1 are pruned.
            out = k - 1 if self.scope == "layer" else k
            if out <= pruned or n - out <= locked:
                frozen = f", of which {pruned} are frozen out and {locked} frozen in" * bool(
                    pruned or locked
                )
                raise InferKitError(
                    f"Nothing is left to search in {name!r}: {self} prunes {out} of its {n} "
                    f"weights{frozen}.",
                    "The sparsity must be above the share frozen out, and one minus it above the "
                    "share frozen in; a layer can be left out by exclude=[...].",
                )


@dataclass(frozen=True)
class Threshold:
    """Keep scores of at least t, where t was the layer's q-quantile at the start.

    Chijiwa et al., "Meta-ticket", arXiv 2205.15619. t is `TopK`'s of the initial scores and stays
    for ever, so that the sparsity floats; q = 0 starts dense.

    Attributes:
        q: share pruned at the start, in [0, 1).
    """

    q: float = 0.0
    signed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.q < 1:
            raise InferKitError(f"Threshold(q={self.q}): q is a share from 0 up to, but not, 1.")

    def level(self, scores: Tensor) -> Tensor:
        """t of a layer's initial scores."""
        return kth_smallest(scores, 1 + round(self.q * (scores.numel() - 1)))

    def kept(self, scores: Tensor, t: Tensor, frozen: Tensor | None) -> Tensor:
        """bool of scores' shape: the mask."""
        return _with_frozen(scores >= t, frozen)


MaskRule = TopK | Threshold


def _with_frozen(kept: Tensor, frozen: Tensor | None) -> Tensor:
    return kept if frozen is None else (kept & (frozen != PRUNED)) | (frozen == LOCKED)


class _StraightThrough(torch.autograd.Function):
    """The mask as numbers; backward as if it were s, or |s|."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, kept: Tensor, signed: bool) -> Tensor:
        return kept.to(scores.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, _, ctx.signed = inputs
        if not ctx.signed:
            ctx.save_for_backward(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad if ctx.signed else grad * ctx.saved_tensors[0].sign()), None, None


class _OptimizerSteps:
    """How many steps any optimizer of the process has made: a fused one changes parameters without
    counting it in their versions."""

    count = 0

    def __call__(self, *_: Any) -> None:
        self.count += 1


_STEPS = _OptimizerSteps()
register_optimizer_step_post_hook(_STEPS)


class GlobalLevel:
    """The one threshold of all layers, computed when scores have changed and not in every layer."""

    def __init__(self, rule: TopK, layers: Iterable[SupermaskParam]) -> None:
        self.rule, self.layers = rule, list(layers)
        self._seen: tuple[float, ...] | None = None
        self._level: Tensor | None = None

    def __call__(self, p: float) -> Tensor:
        """The threshold that prunes the share p."""
        scores = [layer.scores for layer in self.layers]
        seen = (p, _STEPS.count, *(s.data_ptr() for s in scores), *(s._version for s in scores))
        if self._level is None or seen != self._seen:
            keys = [self.rule.key(layer.scores, layer.frozen) for layer in self.layers]
            self._level, self._seen = self.rule.level(keys, p), seen
        return self._level

    def forget(self) -> None:
        """Compute it anew at the next use: scores written through `.data` are not noticed."""
        self._seen = None


class SupermaskParam(nn.Module):
    """The parametrization of one weight tensor: w -> w m c, with a trained score for each weight.

    Registered by `make_ticket` with `torch.nn.utils.parametrize`; the module keeps its class, its
    place in the model and its `weight`.

    Attributes:
        scores: float32 parameter of w's shape. frozen: int8 buffer of w's shape, or None.
        level: buffer with the constant t of a `Threshold`, or None. gens: int32 buffer, which
            event of IteRand drew each weight last (0: none), or None.
        identity: int64 buffer that names seed, tensor, distribution and version of the random
            numbers; a state of another ticket is refused by it.
        name, rule, scale: as given to `make_ticket`.
    """

    scores: nn.Parameter
    frozen: Tensor | None
    level: Tensor | None
    gens: Tensor | None
    identity: Tensor

    def __init__(
        self,
        name: str,
        scores: Tensor,
        rule: MaskRule,
        scale: Scale,
        frozen: Tensor | None,
        identity: int,
    ) -> None:
        super().__init__()
        self.name, self.rule, self.scale = name, rule, scale
        self.scores = nn.Parameter(scores)
        self.together: GlobalLevel | None = None
        # Known from the seed: not part of a state.
        self.register_buffer("frozen", frozen, persistent=False)
        level = rule.level(scores) if isinstance(rule, Threshold) else None
        self.register_buffer("level", level)
        self.register_buffer("gens", None)
        self.register_buffer("identity", torch.tensor(identity))

    def keep_generations(self) -> None:
        """From now on remember which event drew each weight last."""
        if self.gens is None:
            self.gens = torch.zeros_like(self.scores, dtype=torch.int32)

    def threshold(self, factor: float = 1.0) -> Tensor:
        """The t that this layer's scores are compared with now.

        Args:
            factor: of the share pruned, the rerand_rate of IteRand; a constant t has none.
        """
        if self.level is not None:
            return self.level
        assert isinstance(self.rule, TopK)
        p = self.rule.p * factor
        if self.together is not None:
            return self.together(p)
        return self.rule.level([self.rule.key(self.scores, self.frozen)], p)

    def mask(self, factor: float = 1.0) -> Tensor:
        """bool of w's shape: the weights that are kept now; see `threshold`."""
        return self.rule.kept(self.scores.detach(), self.threshold(factor), self.frozen)

    def forward(self, weight: Tensor) -> Tensor:
        """w m c, of weight's shape and dtype; of the module's own w without a gradient to it."""
        if isinstance(weight, nn.Parameter):  # not so what a meta-learner puts in its place
            weight = weight.detach()
        kept = self.mask()
        m = _StraightThrough.apply(self.scores, kept, self.rule.signed)
        return scaled(weight * m.to(weight.dtype), kept, self.rule, self.scale)

    def train(self, mode: bool = True) -> SupermaskParam:
        """Also looks at all scores anew, whoever wrote them."""
        if self.together is not None:
            self.together.forget()
        super().train(mode)
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        given = state.get(prefix + "identity")
        if given is not None and int(given) != int(self.identity):
            raise InferKitError(
                f"The state of {self.name!r} belongs to another ticket: another seed, distribution "
                "of the weights, or version of the random numbers.",
                "Make the ticket as the one was made whose state this is.",
            )
        if prefix + "gens" in state:
            self.keep_generations()
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        frozen = "" if self.frozen is None else f", {int((self.frozen != SEARCHED).sum())} frozen"
        return f"{self.rule}, scale={self.scale}{frozen}"


def scaled(weight: Tensor, kept: Tensor, rule: MaskRule, scale: Scale) -> Tensor:
    """w m times c.

    c is computed in float64, whose division and root every device rounds alike, and rounded once
    to the weight's dtype.
    """
    if scale is None:
        return weight
    if scale == "static":
        assert isinstance(rule, TopK)
        return weight * (1 / sqrt(1 - rule.p))
    share = kept.sum().clamp(min=1).to(torch.float64) / kept.numel()
    return weight * (1 / share.sqrt()).to(weight.dtype)
