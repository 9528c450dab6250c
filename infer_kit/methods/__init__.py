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
        ("transformers", "vLLM"),
        "Yamaguchi et al., CVPR 2026, arXiv 2507.07685",
    ),
    Method(
        "ParallelICL",
        "Π_k p(y | chunk k, query)^w_k / Z, w = softmax(similarity / τ)",
        ("transformers", "vLLM"),
        "Yamaguchi et al., CVPR 2026, arXiv 2603.16092",
    ),
    Method(
        "VCD",
        "p(y | image, q)^(1+α) / p(y | noised image, q)^α",
        ("transformers", "vLLM"),
        "Leng et al., CVPR 2024, arXiv 2311.16922",
    ),
    Method(
        "ICD",
        "p(y | q)^(1+α) / p(y | disturbance, q)^α",
        ("transformers", "vLLM"),
        "Wang et al., ACL Findings 2024, arXiv 2403.18715",
    ),
    Method(
        "CFG",
        "p(y | prompt)^γ · p(y | negative)^(1−γ)",
        ("transformers", "vLLM"),
        "Sanchez et al., ICML 2024, arXiv 2306.17806",
    ),
    Method(
        "ContextAware",
        "p(y | context, q)^(1+α) / p(y | q)^α",
        ("transformers", "vLLM"),
        "Shi et al., NAACL 2024, arXiv 2305.14739",
    ),
    Method(
        "ContrastiveDecoding",
        "p_expert / p_amateur   or   p_expert^(1+β) / p_amateur^β",
        ("transformers", "vLLM"),
        "Li et al., ACL 2023, arXiv 2210.15097; O'Brien and Lewis, arXiv 2309.09117",
    ),
    Method(
        "Ensemble",
        "Σ_i w_i q_i(s)   or   Π_i q_i(s)^w_i / Z, models with different tokenizers, s a byte",
        ("transformers", "vLLM"),
        "Chijiwa et al., ICLR 2026, arXiv 2510.08102",
    ),
    Method(
        "ReducedLM",
        "q(s | y) = P(ys) / P(y), P(y) = Σ over all tokenisations of y",
        ("transformers",),
        "Chijiwa et al., ICLR 2026, arXiv 2510.08102",
    ),
    Method(
        "PortableReward",
        "p_base(y) e^{β r(y)} / Z, r trained once; tuned and untuned models as signed weights",
        ("transformers", "vLLM"),
        "Chijiwa et al., ICML 2025, arXiv 2502.12776",
    ),
    Method(
        "ZeroShotCBM",
        "p(class) = softmax(s T F^T w), w = argmin ½|v − F^T w|² + λ|w|₁, F the nearest phrases",
        ("transformers",),
        "Yamaguchi et al., arXiv 2502.09018",
    ),
    Method(
        "CoupledLM",
        "Π_k p_k(y)^w_k / Z   or   Σ_k w_k p_k(y)",
        ("transformers",),
        "any group of your own",
    ),
)
