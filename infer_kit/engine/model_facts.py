"""What the engine has to know of a model's architecture."""

import inspect

from transformers import PreTrainedModel

_BOTH_WAYS = "its prompt is read in both directions, demonstrations in the light of the query"
_IMAGE_AT_ONCE = "the tokens of an image see one another, and only in a pass over the whole prompt"
_RESTARTS = "its recurrent layers start anew with every pass over several tokens"
_WHOLE_PROMPT = {
    "paligemma": _BOTH_WAYS,
    "pi0": _BOTH_WAYS,
    "git": _BOTH_WAYS,
    "jamba": _RESTARTS,
    "mamba": _RESTARTS,
    "falcon_mamba": _RESTARTS,
}
# Attention between the tokens of an image, told by the config or by an input where there is one.
_IMAGES_AT_ONCE = {"gemma3", "molmo2", "step3p7", "deepseek_ocr2", "unlimited_ocr"}


def forward_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the arguments that the model's forward takes."""
    return set(inspect.signature(model.forward).parameters)


def cross_attention_layers(model: PreTrainedModel) -> frozenset[int]:
    """Indices of the layers whose cache holds the image, not the tokens (Mllama)."""
    config = model.config.get_text_config(decoder=True)
    return frozenset(getattr(config, "cross_attention_layers", None) or ())


def why_not_continued(model: PreTrainedModel, prefix_images: int, later_images: int) -> str | None:
    """Why a prompt cannot be read in two passes, a prefix and the rest; None where it can.

    Args:
        prefix_images: pictures in the prefix. later_images: pictures after it.
    """
    name = model.config.model_type
    config = model.config.get_text_config(decoder=True)
    if name in _WHOLE_PROMPT:
        return _WHOLE_PROMPT[name]
    if config.model_type in _WHOLE_PROMPT:
        return _WHOLE_PROMPT[config.model_type]
    both_ways = getattr(config, "use_bidirectional_attention", None)
    if both_ways in (True, "all"):
        return _BOTH_WAYS
    if (prefix_images or later_images) and cross_attention_layers(model):
        return "its layers keep states of the images apart from the tokens (cross-attention)"
    if later_images and (name in _IMAGES_AT_ONCE or both_ways == "vision"):
        return _IMAGE_AT_ONCE
    if not encodes_images_apart(model) and prefix_images and later_images:
        return "it encodes a picture alone otherwise than one among several"
    return None


def encodes_images_apart(model: PreTrainedModel) -> bool:
    """Whether an image's features do not depend on how many others there are (LLaVA-OneVision)."""
    encoder = getattr(model, "get_image_features", None)
    return encoder is None or "batch_num_images" not in inspect.signature(encoder).parameters
