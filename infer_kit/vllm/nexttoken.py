"""Next-token models: whole rows of log-probabilities for given prefixes, from one forward each.

An engine that is started so does not generate; it returns what `generate` would draw from::

    llm = LLM("model", runner="pooling", hf_overrides=next_token_overrides())
    rows = next_token_rows(llm, [[5, 6, 7], [5, 6, 8]])     # [2, V] log-probabilities
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from vllm.model_executor.layers.pooler import Pooler

from infer_kit.errors import InferKitError
from infer_kit.vllm.composite_model import InferKitCompositeForCausalLM

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.v1.pool.metadata import PoolingMetadata

ARCHITECTURE = "InferKitNextTokenModel"
_TASK: Literal["classify"] = "classify"


class NextTokenRows(Pooler):
    """Log-probabilities of the token that follows each whole prompt of a batch."""

    def __init__(self, model: InferKitCompositeForCausalLM) -> None:
        super().__init__()
        self._model = [model]  # in a list: the model holds the pooler, not the reverse

    def get_supported_tasks(self) -> set[Any]:
        return {_TASK}

    def forward(
        self, hidden_states: Tensor, pooling_metadata: "PoolingMetadata"
    ) -> list[Tensor | None]:
        """Rows `[V]` float32 by request; None for prompts that are read in part so far.

        Args:
            hidden_states: `[T, D]` of the batch's tokens.
        """
        cursor = pooling_metadata.get_pooling_cursor()
        finished = cursor.get_finished_mask()
        rows: list[Tensor | None] = [None] * len(finished)
        places = [place for place, whole in enumerate(finished) if whole]
        if not places:
            return rows
        last = hidden_states[cursor.last_token_indices_gpu[places]]
        logits = self._model[0].compute_logits(last)
        if logits is None:  # vLLM gives logits to the first rank alone, whose answer is taken
            return rows
        logprobs = logits.float().log_softmax(-1)
        for place, row in zip(places, logprobs, strict=True):
            rows[place] = row
        return rows


class InferKitNextTokenModel(InferKitCompositeForCausalLM):
    """A causal language model, or a composite, that answers with next-token rows."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = NextTokenRows(self)


def next_token_overrides(composite: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`hf_overrides` with which `LLM(base, runner="pooling", ...)` gives next-token rows.

    Args:
        composite: overrides of a composite (`infer_kit.vllm.composite`), whose rows are then given.
    """
    return {**(composite or {}), "architectures": [ARCHITECTURE]}


def next_token_rows(llm: "LLM", prompts: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities of what follows each prompt.

    Prompts that begin alike are read once where the engine has its prefix cache.

    Args:
        llm: an engine that was started with `next_token_overrides`.
        prompts: N prompts, token ids, none of them empty.

    Returns:
        `[N, V]` float32 on the host; each row is normalised.

    Raises:
        InferKitError: no prompts, an empty one, an id outside the vocabulary, or another engine.
    """
    config = llm.llm_engine.vllm_config.model_config
    architectures = getattr(config.hf_config, "architectures", ())
    if ARCHITECTURE not in (architectures or ()):
        raise InferKitError(
            f"The engine's model is {', '.join(architectures or ('unknown',))}, which gives no "
            "next-token rows.",
            hint='Start it as LLM(base, runner="pooling", hf_overrides=next_token_overrides()).',
        )
    if not len(prompts):
        raise InferKitError("There are no prompts.")
    size = config.get_vocab_size()
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InferKitError(f"Prompt {number} is empty.")
        wrong = next((int(t) for t in prompt if not 0 <= int(t) < size), None)
        if wrong is not None:  # vLLM looks only where it has a tokenizer
            raise InferKitError(f"Prompt {number} has an id of {wrong}; the model has {size}.")
    inputs: Any = [{"prompt_token_ids": [int(t) for t in prompt]} for prompt in prompts]
    outputs = llm.encode(inputs, pooling_task=_TASK, use_tqdm=False)
    return torch.stack([output.outputs.data for output in outputs]).float()
