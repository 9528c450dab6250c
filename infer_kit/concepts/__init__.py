"""Zero-shot concept bottleneck models: images explained by a short list of phrases.

>>> import infer_kit as ik
>>> from infer_kit.demo import clip
>>> bank = ik.ConceptBank.build(clip.PHRASES, "demo-clip")
>>> cbm = ik.ZeroShotCBM("demo-clip", bank, clip.CLASSES)

Yamaguchi et al., *Zero-shot Concept Bottleneck Models*, arXiv 2502.09018.
"""

from infer_kit.concepts.bank import ConceptBank
from infer_kit.concepts.cbm import Prediction, ZeroShotCBM
from infer_kit.concepts.certificate import Problem, duality_gap, kkt_violation
from infer_kit.concepts.concept_score import concept_score
from infer_kit.concepts.deletion import DeletionCurve, deletion_curve
from infer_kit.concepts.encoders import (
    Encoder,
    OpenCLIPEncoder,
    TransformersEncoder,
    encoder_for,
    image_features,
    text_features,
)
from infer_kit.concepts.explanation import Explanation
from infer_kit.concepts.lasso import Code, lasso_lambda, sparse_code
from infer_kit.concepts.measures import Evaluation, evaluate, random_dictionary_control
from infer_kit.concepts.phrases import lexicon_noun_phrases, noun_phrases, wordnet_nouns
from infer_kit.concepts.probe import IMAGENET, LinearProbe, ProbeRecipe
from infer_kit.concepts.retrieval import FaissIndex, topk

__all__ = [
    "IMAGENET",
    "Code",
    "ConceptBank",
    "DeletionCurve",
    "Encoder",
    "Evaluation",
    "Explanation",
    "FaissIndex",
    "LinearProbe",
    "OpenCLIPEncoder",
    "Prediction",
    "ProbeRecipe",
    "Problem",
    "TransformersEncoder",
    "ZeroShotCBM",
    "concept_score",
    "deletion_curve",
    "duality_gap",
    "encoder_for",
    "evaluate",
    "image_features",
    "kkt_violation",
    "lasso_lambda",
    "lexicon_noun_phrases",
    "noun_phrases",
    "random_dictionary_control",
    "sparse_code",
    "text_features",
    "topk",
    "wordnet_nouns",
]
