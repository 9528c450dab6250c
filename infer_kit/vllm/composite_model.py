"""The composite that vLLM builds: its members' layers, one beside the other.

Every member keeps its own attention layers, and with them its own place in vLLM's KV cache; a
block of that cache then belongs to all members at once, so that prefix caching, chunked prefill and
preemption are what they are for one model. The hidden states of the members travel through the
runner side by side, and become logits in each member's own head.
"""

import copy
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import get_model_architecture, initialize_model
from vllm.model_executor.models import supports_multimodal
from vllm.model_executor.models.interfaces import has_inner_state, is_attention_free, is_hybrid
from vllm.model_executor.models.interfaces_base import is_text_generation_model
from vllm.transformers_utils.config import get_config, get_hf_text_config

from infer_kit.errors import InferKitError
from infer_kit.vllm.composite import FIELD, Composite, check_members

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "pt", "npcache", "dummy")


class InferKitCompositeForCausalLM(nn.Module):
    """Members m0, m1, …, of weight other than 0; see `infer_kit.vllm.composite`.

    Attributes:
        members: names of the members' attributes.
        vocab_size: V, columns of the logits.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Args:
        vllm_config: of the engine; its model's config carries the description.
        prefix: of the names of layers.

        Raises:
            InferKitError: a member, or a setting of the engine, that cannot be.
        """
        super().__init__()
        model_config = vllm_config.model_config
        composite = _description(model_config.hf_config)
        _check_engine(vllm_config)
        check_members(model_config.model, composite)
        paths, self._pooling = composite.pooling(model_config.model)
        self.vocab_size = int(model_config.get_vocab_size())
        self.members: tuple[str, ...] = tuple(f"m{place}" for place in range(len(paths)))
        self._widths: list[int] = []
        self._base = composite.merged(model_config.model)[0][0]
        self._paths = paths
        for name, path in zip(self.members, paths, strict=True):
            own = _member_config(vllm_config, path, is_base=path == self._base)
            # One integer in a layer's name is what vLLM numbers layers by: not "0.layers.1".
            layers = f"{prefix}.{name}" if prefix else name
            with set_model_tag(f"infer_kit_{name}"):
                setattr(self, name, initialize_model(vllm_config=own, prefix=layers))
        if paths[0] == self._base:
            for option, value in _weight_options(self._models()[0]).items():
                setattr(self, option, value)
        else:  # of weight 0: its files are not read
            self.is_unused_checkpoint_weight = lambda name: True
        self.secondary_weights = [
            DefaultModelLoader.Source(
                path, None, prefix=f"{name}.", **_source_options(getattr(self, name))
            )
            for name, path in zip(self.members, paths, strict=True)
            if path != self._base
        ]

    def _models(self) -> list[Any]:
        return [getattr(self, name) for name in self.members]

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embeddings of the first member; vLLM asks for them to be there."""
        embeddings: Tensor = self._models()[0].embed_input_ids(input_ids)
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Hidden states `[T, D_0 + D_1 + …]` of T tokens.

        Args:
            input_ids: `[T]`. positions: `[T]`.

        Raises:
            InferKitError: embeddings in place of ids, which belong to one model.
        """
        if inputs_embeds is not None or input_ids is None:
            raise InferKitError("A composite reads token ids: embeddings belong to one model.")
        hidden = [model(input_ids, positions, None, None) for model in self._models()]
        self._widths = [states.shape[-1] for states in hidden]
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Pooled scores at the scale of raw logits.

        Args:
            hidden_states: `[N, D_0 + D_1 + …]`.

        Returns:
            `[N, V]`, float32 where members were pooled; None on ranks that vLLM gives no logits.
        """
        parts = [hidden_states]
        if len(self.members) > 1:
            parts = [part.contiguous() for part in hidden_states.split(self._widths, dim=-1)]
        every = [m.compute_logits(part) for m, part in zip(self._models(), parts, strict=True)]
        logits = [scores[:, : self.vocab_size] for scores in every if scores is not None]
        if len(logits) < len(every):
            return None
        if self._pooling.is_identity:
            return logits[0]
        streams = torch.stack([scores.float() for scores in logits], dim=1)[:, :, None]
        if self._pooling.present.device != streams.device:
            self._pooling = self._pooling.on(streams.device)
        request = torch.zeros(len(streams), dtype=torch.long, device=streams.device)
        weights = self._pooling.weights_at(streams, request, 0)
        return self._pooling(streams, weights, request)[:, 0]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str] | None:
        """Give every member the tensors of its own checkpoint.

        Args:
            weights: those of the base, then those of the others, whose names begin with the
                member's.

        Returns:
            Names of what was loaded, or None where a member does not say.
        """
        base = "m0" if self._paths[0] == self._base else ""
        others = [name for name in self.members if name != base]

        def owner(item: tuple[str, Tensor]) -> str:
            first = item[0].partition(".")[0]
            return first if first in others else base

        loaded: set[str] = set()
        whole = True
        for name, items in groupby(weights, key=owner):
            if not name:
                continue  # the base of weight 0
            skip = 0 if name == base else len(name) + 1
            done = getattr(self, name).load_weights((key[skip:], value) for key, value in items)
            whole = whole and done is not None
            loaded |= {f"{name}.{key}" for key in done or ()}
        return loaded if whole else None


def _description(hf_config: "PretrainedConfig") -> Composite:
    """The composite that a config describes; without any, the base alone."""
    return Composite.of(hf_config) if hasattr(hf_config, FIELD) else Composite()


def _member_config(vllm_config: VllmConfig, path: str, is_base: bool) -> VllmConfig:
    """The engine's configuration as a member sees it: with its own model and sliding window."""
    engine = vllm_config.model_config
    revision = engine.revision if is_base else None
    saved = get_config(path, engine.trust_remote_code, revision)
    hf_config = saved
    if is_base:
        # with the user's other overrides, but under its own name and with all rows of its head
        hf_config = copy.deepcopy(engine.hf_config)
        hf_config.architectures = saved.architectures
        hf_config.vocab_size = saved.vocab_size
    own = vllm_config.with_hf_config(hf_config)
    model = own.model_config
    model.model, model.revision = path, revision
    # `with_hf_config` leaves these as the base's, whose window and sizes would be used silently.
    model.hf_text_config = get_hf_text_config(model.hf_config)
    model.model_arch_config = model.get_model_arch_config()
    model.attention_chunk_size = getattr(model.hf_text_config, "attention_chunk_size", None)
    if getattr(model.hf_text_config, "sliding_window", None) == 0:
        model.hf_text_config.sliding_window = None
    if not is_base and hasattr(model, "maybe_untie_word_embeddings"):
        model.maybe_untie_word_embeddings()  # of the base vLLM has done it
    own.cache_config = copy.copy(vllm_config.cache_config)
    own.cache_config.sliding_window = _whole_window(model.hf_text_config)
    _check_member(own, path, is_base)
    return own


def _whole_window(config: Any) -> int | None:
    """The window that all layers have; None where some have none, which say so themselves."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and any(kind != "sliding_attention" for kind in kinds):
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def _check_engine(config: VllmConfig) -> None:
    """Raise `InferKitError` for settings of the engine that composites do not run with."""
    model, speculative = config.model_config, config.speculative_config
    refused = {
        "LoRA adapters (they belong to one model)": config.lora_config is not None,
        "pipeline parallelism": config.parallel_config.pipeline_parallel_size > 1,
        "prompt embeddings": model.enable_prompt_embeds,
        f"quantization={model.quantization!r}": model.quantization is not None,
        f"load_format={config.load_config.load_format!r}": (
            config.load_config.load_format not in _LOAD_FORMATS
        ),
        "a draft model that reads hidden states": (
            speculative is not None and "ngram" not in str(speculative.method)
        ),
    }
    names = [name for name, is_set in refused.items() if is_set]
    if names:
        raise InferKitError(
            f"A composite does not run with {', '.join(names)}.", hint="Start the engine without."
        )


def _check_member(config: VllmConfig, path: str, is_base: bool) -> None:
    """Raise `InferKitError` for a model that cannot be one of several in an engine."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    model = config.model_config
    kind, architecture = get_model_architecture(model)
    cause = None
    if architecture.startswith("Transformers") or kind.__name__.startswith("Transformers"):
        cause = "vLLM has no implementation of its own for it"
    elif not is_text_generation_model(kind):
        cause = "it is no causal language model"
    elif supports_multimodal(kind):
        cause = "it takes images or other inputs beside text"
    elif has_inner_state(kind) or is_attention_free(kind) or is_hybrid(kind):
        cause = "it keeps a recurrent state"
    elif model.use_mla:
        cause = "its attention is latent (MLA), which has a KV cache of another kind"
    elif architecture in MODELS_CONFIG_MAP:
        cause = "it needs settings of the whole engine"
    if cause is not None:
        raise InferKitError(f"{path} ({architecture}) cannot be in a composite: {cause}.")
    if is_base:
        return
    if model.disable_sliding_window and model.hf_text_config is not None:
        model.disable_sliding_window = False  # the base's
    try:
        model.get_and_verify_max_len(model.max_model_len)
    except ValueError as error:
        raise InferKitError(
            f"{path} reads fewer tokens than the engine's max_model_len={model.max_model_len}.",
            hint="Start the engine with a smaller max_model_len.",
        ) from error


def _weight_options(model: Any) -> dict[str, Any]:
    """What a model tells vLLM's loader about its own files."""
    names = (
        "fall_back_to_pt_during_load",
        "allow_patterns_overrides",
        "is_unused_checkpoint_weight",
    )
    return {name: getattr(model, name) for name in names if hasattr(model, name)}


def _source_options(model: Any) -> dict[str, Any]:
    """The same for a source of its own."""
    options = _weight_options(model)
    names = {
        "fall_back_to_pt_during_load": "fall_back_to_pt",
        "allow_patterns_overrides": "allow_patterns_overrides",
        "is_unused_checkpoint_weight": "is_unused_weight",
    }
    return {names[name]: value for name, value in options.items()}
