"""infer_kit: make a model answer better at inference time, without retraining it.

Names load on first use (PEP 562): `import infer_kit` loads neither torch nor transformers.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer_kit.concepts.bank import ConceptBank as ConceptBank
    from infer_kit.concepts.cbm import ZeroShotCBM as ZeroShotCBM
    from infer_kit.concepts.explanation import Explanation as Explanation
    from infer_kit.engine.coupled_lm import CoupledLM as CoupledLM
    from infer_kit.engine.image_features import ImageFeatures as ImageFeatures
    from infer_kit.errors import InferKitError as InferKitError
    from infer_kit.methods.contrastive import CFG as CFG
    from infer_kit.methods.contrastive import ICD as ICD
    from infer_kit.methods.contrastive import VCD as VCD
    from infer_kit.methods.contrastive import ContextAware as ContextAware
    from infer_kit.methods.contrastive import ContrastiveDecoding as ContrastiveDecoding
    from infer_kit.methods.parallel_icl import ParallelICL as ParallelICL
    from infer_kit.methods.parallel_icl import ParallelICLOutput as ParallelICLOutput
    from infer_kit.methods.prompts import Prompts as Prompts
    from infer_kit.methods.recipe import MethodOutput as MethodOutput
    from infer_kit.methods.red import RED as RED
    from infer_kit.methods.red import REDOutput as REDOutput
    from infer_kit.methods.sweep import Sweep as Sweep
    from infer_kit.pool import Step as Step
    from infer_kit.reward.compose import compose as compose
    from infer_kit.reward.portable import PortableReward as PortableReward
    from infer_kit.streams import Group as Group
    from infer_kit.streams import Stream as Stream
    from infer_kit.trace import Trace as Trace
    from infer_kit.vocab.ensemble import Ensemble as Ensemble
    from infer_kit.vocab.ensemble import ReducedLM as ReducedLM
    from infer_kit.vocab.results import EnsembleOutput as EnsembleOutput
    from infer_kit.vocab.results import LogProb as LogProb
    from infer_kit.vocab.submap import common_vocabulary as common_vocabulary
    from infer_kit.vocab.vocabulary import Vocabulary as Vocabulary

__version__ = "0.1.0"

_HOME = {
    "CFG": "infer_kit.methods.contrastive",
    "ConceptBank": "infer_kit.concepts.bank",
    "ContextAware": "infer_kit.methods.contrastive",
    "ContrastiveDecoding": "infer_kit.methods.contrastive",
    "CoupledLM": "infer_kit.engine.coupled_lm",
    "Ensemble": "infer_kit.vocab.ensemble",
    "EnsembleOutput": "infer_kit.vocab.results",
    "Explanation": "infer_kit.concepts.explanation",
    "Group": "infer_kit.streams",
    "ICD": "infer_kit.methods.contrastive",
    "ImageFeatures": "infer_kit.engine.image_features",
    "InferKitError": "infer_kit.errors",
    "LogProb": "infer_kit.vocab.results",
    "MethodOutput": "infer_kit.methods.recipe",
    "ParallelICL": "infer_kit.methods.parallel_icl",
    "ParallelICLOutput": "infer_kit.methods.parallel_icl",
    "PortableReward": "infer_kit.reward.portable",
    "Prompts": "infer_kit.methods.prompts",
    "RED": "infer_kit.methods.red",
    "REDOutput": "infer_kit.methods.red",
    "ReducedLM": "infer_kit.vocab.ensemble",
    "Step": "infer_kit.pool",
    "Stream": "infer_kit.streams",
    "Sweep": "infer_kit.methods.sweep",
    "Trace": "infer_kit.trace",
    "VCD": "infer_kit.methods.contrastive",
    "Vocabulary": "infer_kit.vocab.vocabulary",
    "ZeroShotCBM": "infer_kit.concepts.cbm",
    "common_vocabulary": "infer_kit.vocab.submap",
    "compose": "infer_kit.reward.compose",
}

__all__ = [
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        close = difflib.get_close_matches(name, _HOME, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise AttributeError(f"module 'infer_kit' has no attribute {name!r}.{suggestion}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
