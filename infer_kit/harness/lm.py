"""The model `infer-kit` of lm-evaluation-harness: plain, composed, or pooled over bytes.

    lm_eval --model infer-kit --model_args pretrained=BASE,reward=DIR,beta=1.0 ...
    lm_eval --model infer-kit --model_args pretrained=A,ensemble=B,weights=bayes ...

lm-evaluation-harness 0.4.13 looks for no plug-ins: `evals/lm_eval_cli.py` imports this module and
calls its command line. Later versions find it by the entry point group `lm_eval.models`.
"""

from collections.abc import Mapping
from typing import Any

from infer_kit.errors import InferKitError, MissingExtra
from infer_kit.harness.arguments import COMPOSED, POOLED

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise MissingExtra(
        "lm-evaluation-harness is not installed.", hint='pip install "lm_eval[hf]"'
    ) from error


@register_model("infer-kit", "infer_kit")
class InferKitLM(LM):
    """Makes a `ComposedHFLM` or an `EnsembleLM`, by which arguments are given.

    `ensemble=` or `vocabulary=bytes` asks for models over bytes (`infer_kit.harness.byte_lm`);
    everything else is lm-evaluation-harness's own `hf` model, composed with a reward where one is
    given (`infer_kit.harness.token_lm`).
    """

    def __new__(cls, **model_args: Any) -> Any:
        if is_pooled(model_args):
            from infer_kit.harness.byte_lm import EnsembleLM

            return EnsembleLM(**model_args)
        from infer_kit.harness.token_lm import ComposedHFLM

        return ComposedHFLM(**model_args)


def is_pooled(model_args: Mapping[str, Any]) -> bool:
    """Whether arguments ask for models over bytes.

    Raises:
        InferKitError: they ask for both kinds, or for a pool without a second model.
    """
    pooled = [name for name in POOLED if model_args.get(name) is not None]
    composed = [name for name in COMPOSED if model_args.get(name) is not None]
    if not pooled:
        return False
    if composed:
        raise InferKitError(
            f"{composed[0]}= adds scores of tokens and {pooled[0]}= pools over bytes; give one.",
            hint="Across tokenizers, from Python: infer_kit.reward.compose.over_bytes.",
        )
    if "ensemble" not in pooled and "vocabulary" not in pooled:
        raise InferKitError(
            f"{pooled[0]}= is for several models.",
            hint="Add ensemble=OTHER; or vocabulary=bytes to read one model over bytes.",
        )
    return True
