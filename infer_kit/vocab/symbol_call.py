"""One call of `generate` over symbols, in which each text may go at its own pace."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import ModelOutput

from infer_kit.engine.cache_name import CACHE
from infer_kit.vocab.pooled_text import PooledText
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.symbol_lm import SymbolCache, SymbolLM, SymbolTokenizer

# Settings that mean the same when some ids are WAIT. Others count ids, look at those before, or
# name beams.
_AT_ANY_PACE = frozenset(
    ("max_new_tokens", "min_new_tokens", "max_length", "max_time", "do_sample",
     "num_return_sequences", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p",
     "epsilon_cutoff", "eta_cutoff", "renormalize_logits", "remove_invalid_values",
     "suppress_tokens", "begin_suppress_tokens",
     "return_dict_in_generate", "transformers_version", "_from_model_config")
)  # fmt: skip


def generate_symbols(
    lm: SymbolLM,
    texts: Sequence[PooledText],
    readers: Sequence[Reader],
    kwargs: Mapping[str, Any],
    config: GenerationConfig,
    stops: Sequence[bytes],
) -> tuple[Any, SymbolCache]:
    """What `generate` returns for texts that go on, and the state that it leaves.

    Texts of a batch go at their own pace where nothing in the call depends on the ids before, so
    that they share more forwards; else, under beams, penalties, processors and criteria of the
    caller's, in step. What is written is the same; draws of one seed are not.

    Args:
        texts: of the requests. readers: of the members.
        kwargs, stops: as `alphabet_keywords` gives them. config: what they resolve to.
    """
    tokenizer = lm.tokenizer
    sequences = len(texts) * (config.num_return_sequences or 1)
    in_step = sequences == 1 or not _at_any_pace(lm, kwargs, config)
    state = SymbolCache(texts, readers, in_step)
    if not in_step:
        state.least, state.most = config.min_new_tokens or 0, config.max_new_tokens
    begin = torch.full((len(texts), 1), tokenizer.bos_token_id, device=lm.device)
    if not in_step:
        kwargs = _counting_symbols(kwargs, config, tokenizer, sequences)
    output = lm.generate(
        input_ids=begin,
        attention_mask=torch.ones_like(begin),
        **{CACHE: state},
        **with_stops(kwargs, tokenizer, stops, 1),
    )
    if not in_step and isinstance(output, ModelOutput):
        output.sequences = _without_waits(output.sequences, tokenizer)
    elif not in_step:
        output = _without_waits(output, tokenizer)
    return output, state


def with_stops(
    kwargs: Mapping[str, Any], tokenizer: SymbolTokenizer, stops: Sequence[bytes], start: int
) -> dict[str, Any]:
    """`generate`'s keywords with `StopTexts` among the criteria, if there are stop texts."""
    if not stops:
        return dict(kwargs)
    return _with_criterion(kwargs, StopTexts(tokenizer, stops, start))


def cut_at(text: bytes, stops: Sequence[bytes]) -> bytes:
    """The text up to the end of the stop text complete first, inside a symbol if need be."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


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
        wait = self._tokenizer.wait_token_id
        new = [row[row != wait] for row in input_ids[:, self._start :]]
        tails = [self._tokenizer.spell(row[-self._reach :]) for row in new]
        found = [any(stop in tail for stop in self._stops) for tail in tails]
        return torch.tensor(found, device=input_ids.device)


class _Written(StoppingCriteria):
    """Ends a sequence at a number of symbols."""

    def __init__(self, wait: int, most: int) -> None:
        self._wait = wait
        self._most = most

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return (input_ids[:, 1:] != self._wait).sum(1) >= self._most


def _at_any_pace(lm: SymbolLM, kwargs: Mapping[str, Any], config: GenerationConfig) -> bool:
    """Whether a call means the same for texts that are not in step."""
    plain = lm.plain_settings
    settings = vars(config)
    free = _AT_ANY_PACE | {"generation_config"}
    for name in kwargs:
        if name not in settings and name not in free and kwargs[name] is not None:
            return False  # processors, criteria, functions of the ids
    return all(
        name in free or value == plain.get(name) or value is None
        for name, value in settings.items()
    )


def _counting_symbols(
    kwargs: Mapping[str, Any], config: GenerationConfig, tokenizer: SymbolTokenizer, sequences: int
) -> dict[str, Any]:
    """The keywords with numbers of new ids made numbers of symbols."""
    most = config.max_new_tokens
    assert most is not None  # the model has a default, and max_length is refused
    # At each call one text goes on at least.
    counted = {**kwargs, "max_new_tokens": sequences * most, "min_new_tokens": 0}
    return _with_criterion(counted, _Written(tokenizer.wait_token_id, most))


def _with_criterion(kwargs: Mapping[str, Any], criterion: StoppingCriteria) -> dict[str, Any]:
    given = kwargs.get("stopping_criteria") or ()
    return {**kwargs, "stopping_criteria": StoppingCriteriaList([*given, criterion])}


def _without_waits(sequences: Tensor, tokenizer: SymbolTokenizer) -> Tensor:
    """[R, n] ids without WAIT, padded again."""
    rows = [row[row != tokenizer.wait_token_id] for row in sequences]
    padded = torch.nn.utils.rnn.pad_sequence(rows, True, float(tokenizer.pad_token_id))
    kept = (padded != tokenizer.pad_token_id).any(0).nonzero()
    return padded[:, : int(kept[-1]) + 1] if len(kept) else padded[:, :1]
