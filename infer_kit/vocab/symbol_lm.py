"""`SymbolLM`: a pool of reduced models as one causal language model for `generate()`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from infer_kit.engine.cache_name import CACHE
from infer_kit.vocab.keywords import DEFAULT_NEW
from infer_kit.vocab.pooled_text import PooledText, advance_together
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.utf8 import as_text


class SymbolConfig(PreTrainedConfig):
    """The alphabet's size and the two ids beyond it, END and BEGIN."""

    model_type = "infer_kit_symbols"

    def __init__(self, symbols: int = 0, **kwargs: Any) -> None:
        self.vocab_size = symbols + 2
        super().__init__(**kwargs)


class SymbolTokenizer:
    """Decodes symbol ids; what streamers ask of a tokenizer.

    The bytes of an incomplete last character are held back.

    Attributes:
        symbols: by id; None for one without text. eos_token_id, bos_token_id: END and BEGIN, which
            have no text.
    """

    def __init__(self, symbols: Sequence[bytes | None]) -> None:
        self.symbols = tuple(symbols)
        self.eos_token_id = len(self.symbols)
        self.bos_token_id = self.pad_token_id = len(self.symbols) + 1

    def __len__(self) -> int:
        return len(self.symbols) + 2

    def spell(self, ids: Sequence[int] | Tensor) -> bytes:
        """The bytes of symbol ids; END and BEGIN spell nothing."""
        listed = ids.tolist() if isinstance(ids, Tensor) else ids
        return b"".join(self.symbols[id] or b"" for id in listed if id < len(self.symbols))

    def decode(self, ids: Sequence[int] | Tensor, **kwargs: Any) -> str:
        """Their text. `kwargs` are those of other tokenizers and change nothing."""
        return as_text(self.spell(ids))

    def batch_decode(self, sequences: Sequence[Any], **kwargs: Any) -> list[str]:
        return [self.decode(ids) for ids in sequences]


class SymbolCache(Cache):
    """What `generate` carries as its cache: the texts that the reducers have read.

    Attributes:
        texts: [R] one for each sequence.
        seen: symbols fed so far, BEGIN included.
        tv_bound: largest of all steps and sequences so far.
    """

    is_compileable = False
    is_linear = (False,)

    def __init__(self, texts: Sequence[PooledText], readers: Sequence[Reader]) -> None:
        super().__init__(layers=[])
        self.texts = list(texts)
        self.readers = readers
        self.ended = [False] * len(self.texts)
        self.seen = 0
        self.tv_bound = 0.0

    def begin(self, sequences: int) -> None:
        """Copy each request's text for each of its sequences."""
        if sequences > len(self.texts):
            self.batch_repeat_interleave(sequences // len(self.texts))

    def feed(self, ids: Sequence[int], symbols: int) -> None:
        """One more id for each sequence; ids beyond the alphabet end it."""
        for row, id in enumerate(ids):
            self.ended[row] = self.ended[row] or id >= symbols
        going = [row for row, ended in enumerate(self.ended) if not ended]
        if going:
            texts = [self.texts[row] for row in going]
            advance_together(texts, [ids[row] for row in going], self.readers)
            for member, reader in enumerate(self.readers):
                reader.forget(text.reducers[member] for text in self.texts)
        self.seen += 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        rows = beam_idx.tolist()
        self.texts = [self.texts[row].fork() for row in rows]
        self.ended = [self.ended[row] for row in rows]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(len(self.texts)).repeat_interleave(repeats))


class SymbolLM(PreTrainedModel, GenerationMixin):
    """A causal language model over symbols: its ids are the alphabet, then END, then BEGIN.

    It owns no weights. The state of a call is its cache, so the unmodified
    `GenerationMixin.generate` supplies greedy search, sampling, beams and streamers.
    """

    config_class = SymbolConfig
    main_input_name = "input_ids"
    _is_stateful = True  # symbols cannot be taken back

    def __init__(self, symbols: Sequence[bytes], device: torch.device) -> None:
        super().__init__(SymbolConfig(symbols=len(symbols)))
        self.tokenizer = SymbolTokenizer(symbols)
        self._device = device
        self.generation_config = GenerationConfig(
            eos_token_id=self.tokenizer.eos_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            max_new_tokens=DEFAULT_NEW,
        )
        self.eval()

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: SymbolCache | None = None,
        attention_mask: Tensor | None = None,
        cache: SymbolCache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state = past_key_values if cache is None else cache
        assert state is not None
        return {"input_ids": input_ids[:, state.seen :], CACHE: state}

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        past_key_values: SymbolCache | None = None,
        attention_mask: Tensor | None = None,
        cache: SymbolCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Every text goes on by its id [R, 1]; log-probabilities of the next [R, 1, symbols + 2].

        The first call is given BEGIN, which no model reads.
        """
        state = past_key_values if cache is None else cache
        assert state is not None
        symbols = len(self.tokenizer.symbols)
        if state.seen == 0:
            state.begin(len(input_ids))
            state.seen = 1
        else:
            for column in input_ids.T.tolist():
                state.feed(column, symbols)
        laws = np.zeros((len(state.texts), symbols + 2))
        for row, text in enumerate(state.texts):
            if state.ended[row]:
                laws[row, symbols] = 1.0  # `generate` pads what has ended
            else:
                laws[row, : symbols + 1] = text.law()
                state.tv_bound = max(state.tv_bound, text.tv_bound or 0.0)
        logits = torch.from_numpy(laws).log().float()[:, None].to(self._device)
        return CausalLMOutputWithPast(logits=logits, **{CACHE: state})


class StopTexts(StoppingCriteria):
    """Ends a sequence as soon as what was written contains one of the given texts.

    Args:
        tokenizer: spells the ids. stops: the texts. start: where the new ids begin.
    """

    def __init__(self, tokenizer: SymbolTokenizer, stops: Sequence[bytes], start: int) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._start = start
        self._reach = max(len(stop) for stop in stops)  # symbols: each has a byte at least

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        new = input_ids[:, self._start :]
        tails = [self._tokenizer.spell(row[-self._reach :]) for row in new]
        found = [any(stop in tail for stop in self._stops) for tail in tails]
        return torch.tensor(found, device=input_ids.device)


def with_stops(
    kwargs: Mapping[str, Any], tokenizer: SymbolTokenizer, stops: Sequence[bytes], start: int
) -> dict[str, Any]:
    """`generate`'s keywords with `StopTexts` among the criteria, if there are stop texts."""
    if not stops:
        return dict(kwargs)
    given = kwargs.get("stopping_criteria") or ()
    criteria = StoppingCriteriaList([*given, StopTexts(tokenizer, stops, start)])
    return {**kwargs, "stopping_criteria": criteria}


def cut_at(text: bytes, stops: Sequence[bytes]) -> bytes:
    """The text up to the end of the stop text complete first, inside a symbol if need be."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
