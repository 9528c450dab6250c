"""Methods that train representations: CLIP-Refine, AdaRand, MGR, pseudo pre-training and P-SSL.

Names load on first use: transformers' trainer is imported with the trainers alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer_kit.training.representation.adarand import AdaRandLoss as AdaRandLoss
    from infer_kit.training.representation.adarand import AdaRandMixin as AdaRandMixin
    from infer_kit.training.representation.adarand import AdaRandTrainer as AdaRandTrainer
    from infer_kit.training.representation.clip_losses import align_loss as align_loss
    from infer_kit.training.representation.clip_losses import contrastive_loss as contrastive_loss
    from infer_kit.training.representation.clip_losses import hycd_loss as hycd_loss
    from infer_kit.training.representation.clip_losses import (
        natural_similarity as natural_similarity,
    )
    from infer_kit.training.representation.clip_losses import rafa_loss as rafa_loss
    from infer_kit.training.representation.clip_losses import similarities as similarities
    from infer_kit.training.representation.clip_refine import CLIPRefineConfig as CLIPRefineConfig
    from infer_kit.training.representation.clip_refine import CLIPRefineMixin as CLIPRefineMixin
    from infer_kit.training.representation.clip_refine import CLIPRefineTrainer as CLIPRefineTrainer
    from infer_kit.training.representation.clip_refine import refine_arguments as refine_arguments
    from infer_kit.training.representation.clip_report import CLIPReport as CLIPReport
    from infer_kit.training.representation.clip_report import measure_clip as measure_clip
    from infer_kit.training.representation.consistency import (
        FeatureConsistency as FeatureConsistency,
    )
    from infer_kit.training.representation.consistency import StrongAugment as StrongAugment
    from infer_kit.training.representation.consistency import pcr_loss as pcr_loss
    from infer_kit.training.representation.cvae import ConditionalVAE as ConditionalVAE
    from infer_kit.training.representation.cvae import fit_cvae as fit_cvae
    from infer_kit.training.representation.diffusers_generator import (
        DiffusersGenerator as DiffusersGenerator,
    )
    from infer_kit.training.representation.figures import modality_figure as modality_figure
    from infer_kit.training.representation.gaussian_prior import (
        ClassGaussianPrior as ClassGaussianPrior,
    )
    from infer_kit.training.representation.gaussian_prior import GaussianPrior as GaussianPrior
    from infer_kit.training.representation.generators import Generator as Generator
    from infer_kit.training.representation.image_text import CaptionedImages as CaptionedImages
    from infer_kit.training.representation.image_text import ImageTextCollator as ImageTextCollator
    from infer_kit.training.representation.image_text import features_of_pairs as features_of_pairs
    from infer_kit.training.representation.meta_sampling import Finder as Finder
    from infer_kit.training.representation.meta_sampling import draw as draw
    from infer_kit.training.representation.meta_sampling import hypergradient as hypergradient
    from infer_kit.training.representation.meta_sampling import mps_step as mps_step
    from infer_kit.training.representation.mgr import MGRTerms as MGRTerms
    from infer_kit.training.representation.mgr import mgr_step as mgr_step
    from infer_kit.training.representation.mgr_trainer import MGRConfig as MGRConfig
    from infer_kit.training.representation.mgr_trainer import MGRMixin as MGRMixin
    from infer_kit.training.representation.mgr_trainer import MGRTrainer as MGRTrainer
    from infer_kit.training.representation.modality import ModalityReport as ModalityReport
    from infer_kit.training.representation.modality import alignment as alignment
    from infer_kit.training.representation.modality import modality_gap as modality_gap
    from infer_kit.training.representation.modality import recall_at_k as recall_at_k
    from infer_kit.training.representation.modality import uniformity as uniformity
    from infer_kit.training.representation.pseudo_pretraining import (
        PseudoPretraining as PseudoPretraining,
    )
    from infer_kit.training.representation.pseudo_pretraining import new_head as new_head
    from infer_kit.training.representation.pseudo_pretraining import (
        pseudo_pretrain as pseudo_pretrain,
    )
    from infer_kit.training.representation.pseudo_samples import PseudoSampler as PseudoSampler
    from infer_kit.training.representation.pseudo_samples import PseudoSamples as PseudoSamples
    from infer_kit.training.representation.pseudo_samples import (
        pseudo_conditional_samples as pseudo_conditional_samples,
    )
    from infer_kit.training.representation.pseudo_samples import (
        source_probabilities as source_probabilities,
    )
    from infer_kit.training.representation.pssl_trainer import PSSLMixin as PSSLMixin
    from infer_kit.training.representation.pssl_trainer import PSSLTrainer as PSSLTrainer
    from infer_kit.training.representation.relatedness import RelatednessReport as RelatednessReport
    from infer_kit.training.representation.relatedness import Thresholds as Thresholds
    from infer_kit.training.representation.relatedness import (
        relatedness_report as relatedness_report,
    )
    from infer_kit.training.representation.semi_supervised import (
        PseudoSemiSupervised as PseudoSemiSupervised,
    )
    from infer_kit.training.representation.semi_supervised import (
        SemiSupervisedLoss as SemiSupervisedLoss,
    )
    from infer_kit.training.representation.semi_supervised import UDALoss as UDALoss
    from infer_kit.training.representation.semi_supervised import ramp as ramp

_HOME = {
    "AdaRandLoss": "adarand",
    "AdaRandMixin": "adarand",
    "AdaRandTrainer": "adarand",
    "CLIPRefineConfig": "clip_refine",
    "CLIPRefineMixin": "clip_refine",
    "CLIPRefineTrainer": "clip_refine",
    "CLIPReport": "clip_report",
    "CaptionedImages": "image_text",
    "ClassGaussianPrior": "gaussian_prior",
    "ConditionalVAE": "cvae",
    "DiffusersGenerator": "diffusers_generator",
    "FeatureConsistency": "consistency",
    "Finder": "meta_sampling",
    "GaussianPrior": "gaussian_prior",
    "Generator": "generators",
    "ImageTextCollator": "image_text",
    "MGRConfig": "mgr_trainer",
    "MGRMixin": "mgr_trainer",
    "MGRTerms": "mgr",
    "MGRTrainer": "mgr_trainer",
    "ModalityReport": "modality",
    "PSSLMixin": "pssl_trainer",
    "PSSLTrainer": "pssl_trainer",
    "PseudoPretraining": "pseudo_pretraining",
    "PseudoSampler": "pseudo_samples",
    "PseudoSamples": "pseudo_samples",
    "PseudoSemiSupervised": "semi_supervised",
    "RelatednessReport": "relatedness",
    "SemiSupervisedLoss": "semi_supervised",
    "StrongAugment": "consistency",
    "Thresholds": "relatedness",
    "UDALoss": "semi_supervised",
    "align_loss": "clip_losses",
    "alignment": "modality",
    "contrastive_loss": "clip_losses",
    "draw": "meta_sampling",
    "features_of_pairs": "image_text",
    "fit_cvae": "cvae",
    "hycd_loss": "clip_losses",
    "hypergradient": "meta_sampling",
    "measure_clip": "clip_report",
    "mgr_step": "mgr",
    "modality_figure": "figures",
    "modality_gap": "modality",
    "mps_step": "meta_sampling",
    "natural_similarity": "clip_losses",
    "new_head": "pseudo_pretraining",
    "pcr_loss": "consistency",
    "pseudo_conditional_samples": "pseudo_samples",
    "pseudo_pretrain": "pseudo_pretraining",
    "rafa_loss": "clip_losses",
    "ramp": "semi_supervised",
    "recall_at_k": "modality",
    "refine_arguments": "clip_refine",
    "relatedness_report": "relatedness",
    "similarities": "clip_losses",
    "source_probabilities": "pseudo_samples",
    "uniformity": "modality",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
