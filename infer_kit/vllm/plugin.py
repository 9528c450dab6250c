"""What vLLM calls in each of its processes: the project's model classes, by name.

Nothing is imported but vLLM's registry, and nothing changes for engines that name none of them.
"""

_CLASSES = {
    "InferKitCompositeForCausalLM": "infer_kit.vllm.composite_model",
    "InferKitNextTokenModel": "infer_kit.vllm.nexttoken",
}


def register() -> None:
    """Tell vLLM where the classes are; entry point `vllm.general_plugins`."""
    from vllm import ModelRegistry

    for name, module in _CLASSES.items():
        ModelRegistry.register_model(name, f"{module}:{name}")
