"""Members that share a tokenizer: pooled over their tokens by the engine of `CoupledLM`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.vocab.conditioning import chat_ids, continuation_ids
from infer_kit.vocab.results import EnsembleOutput, LogProb
from infer_kit.vocab.vocabulary import Vocabulary


class TokenEnsemble:
    """The part of `Ensemble` whose members name the same tokens.

    Args:
        models, tokenizers, vocabularies: of the members.
        weights: [N]. pool: "mixture" or "product".
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        tokenizers: Sequence[Any],
        vocabularies: Sequence[Vocabulary],
        weights: Sequence[float],
        pool: str,
    ) -> None:
        self._models = tuple(models)
        self._tokenizers = tuple(tokenizers)
        self._vocabularies = tuple(vocabularies)
        self._lm = CoupledLM(models, weights=list(weights), pool=pool)

    def generate(
        self, prompts: Sequence[Any], single: bool, kwargs: Mapping[str, Any]
    ) -> EnsembleOutput:
        """See `Ensemble.generate`; whatever `CoupledLM.generate` takes."""
        rows = [self._row(prompt) for prompt in prompts]
        options = dict(kwargs)
        if options.get("stop_strings") is not None:
            options.setdefault("tokenizer", self._tokenizers[0])
        with _counted(self._models) as calls:
            output = self._lm.generate(rows, **options)
        sequences = output.sequences if isinstance(output, ModelOutput) else output
        longest = max(row[0]["input_ids"].shape[1] for row in rows)
        texts = self._tokenizers[0].batch_decode(sequences[:, longest:], skip_special_tokens=True)
        members = len(self._models)
        return EnsembleOutput(
            text=texts[0] if single and len(texts) == 1 else texts,
            alphabet="tokens",
            sequences=sequences,
            tv_bound=0.0,
            leak=(0.0,) * members,
            calls=tuple(calls[id(model)] for model in self._models),
            rows=(int((sequences.shape[1] - longest) * len(sequences)),) * members,
            steps=[],
            output=output,
        )

    def logprob(self, texts: Sequence[str], prompts: Sequence[Any], end: bool) -> list[LogProb]:
        """See `Ensemble.logprob`: of the text as the tokenizer writes it."""
        rows, continuations = [], []
        for text, prompt in zip(texts, prompts, strict=True):
            row, ids = self._split(text, prompt)
            rows.append(row)
            continuations.append([*ids, *self._vocabularies[0].end_ids[: int(end)]])
        with _counted(self._models) as calls:
            scores = self._lm.score(rows, continuations)
        found = []
        for text, pooled, streams in zip(texts, scores.pooled, scores.streams, strict=True):
            total = float(pooled.double().sum())
            members = tuple((value, value) for value in streams.double().sum(0).tolist())
            found.append(
                LogProb(
                    total,
                    total,
                    members,
                    len(text.encode()),
                    (0.0,) * len(members),
                    tuple(calls[id(model)] for model in self._models),
                )
            )
        return found

    def _split(self, text: str, prompt: Any) -> tuple[list[dict[str, Tensor]], list[int]]:
        """Rows of the prompt, and the tokens of the text after it."""
        vocabulary = self._vocabularies[0]
        ids = continuation_ids(vocabulary, text, prompt)
        if not prompt or not isinstance(prompt, str):
            return self._row(prompt), ids
        whole = vocabulary.encode(prompt + text)
        head = [*vocabulary.begin_ids, *whole[: len(whole) - len(ids)]]
        return [{"input_ids": torch.tensor([head])}] * len(self._models), ids

    def _row(self, prompt: Any) -> list[dict[str, Tensor]]:
        """The prompt for every member, in its own template."""
        row = []
        for vocabulary, tokenizer in zip(self._vocabularies, self._tokenizers, strict=True):
            if prompt is None or prompt == "":
                ids = list(vocabulary.empty_ids)
            elif isinstance(prompt, str):
                ids = [*vocabulary.begin_ids, *vocabulary.encode(prompt)]
            else:
                ids = chat_ids(vocabulary, tokenizer, prompt)
            row.append({"input_ids": torch.tensor([ids])})
        return row


@contextmanager
def _counted(models: Sequence[PreTrainedModel]) -> Iterator[dict[int, int]]:
    """Counts the forward calls of each model while it lasts."""
    calls = {id(model): 0 for model in models}

    def count(model: Any, *_: Any) -> None:
        calls[id(model)] += 1

    hooks = [m.register_forward_pre_hook(count) for m in {id(m): m for m in models}.values()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
