"""Members that share a tokenizer: pooled over their tokens by the engine of `CoupledLM`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.vocab.conditioning import (
    answer_ids,
    chat_ids,
    split_ids,
    text_ids,
    warn_if_changed,
)
from infer_kit.vocab.keywords import DEFAULT_NEW, alphabet_keywords
from infer_kit.vocab.results import EnsembleOutput, LogProb
from infer_kit.vocab.symbol_call import cut_at, with_stops
from infer_kit.vocab.symbol_lm import SymbolTokenizer
from infer_kit.vocab.utf8 import as_text
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
        self.tokenizer = SymbolTokenizer(self._vocabularies[0].tokens)
        self._is_mixture = pool == "mixture"
        self._ends = tuple(sorted({end for v in self._vocabularies for end in v.end_ids}))
        settings = self._lm.generation_config
        settings.eos_token_id = list(self._ends) or None
        settings.max_new_tokens, settings.max_length = DEFAULT_NEW, None

    def generate(
        self, prompts: Sequence[Any], single: bool, kwargs: Mapping[str, Any]
    ) -> EnsembleOutput:
        """See `Ensemble.generate`; whatever `CoupledLM.generate` takes."""
        options, stops = alphabet_keywords(kwargs, None)
        rows = [self._row(prompt) for prompt in prompts]
        longest = max(row[0]["input_ids"].shape[1] for row in rows)
        options = with_stops(options, self.tokenizer, stops, longest)
        with _counted(self._models) as calls:
            output = self._lm.generate(rows, **options)
        sequences = output.sequences if isinstance(output, ModelOutput) else output
        copies = len(sequences) // len(prompts)
        written = [
            cut_at(self._spell(row[longest:], prompts[place // copies]), stops)
            for place, row in enumerate(sequences)
        ]
        texts = [as_text(text) for text in written]
        members = len(self._models)
        return EnsembleOutput(
            text=texts[0] if single and len(texts) == 1 else texts,
            alphabet="tokens",
            sequences=sequences,
            tv_bound=0.0 if self._is_mixture else None,
            leak=(0.0,) * members,
            calls=tuple(calls[id(model)] for model in self._models),
            rows=(int((sequences.shape[1] - longest) * len(sequences)),) * members,
            steps=[],
            output=output,
        )

    def logprob(self, texts: Sequence[str], prompts: Sequence[Any], end: bool) -> list[LogProb]:
        """See `Ensemble.logprob`: of the text as the tokenizer writes it."""
        split = [self._split(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        # END is any of the tokens that end a text.
        ends = [[token] for token in self._ends] if end else [[]]
        rows = [row for row, _ in split for _ in ends]
        continuations = [[*ids, *tail] for _, ids in split for tail in ends]
        with _counted(self._models) as calls:
            scores = self._lm.score(rows, continuations) if ends else None
        found = []
        for place, text in enumerate(texts):
            if scores is None:  # nothing ends a text
                values = torch.full((1 + len(self._models),), -torch.inf, dtype=torch.float64)
            else:
                mine = range(place * len(ends), (place + 1) * len(ends))
                parts = [torch.cat([scores.pooled[n][:, None], scores.streams[n]], 1) for n in mine]
                values = torch.stack([part.double().sum(0) for part in parts]).logsumexp(0)
            total, *members = values.tolist()
            found.append(
                LogProb(
                    total,
                    total,
                    tuple((value, value) for value in members),
                    len(text.encode()),
                    (0.0,) * len(members),
                    tuple(calls[id(model)] for model in self._models),
                )
            )
        return found

    def _spell(self, ids: Tensor, prompt: Any) -> bytes:
        """What tokens say after a prompt: without a dummy prefix where there is none."""
        text = self.tokenizer.spell(ids)
        return text if prompt else text.removeprefix(self._vocabularies[0].prefix)

    def _split(self, text: str, prompt: Any) -> tuple[list[dict[str, Tensor]], list[int]]:
        """Rows of the prompt, and the tokens of the text after it."""
        vocabulary = self._vocabularies[0]
        warn_if_changed(vocabulary, text, "text")
        if not prompt:
            return self._row(prompt), vocabulary.encode(text)
        if not isinstance(prompt, str):
            return self._row(prompt), answer_ids(vocabulary, text)
        head, ids = split_ids(vocabulary, text, prompt, self._tokenizers[0])
        return [_inputs(head) for _ in self._models], ids

    def _row(self, prompt: Any) -> list[dict[str, Tensor]]:
        """The prompt for every member, in its own template."""
        row = []
        for vocabulary, tokenizer in zip(self._vocabularies, self._tokenizers, strict=True):
            if not prompt or isinstance(prompt, str):
                ids = text_ids(vocabulary, prompt or "", tokenizer) or list(vocabulary.empty_ids)
            else:
                ids = chat_ids(vocabulary, tokenizer, prompt)
            row.append(_inputs(ids))
        return row


def _inputs(ids: Sequence[int]) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([list(ids)])}


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
