"""The slow, obvious pool: every stream reads its whole context anew at every step.

No cache, no padding inside, batch 1, pooled in float64 by formulas written out here, not by
`infer_kit.pool`. What the engine writes must be what this writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from tests.tiny import reference_logits

Row = Mapping[str, Any]
Table = Sequence[Sequence[float]]
StepWeights = Callable[[int], Table]
Pool = str | Callable[[Tensor, Tensor], Tensor]


def pooled_scores(logits: Tensor, weights: Sequence[float], pool: Pool) -> Tensor:
    r"""`[V]` float64 from logits `[K, V]`, at the scale of raw logits.

    product: $\sum_k w_k \log p_k + \sum_k w_k \log Z_k$; mixture:
    $\log \sum_k w_k p_k + \sum_k w_k \log Z_k$; function: its value + the mean of $\log Z_k$.
    """
    log_z = [torch.log(torch.exp(l_k - l_k.max()).sum()) + l_k.max() for l_k in logits.double()]
    log_p = [l_k - z for l_k, z in zip(logits.double(), log_z, strict=True)]
    if callable(pool):
        given = torch.stack(log_p)[None, :, None]
        return pool(given, torch.tensor([list(weights)]))[0, 0] + sum(log_z) / len(log_z)
    active = [(w, lp, z) for w, lp, z in zip(weights, log_p, log_z, strict=True) if w != 0]
    scale = sum(w * z for w, _, z in active)
    if pool == "mixture":
        return torch.log(sum(w * torch.exp(lp) for w, lp, _ in active)) + scale
    out = torch.zeros_like(log_p[0])
    for w, lp, _ in active:
        out = out + w * torch.where(lp == -torch.inf, 0.0, lp)
    for _, lp, _ in active:
        out[lp == -torch.inf] = -torch.inf
    return out + scale


class _Config(PreTrainedConfig):
    model_type = "infer_kit_reference"

    def __init__(self, vocab_size: int = 0, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        super().__init__(**kwargs)


class ReferenceLM(PreTrainedModel, GenerationMixin):
    """K streams behind the unmodified `generate()`, without any state between steps."""

    config_class = _Config
    main_input_name = "input_ids"

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        rows: Sequence[Sequence[Row | None]],
        weights: Table | StepWeights,
        pool: Pool = "product",
        primary: int = 0,
        vocab_size: int | None = None,
    ) -> None:
        """Args:
        models: one for each stream. rows: `rows[b][k]`, None where a request lacks the stream.
        weights: `[B][K]`, or a function of the new token's index that gives them.
        vocab_size: the first V tokens that are pooled; None for those of the first model.
        """
        config = models[primary].config.get_text_config(decoder=True)
        super().__init__(_Config(vocab_size=vocab_size or config.vocab_size))
        self._models, self._rows, self._pool, self._primary = models, rows, pool, primary
        self._weights = weights if callable(weights) else lambda position: weights
        self._prompt = max(row[primary]["input_ids"].shape[1] for row in rows)
        self._anchor = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = copy.deepcopy(models[primary].generation_config)
        self.eval()

    def next_logits(self, request: int, continuation: Tensor) -> Tensor:
        """`[V]` float32 pooled scores of the token after `continuation` `[n]`."""
        weights = self._weights(len(continuation))[request]
        logits, given = [], []
        for model, row, weight in zip(self._models, self._rows[request], weights, strict=False):
            if row is None:
                continue
            all_logits = reference_logits(model, dict(row), continuation[None])
            logits.append(all_logits[-1, : self.config.vocab_size])
            given.append(float(weight))
        return pooled_scores(torch.stack(logits), given, self._pool).float()

    def write(self, **kwargs: Any) -> Any:
        """`generate` on the left-padded primary prompts; the output as a dictionary."""
        pad = kwargs.get("pad_token_id", self.generation_config.pad_token_id)
        prompts = [row[self._primary]["input_ids"][0].tolist() for row in self._rows]
        ids = torch.tensor([[pad] * (self._prompt - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (self._prompt - len(p)) + [1] * len(p) for p in prompts])
        options = {"use_cache": False, "return_dict_in_generate": True, "output_logits": True}
        return self.generate(input_ids=ids, attention_mask=mask, **options, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        each = len(input_ids) // len(self._rows)  # beams or samples of one request are neighbours
        scores = [
            self.next_logits(r // each, ids[self._prompt :]) for r, ids in enumerate(input_ids)
        ]
        return CausalLMOutput(logits=torch.stack(scores)[:, None])


def greedy_loop(lm: ReferenceLM, request: int, tokens: int) -> list[int]:
    """Greedy search in plain Python, without `generate()`; stops after the end token."""
    end = lm.generation_config.eos_token_id
    written: list[int] = []
    while len(written) < tokens and (not written or written[-1] != end):
        written.append(
            int(lm.next_logits(request, torch.tensor(written, dtype=torch.long)).argmax())
        )
    return written
