"""Tells lmms-eval of the model `infer-kit`: the entry point group `lmms_eval.models`.

python -m lmms_eval --model infer-kit --model_args pretrained=PATH,method=red,weight=0.5 ...
"""

from typing import Any

MODEL = "infer-kit"


def manifest() -> Any:
    """The `ModelManifest`; lmms-eval imports the class when the model is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id=MODEL,
        simple_class_path="infer_kit.harness.lmms_model.InferKitLMMS",
        aliases=("infer_kit",),
    )
