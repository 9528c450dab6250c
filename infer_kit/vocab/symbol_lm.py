"""`SymbolLM`: a pool of reduced models as one causal language model for `generate()`."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.call import resolve_call
from infer_kit.vocab.keywords import DEFAULT_NEW
from infer_kit.vocab.pace import Pace
from infer_kit.vocab.pooled_text import PooledText
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.trie import Float
from infer_kit.vocab.utf8 import as_text


class SymbolConfig(PreTrainedConfig):
    """The alphabet's size and the three ids beyond it: END, BEGIN and WAIT."""

    model_type = "infer_kit_symbols"

    def __init__(self, symbols: int = 0, **kwargs: Any) -> None:
        self.vocab_size = symbols + 3
        super().__init__(**kwargs)


class SymbolTokenizer:
    """Decodes symbol ids; what streamers ask of a tokenizer.

    The bytes of an incomplete last character are held back.

    Attributes:
        symbols: by id; None for one without text. eos_token_id, bos_token_id, wait_token_id: END,
            BEGIN and WAIT, which have no text.
    """

    def __init__(self, symbols: Sequence[bytes | None]) -> None:
        self.symbols = tuple(symbols)
        self.eos_token_id = len(self.symbols)
        self.bos_token_id = self.pad_token_id = len(self.symbols) + 1
        self.wait_token_id = len(self.symbols) + 2

    def __len__(self) -> int:
        return len(self.symbols) + 3

    def spell(self, ids: Sequence[int] | Tensor) -> bytes:
        """The bytes of symbol ids; END, BEGIN and WAIT spell nothing."""
        listed = ids.tolist() if isinstance(ids, Tensor) else ids
        return b"".join(self.symbols[id] or b"" for id in listed if id < len(self.symbols))

    def decode(self, ids: Sequence[int] | Tensor, **kwargs: Any) -> str:
        """Their text. `kwargs` are those of other tokenizers and change nothing."""
        return as_text(self.spell(ids))

    def batch_decode(self, sequences: Sequence[Any], **kwargs: Any) -> list[str]:
        return [self.decode(ids) for ids in sequences]


class SymbolCache(Cache):
    """What `generate` carries as its cache: the texts that the reducers have read.

    Args:
        texts: of the requests. readers: of the members.
        in_step: every text goes on at every call; else those that need a forward of a model get
            WAIT as their only next id until all need one.

    Attributes:
        seen: ids fed so far, BEGIN included.
        tv_bound: largest of all steps and sequences so far; None where there is none.
        least: symbols before which no sequence ends, where texts are not in step.
        most: symbols at which a sequence ends, where texts are not in step.
    """

    is_compileable = False
    is_linear = (False,)

    def __init__(
        self, texts: Sequence[PooledText], readers: Sequence[Reader], in_step: bool = True
    ) -> None:
        super().__init__(layers=[])
        self._pace = Pace(texts, readers)
        self._in_step = in_step
        self._ended = [False] * len(texts)
        self.least = 0
        self.most: int | None = None
        self.seen = 0
        self.tv_bound: float | None = 0.0

    @property
    def texts(self) -> list[PooledText]:
        """[R] one for each sequence."""
        return self._pace.texts

    def begin(self, sequences: int) -> None:
        """Copy each request's text for each of its sequences."""
        if sequences > len(self.texts):
            self.batch_repeat_interleave(sequences // len(self.texts))

    def feed(self, ids: Sequence[int], tokenizer: SymbolTokenizer) -> None:
        """One more id for each sequence; END ends it."""
        for row, id in enumerate(ids):
            if id == tokenizer.wait_token_id or self._ended[row]:
                continue
            is_last = self.texts[row].length + 1 == self.most
            if is_last or id >= len(tokenizer.symbols):
                self._ended[row] = True
            else:
                self._pace.start(row, id)
        going = [row for row, ended in enumerate(self._ended) if not ended]
        while any(waits := [self._pace.waits(row) for row in going]):
            if not self._in_step and not all(waits):
                break
            self._pace.read(going)
        self._pace.forget()
        self.seen += 1

    def laws(self, tokenizer: SymbolTokenizer) -> Float:
        """[R, symbols + 3] of the next id of each sequence."""
        laws = np.zeros((len(self.texts), len(tokenizer)))
        for row, text in enumerate(self.texts):
            if self._ended[row]:
                laws[row, tokenizer.eos_token_id] = 1.0  # `generate` pads what has ended
            elif self._pace.waits(row):
                laws[row, tokenizer.wait_token_id] = 1.0
            else:
                laws[row, : tokenizer.eos_token_id + 1] = text.law()
                if text.length < self.least:
                    laws[row, tokenizer.eos_token_id] = 0.0
                bound = text.tv_bound
                self.tv_bound = None if bound is None else max(self.tv_bound or 0.0, bound)
        return laws

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        rows = beam_idx.tolist()
        self._pace = Pace([self.texts[row].fork() for row in rows], self._pace.readers)
        self._ended = [self._ended[row] for row in rows]

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

    @cached_property
    def plain_settings(self) -> dict[str, Any]:
        """The settings of a call of `generate` without keywords."""
        return vars(resolve_call(self, {}))

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
        """Every text goes on by its id [R, 1]; log-probabilities of the next [R, 1, symbols + 3].

        The first call is given BEGIN, which no model reads.
        """
        state = past_key_values if cache is None else cache
        assert state is not None
        if state.seen == 0:
            state.begin(len(input_ids))
            state.seen = 1
        else:
            for column in input_ids.T.tolist():
                state.feed(column, self.tokenizer)
        laws = torch.from_numpy(state.laws(self.tokenizer))
        logits = laws.log().float()[:, None].to(self._device)
        return CausalLMOutputWithPast(logits=logits, **{CACHE: state})
