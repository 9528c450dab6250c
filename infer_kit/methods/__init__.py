"""The methods, listed once: `infer-kit ls` reads this."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method as users see it.

    Attributes:
        name: of its class in `infer_kit`. formula: what it computes.
        backends: where it runs. paper: its source.
    """

    name: str
    formula: str
    backends: tuple[str, ...]
    paper: str


METHODS = (
    Method(
        "RED",
        "p(y | image, q) · p(y | rationale, q)^λ / Z",
        ("transformers",),
        "Yamaguchi et al., CVPR 2026, arXiv 2507.07685",
    ),
    Method(
        "CoupledLM",
        "Π_k p_k(y)^w_k / Z   or   Σ_k w_k p_k(y)",
        ("transformers",),
        "any group of your own",
    ),
)
