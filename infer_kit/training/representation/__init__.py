"""Methods that train representations: CLIP-Refine, AdaRand, MGR, pseudo pre-training."""

from infer_kit.training.representation.clip_losses import (
    align_loss,
    contrastive_loss,
    hycd_loss,
    natural_similarity,
    rafa_loss,
    similarities,
)
from infer_kit.training.representation.clip_refine import (
    CLIPRefineConfig,
    CLIPRefineMixin,
    CLIPRefineTrainer,
    refine_arguments,
)
from infer_kit.training.representation.clip_report import CLIPReport, measure_clip
from infer_kit.training.representation.image_text import (
    CaptionedImages,
    ImageTextCollator,
    features_of_pairs,
)
from infer_kit.training.representation.modality import (
    ModalityReport,
    alignment,
    modality_gap,
    recall_at_k,
    uniformity,
)

__all__ = [
    "CLIPRefineConfig",
    "CLIPRefineMixin",
    "CLIPRefineTrainer",
    "CLIPReport",
    "CaptionedImages",
    "ImageTextCollator",
    "ModalityReport",
    "align_loss",
    "alignment",
    "contrastive_loss",
    "features_of_pairs",
    "hycd_loss",
    "measure_clip",
    "modality_gap",
    "natural_similarity",
    "rafa_loss",
    "recall_at_k",
    "refine_arguments",
    "similarities",
    "uniformity",
]
