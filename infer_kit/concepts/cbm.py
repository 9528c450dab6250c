r"""Zero-shot concept bottleneck models (Z-CBM).

Yamaguchi et al., *Zero-shot Concept Bottleneck Models*, arXiv 2502.09018.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor
from tqdm import tqdm

from infer_kit.concepts.bank import ConceptBank
from infer_kit.concepts.classes import TEMPLATE, Head, ZeroShotHead
from infer_kit.concepts.encoders import encoder_for, image_features, unit
from infer_kit.concepts.explanation import Explanation
from infer_kit.concepts.lasso import (
    Code,
    Scale,
    Solver,
    Verdict,
    check_solver,
    lasso_lambda,
    solve,
    warn_of,
)
from infer_kit.concepts.retrieval import FaissIndex, Retriever, topk
from infer_kit.errors import InferKitError

K = 2048
"""Phrases that are retrieved for an image, as published."""

_MANY = 256  # images from which on there is a progress bar
_COMPARED, _OFF = 16, 0.05  # phrases of a retriever that are compared, and how far off they may be
_BATCH = 32  # images whose phrases are in memory together: at K 2048 and d 512 128 MiB


@dataclass(frozen=True)
class Prediction:
    """Classes of B images.

    Attributes:
        labels: the class of each, or None where no phrase has weight.
        probabilities: `[B, C]` float32, read from the rebuilt features.
        zero_shot: `[B, C]` float32, read from the image features themselves.
        code: the weights of the K phrases of each, with their gaps.
    """

    labels: list[str | None]
    probabilities: Tensor
    zero_shot: Tensor
    code: Code


@dataclass(frozen=True)
class Decomposition:
    """Image features rebuilt from phrases.

    Attributes:
        v: `[B, d]` unit image features. target: `[B, d]`, what is rebuilt: v, or v centred.
        rows: `[B, K]`, numbers of the phrases. F: `[B, K, d]` float32, their features.
        code: weights of the phrases. z: `[B, d]` float64, what the class is read from.
    """

    v: Tensor
    target: Tensor
    rows: Tensor
    F: Tensor
    code: Code
    z: Tensor


class ZeroShotCBM:
    r"""Explains an image as a short weighted list of phrases, and reads its class from that list.

    $$v = f_V(x)/|f_V(x)|, \quad F = \text{top-K of the bank by } F_j \cdot v, \quad
      w = \arg\min \tfrac12|v - F^\top w|^2 + \lambda|w|_1, \quad z = F^\top w, \quad
      p = \mathrm{softmax}(s\, T z)$$

    Nothing is trained. >>> ZeroShotCBM("demo-clip", bank, classes).explain(picture)

    Args:
        encoder: see `encoder_for`.
        bank: phrases and their features, by the same encoder.
        classes: names, put in `template` for T; of several templates the mean feature counts.
        k: K; None is 2048, or the whole bank where that is smaller.
        alpha, scale: of the lasso; see `lasso_lambda`. The default is the published one.
        positive: weights ≥ 0. None: where `center` is given.
        center: None, as published; or "modality": the mean image feature is taken from v and the
            mean of the bank from each phrase, both are made unit again, and the class is read from
            unit(unit(F^T w) + mean image). From SpLiCE (Bhalla et al., NeurIPS 2024), not Z-CBM.
        image_mean: `[d]`, mean of unit features of images like yours; needed by "modality".
        head: reads classes in the place of T: a `LinearProbe` over the same classes.
        retriever: finds the K phrases in the place of the exact search: a `FaissIndex`.
        solver, tol, max_iter: of the lasso; see `sparse_code`.
        device: where phrases are searched and weights are found; None takes a GPU if there is one.

    Differs from the paper: the lasso is solved to a certified gap; with weights of both signs and
    λ this small any dictionary of K > d rows rebuilds v, so an accuracy says nothing about the
    phrases: see `evaluate`, which prints it beside that of a random dictionary.

    Raises:
        InferKitError: encoder and bank do not fit; an argument is out of its range. Class names
            that are phrases of the bank give a warning.
    """

    def __init__(
        self,
        encoder: Any,
        bank: ConceptBank,
        classes: Sequence[str],
        *,
        template: str | Sequence[str] = TEMPLATE,
        k: int | None = None,
        alpha: float = 1e-5,
        scale: Scale = "sklearn",
        positive: bool | None = None,
        center: Literal["modality"] | None = None,
        image_mean: Any = None,
        head: Head | None = None,
        retriever: Retriever | None = None,
        solver: Solver = "auto",
        tol: float = 1e-9,
        max_iter: int = 3000,
        device: str | None = None,
    ) -> None:
        self.encoder = encoder_for(encoder, device)
        if not isinstance(bank, ConceptBank):
            raise InferKitError(
                f"bank is a {type(bank).__name__}; expected a ConceptBank.",
                hint="ConceptBank.build(phrases, encoder), or ConceptBank.load(folder).",
            )
        bank.check(self.encoder)
        self.bank = bank
        self.k = _checked_k(k, len(bank))
        lasso_lambda(alpha, bank.dim, scale)
        check_solver(solver, tol, max_iter)
        self.alpha, self.scale, self.solver, self.tol = alpha, scale, solver, tol
        self.max_iter = max_iter
        if center not in (None, "modality"):
            raise InferKitError(f"center is None or 'modality', got {center!r}.")
        self.center = center
        self.positive = center is not None if positive is None else positive
        self.image_mean = _checked_mean(image_mean, center, bank.dim)
        if center is not None and retriever is not None:
            raise InferKitError("A retriever searches phrases as they are, not centred ones.")
        if isinstance(retriever, FaissIndex):
            retriever.check(bank.features)
        self.retriever = retriever
        zero_shot = ZeroShotHead.of(self.encoder, classes, template)
        self.classes = zero_shot.classes
        if head is not None and tuple(head.classes) != self.classes:
            raise InferKitError(
                f"The head reads {list(head.classes)}, classes is {list(self.classes)}."
            )
        self.head: Head = zero_shot if head is None else head
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise InferKitError(f"Unknown device {device!r}: {error}") from error
        inside = bank.inside(self.classes)
        if inside:
            warnings.warn(
                f"{len(inside)} of {len(self.classes)} class names are phrases of the bank "
                f"({', '.join(inside[:5])}{', …' if len(inside) > 5 else ''}): the label is read "
                "from its own name then. bank.without(classes, encoder) takes them out.",
                stacklevel=2,
            )

    @overload
    def explain(self, images: list[Any], *, features: Any = None) -> list[Explanation]: ...

    @overload
    def explain(self, images: Any = None, *, features: Any = None) -> Any: ...

    def explain(
        self, images: Any = None, *, features: Any = None
    ) -> Explanation | list[Explanation]:
        """An image's phrases with their weights, and the class that they give.

        Args:
            images: a PIL image, path or URL; or a list of these.
            features: image features, `[d]` or `[B, d]`, in the place of images.

        Returns:
            An explanation, or a list of them. A warning names those that say nothing: no phrase
            has weight, or the phrases hardly rebuild the image.

        Raises:
            InferKitError: an image cannot be read; names it.
        """
        v, alone = self._features(images, features)
        found = [
            Explanation.of(self, part, b) for part in self.decompose(v) for b in range(len(part.v))
        ]
        empty = [n for n, one in enumerate(found) if one.says_nothing]
        if empty:
            warnings.warn(
                f"{len(empty)} of {len(found)} explanations say nothing (first: image {empty[0]}): "
                f"{found[empty[0]].remarks[0]}. Give a smaller alpha, or another bank.",
                stacklevel=2,
            )
        return found[0] if alone else found

    def predict(self, images: Any = None, *, features: Any = None) -> Prediction:
        """The classes of images; see `explain` for its arguments."""
        v, _ = self._features(images, features)
        read, codes = [], []
        for part in self.decompose(v):  # whose phrases are not kept
            read.append(self.read(part.z).cpu())
            codes.append(part.code)
        probabilities, code = torch.cat(read), Code.cat(codes)
        best = zip(code.empty.tolist(), probabilities.argmax(1).tolist(), strict=True)
        return Prediction(
            labels=[None if none else self.classes[c] for none, c in best],
            probabilities=probabilities,
            zero_shot=self.read(v),
            code=code,
        )

    def read(self, z: Tensor) -> Tensor:
        """Probabilities of the classes, `[B, C]` float32 of features `[B, d]`."""
        return self.head.logits(z).softmax(1).float()

    def decompose(self, v: Tensor, dictionary: Tensor | None = None) -> Iterator[Decomposition]:
        """Image features rebuilt, some at a time.

        Args:
            v: `[B, d]` unit features.
            dictionary: `[K, d]` unit rows in the place of the bank's phrases.

        A warning at the end names those whose weights did not converge, or are not unique.
        """
        shown = len(v) >= _MANY
        random = None if dictionary is None else dictionary.to(self.device)
        said = []
        with tqdm(total=len(v), desc="explaining", disable=not shown) as bar:
            for part in v.split(_BATCH):
                found = self._decompose(part.to(self.device), random)
                said.append(found.code.verdict())
                yield found
                bar.update(len(part))
        what = "The lasso" if dictionary is None else "The lasso of the control's dictionary"
        warn_of(Verdict.cat(said), self.tol, what, level=4)

    def _decompose(self, v: Tensor, dictionary: Tensor | None) -> Decomposition:
        target = self.centred(v)
        if dictionary is not None:
            rows = torch.arange(len(dictionary), device=v.device).expand(len(v), -1)
            F = dictionary.to(v).expand(len(v), -1, -1)
        else:
            mean = self.bank.mean if self.center else None
            if self.retriever is None:
                _, rows = topk(target, self.bank.features, self.k, mean=mean)
            else:
                scores, rows = self.retriever.topk(target, self.k)
                self._check_scores(target, scores, rows)
            F = self.phrase_features(self.bank.rows(rows).to(v.device))
        if v.device.type == "mps":  # which has no float64
            v, target, rows, F = v.cpu(), target.cpu(), rows.cpu(), F.cpu()
        code, _ = solve(
            F, target, self.alpha, self.scale, self.positive, self.solver, self.tol, self.max_iter
        )
        return Decomposition(v, target, rows, F, code, self.rebuilt(code.z))

    def _check_scores(self, target: Tensor, scores: Tensor, rows: Tensor) -> None:
        """Refuse a retriever whose scores are not those of the bank's phrases."""
        some = rows[:, : self.k : max(1, self.k // _COMPARED)]
        own = (self.bank.rows(some).cpu() @ target.float().cpu()[:, :, None])[:, :, 0]
        found = scores[:, : self.k : max(1, self.k // _COMPARED)].float().cpu()
        off = float((own - found).abs().mean())
        if off > _OFF:
            raise InferKitError(
                f"The retriever's scores are {off:.3f} off those of the phrases that it names, on "
                "average: it is of another bank.",
                hint="Build its index from this bank's features.",
            )

    def centred(self, v: Tensor) -> Tensor:
        """What is rebuilt of image features `[B, d]`."""
        if self.center is None:
            return v
        return torch.nn.functional.normalize(v - self.image_mean.to(v), dim=-1)

    def phrase_features(self, F: Tensor) -> Tensor:
        """What phrases of features `[..., d]` rebuild with."""
        if self.center is None:
            return F
        return torch.nn.functional.normalize(F - self.bank.mean.to(F), dim=-1)

    def rebuilt(self, z: Tensor) -> Tensor:
        """What classes are read from, of rebuilt features `[B, d]`."""
        if self.center is None:
            return z
        whole = torch.nn.functional.normalize(z, dim=-1) + self.image_mean.to(z)
        return torch.nn.functional.normalize(whole, dim=-1)

    def features(self, images: Any = None, features: Any = None) -> Tensor:
        """Unit features `[B, d]` of images, or of features in their place; see `explain`."""
        return self._features(images, features)[0]

    def _features(self, images: Any, features: Any) -> tuple[Tensor, bool]:
        """Unit features `[B, d]` of what a user passed, and whether it was one image."""
        if (images is None) == (features is None):
            raise InferKitError("Give images, or features in their place.")
        if features is None:
            alone = not isinstance(images, Sequence) or isinstance(images, str)
            many = [images] if alone else list(images)
            if not many:
                raise InferKitError("No image is given: the list is empty.")
            return image_features(self.encoder, many), alone
        try:
            table = torch.as_tensor(features).float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InferKitError(f"features is no table of numbers: {error}") from error
        alone = table.dim() == 1
        table = table[None] if alone else table
        if table.dim() != 2 or table.shape[1] != self.bank.dim or not len(table):
            raise InferKitError(
                f"features have shape {list(table.shape)}; expected [B, {self.bank.dim}]."
            )
        return unit(table, [f"image {n}" for n in range(len(table))]), alone


def _checked_k(k: int | None, phrases: int) -> int:
    if k is None:
        return min(K, phrases)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= phrases:
        raise InferKitError(
            f"k={k!r} phrases are asked for, the bank has {phrases}.",
            hint=f"Give a k from 1 to {phrases}; None takes {min(K, phrases)}.",
        )
    return k


def _checked_mean(mean: Any, center: str | None, d: int) -> Tensor:
    if center is None:
        if mean is not None:
            raise InferKitError("image_mean is used with center='modality' alone.")
        return torch.zeros(d)
    if mean is None:
        raise InferKitError(
            "center='modality' needs image_mean, the mean of unit image features.",
            hint="image_features(encoder, some_images).mean(0), of images like yours.",
        )
    mean = torch.as_tensor(mean).float().cpu()
    if mean.shape != (d,) or not bool(mean.isfinite().all()):
        raise InferKitError(f"image_mean has shape {list(mean.shape)}; expected [{d}] numbers.")
    if float(mean.norm()) > 1 + 1e-3:
        raise InferKitError(
            f"image_mean has length {float(mean.norm()):.3g}; that of unit features is at most 1.",
            hint="image_features(encoder, some_images).mean(0)",
        )
    return mean
