r"""CIDEr, BLEU and ROUGE-L of captions, as the COCO evaluation has them.

    score, each = cider(["a dog runs"], [["A dog is running.", "the dog runs"]])

The scorers are those of pycocoevalcap. They are only right on Penn Treebank tokens: on raw strings
"grass." is another word than "grass". So every function here takes captions as they were written
and tokenises predictions and references alike (`ptb_tokens`, Java's tokens without Java).

Sources: CIDEr, Vedantam et al. 2015, arXiv 1411.5726 (the variant CIDEr-D); BLEU, Papineni et al.
2002, closest reference length; ROUGE-L, Lin 2004, β = 1.2.

Differs from pycocoevalcap: there one can forget the tokeniser; scores and tokens are the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from infer_kit.errors import InferKitError, MissingExtra
from infer_kit.evaluation.metrics.ptb import ptb_tokens

__all__ = ["bleu", "cider", "ptb_tokens", "rouge_l"]


def cider(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, np.ndarray]:
    r"""CIDEr-D of the whole and `[N]` of each sample, times 10 as usual (0 to 10).

    $10 \cdot \frac{1}{4}\sum_{n=1}^4 \frac{1}{m}\sum_j e^{-(l - l_j)^2 / 72}
    \frac{\min(g^n, g^n_j) \cdot g^n_j}{|g^n| |g^n_j|}$

    where $g^n$ and $g^n_j$ weigh the n-grams of the prediction and of reference $j$ by tf·idf, and
    $l$, $l_j$ are lengths. Frequencies are counted over the references of *these* samples: figures
    of different sets of samples cannot be compared, and of one sample alone the score is 0.

    Args:
        predictions: N captions. references: N lists of at least one caption.
    """
    from_package = _scorer("cider.cider", "Cider")
    score, each = from_package.compute_score(*_tokenised(predictions, references))
    return float(score), np.asarray(each, dtype=float)


def bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[tuple[float, float, float, float], np.ndarray]:
    r"""BLEU-1 to BLEU-4 of the whole, and `[N, 4]` of each sample (0 to 1).

    $\mathrm{BLEU}_n = \min(1, e^{1 - r/c}) \prod_{k \le n} p_k^{1/n}$ with clipped precisions $p_k$
    over all samples, $c$ tokens predicted, and $r$ the sum of the closest reference lengths.

    Args:
        predictions: N captions. references: N lists of at least one caption.
    """
    from_package = _scorer("bleu.bleu", "Bleu")
    scores, each = from_package.compute_score(*_tokenised(predictions, references), verbose=0)
    one, two, three, four = (float(score) for score in scores)
    return (one, two, three, four), np.asarray(each, dtype=float).T


def rouge_l(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, np.ndarray]:
    r"""Mean ROUGE-L, and `[N]` of each sample (0 to 1).

    $\frac{(1 + \beta^2) P R}{R + \beta^2 P}$, $\beta = 1.2$, where $P$ and $R$ are the longest
    common subsequence over the lengths of prediction and reference, each the best over references.

    Args:
        predictions: N captions. references: N lists of at least one caption.
    """
    from_package = _scorer("rouge.rouge", "Rouge")
    score, each = from_package.compute_score(*_tokenised(predictions, references))
    return float(score), np.asarray(each, dtype=float)


def _scorer(module: str, name: str) -> Any:
    from importlib import import_module

    try:
        return getattr(import_module(f"pycocoevalcap.{module}"), name)()
    except ImportError as error:
        raise MissingExtra(
            "pycocoevalcap is not installed.", hint="pip install 'infer-kit[evals]'"
        ) from error


def _tokenised(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and predictions by number, as the scorers take them."""
    if len(predictions) != len(references) or not len(predictions):
        raise InferKitError(
            f"Got {len(predictions)} captions and references for {len(references)} samples."
        )
    for n, several in enumerate(references):
        if isinstance(several, str) or not len(several):
            raise InferKitError(
                f"references[{n}] must be a list of at least one caption, got {several!r}."
            )
    return (
        {n: [_joined(text) for text in several] for n, several in enumerate(references)},
        {n: [_joined(text)] for n, text in enumerate(predictions)},
    )


def _joined(caption: str) -> str:
    return " ".join(ptb_tokens(caption))
