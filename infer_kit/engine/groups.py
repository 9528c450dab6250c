"""The streams that share one model: decoded as one batch (fused), or one by one (serial).

Shape letters: R sequences being written, S streams of one sequence in this group, n tokens fed.
Batch rows are ordered by sequence, then by stream.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from infer_kit.engine.cache_merge import check_mergeable, has_keys, merge_caches
from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.context_prefix import PREFIX, prompt_ids
from infer_kit.engine.model_facts import cross_attention_layers
from infer_kit.engine.prefill import Entry, Prefilled, prefill, prefill_batches
from infer_kit.errors import NotMergeable

# Inputs that describe the tokens, with their token axis; the others describe the images, which
# have been read once the prompt is prefilled.
_TOKEN_AXIS = {
    "attention_mask": -1,
    "position_ids": -1,
    "token_type_ids": -1,
    "mm_token_type_ids": -1,
    "cross_attention_mask": 1,
}


class StreamGroup(Protocol):
    """The state of all streams that run on one model.

    Attributes:
        engine: "fused" or "serial".
        owner: `[rows]` int64, the sequence (of R) that each batch row belongs to.
        stream: `[rows]` int64, the stream (of K) that each batch row is.
        prompt_logits: `[rows, 1, V]` at the last prompt position.
    """

    engine: str
    owner: Tensor
    stream: Tensor
    prompt_logits: Tensor

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back: not where a layer has recurrent state.

        Asked by transformers from 5.18 on, which knows it of its own caches.
        """
        ...

    def step(self, ids: Tensor) -> Tensor:
        """Feed `ids` `[R, n]` to every stream; logits `[rows, n, V]`."""
        ...

    def gather(self, index: Tensor) -> None:
        """Sequence i becomes a copy of the old sequence `index[i]`."""
        ...

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` tokens of every stream."""
        ...

    def record_past(self) -> None:
        """Keep what `crop` needs, where a layer would otherwise drop it."""
        ...


def build_group(
    model: PreTrainedModel, entries: Sequence[Entry], requests: int, mode: str
) -> StreamGroup:
    """Prefill all streams of one model and put them into the engine that `mode` asks for.

    Streams that read one and the same row share its prefill where they are fused.

    Args:
        model: the model that all entries run on.
        entries: ordered by request, then stream.
        requests: how many there are; some may have no stream on this model.
        mode: "fused" raises `NotMergeable` where the caches cannot be merged, "auto" warns and
            decodes serially, "serial" never merges.
    """
    if mode == "serial":
        return SerialGroup(model, [prefill(model, [entry]) for entry in entries])
    prefilled: list[Prefilled] = []
    cross_attention = cross_attention_layers(model)
    try:
        first = 0 if PREFIX in entries[0].inputs else 1  # alone, it says whether caches merge
        distinct = _distinct(entries)
        for batch in [distinct[:first], *prefill_batches(distinct[first:])][1 - first :]:
            prefilled.append(prefill(model, batch))
            check_mergeable(prefilled[-1].cache, prefilled[-1].length, cross_attention)
        return FusedGroup(model, prefilled, entries, requests)
    except NotMergeable as error:
        if mode == "fused":
            raise
        warnings.warn(
            f"{type(model).__name__}: streams are decoded one by one, not as one batch, because "
            f"of this: {error} Pass mode='serial' to say that this is expected.",
            stacklevel=2,
        )
        alone = [state for state in prefilled if len(state.entries) == 1]
        done = {id(state.entries[0]) for state in alone}
        alone += [prefill(model, [entry]) for entry in entries if id(entry) not in done]
        order = {id(entry): rank for rank, entry in enumerate(entries)}
        return SerialGroup(model, sorted(alone, key=lambda state: order[id(state.entries[0])]))


class FusedGroup:
    """All streams of one model as the rows of one batch, left-padded in the cache only."""

    engine = "fused"

    def __init__(
        self,
        model: PreTrainedModel,
        prefilled: Sequence[Prefilled],
        entries: Sequence[Entry],
        requests: int,
    ) -> None:
        """Args:
        prefilled: the states of all distinct rows of `entries`.
        entries: every stream, ordered by request, then stream.
        requests: how many there are.
        """
        self.model = model
        read = [entry for state in prefilled for entry in state.entries]
        place = {id(entry.inputs): i for i, entry in enumerate(read)}
        order = [place[id(entry.inputs)] for entry in entries]
        logits = torch.cat([state.logits for state in prefilled])
        device = logits.device
        self.position: Tensor | None = None
        if prefilled[0].position is not None:
            positions = [state.position for state in prefilled if state.position is not None]
            self.position = torch.cat(positions, dim=-2) + 1
        self.cache = merge_caches(
            [state.cache for state in prefilled], [state.length for state in prefilled]
        )
        self.mask: Tensor | None = None
        if any(has_keys(layer) for layer in self.cache.layers):  # Mamba has none, and no pads
            self.mask = _left_padded_mask([entry.length for entry in read], device)
        if order == list(range(len(read))):
            self.prompt_logits = logits
        else:  # prompts were prefilled together, or once for several streams
            rows = torch.tensor(order, device=device)
            self.prompt_logits = logits.index_select(0, rows)
            self._select_states(rows)
        self.owner = torch.tensor([entry.request for entry in entries], device=device)
        self.stream = torch.tensor([entry.stream for entry in entries], device=device)
        self._streams_each = _uniform_count([entry.request for entry in entries], requests)

    def step(self, ids: Tensor) -> Tensor:
        rows = ids if self._streams_each == 1 else ids.index_select(0, self.owner)
        n = rows.shape[1]
        inputs: dict[str, Any] = {"input_ids": rows}
        if self.position is not None:
            inputs["position_ids"] = self.position + torch.arange(n, device=rows.device)
            self.position = self.position + n
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), n)], dim=1)
            inputs["attention_mask"] = self.mask
        outputs = self.model(**inputs, **{CACHE: self.cache}, use_cache=True, return_dict=True)
        return outputs.logits

    def gather(self, index: Tensor) -> None:
        index = index.to(self.owner.device)
        if self._streams_each is not None:
            s = self._streams_each
            rows = (index[:, None] * s + torch.arange(s, device=index.device)).reshape(-1)
            self.owner = torch.arange(len(index), device=index.device).repeat_interleave(s)
        else:
            rows, self.owner = _ragged_rows(self.owner, index)
        self.stream = self.stream.index_select(0, rows)
        self._select_states(rows)

    def crop(self, tokens: int) -> None:
        self.cache.crop(-tokens)  # also for 0: it shrinks layers that recorded their past
        if tokens:
            if self.mask is not None:
                self.mask = self.mask[:, :-tokens]
            if self.position is not None:
                self.position = self.position - tokens

    @property
    def is_croppable(self) -> bool:
        return self.cache.is_croppable

    def record_past(self) -> None:
        self.cache.activate_past_recording()

    def _select_states(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, rows)
        if self.position is not None:
            self.position = self.position.index_select(-2, rows)


class SerialGroup:
    """Each stream with a state of its own, advanced one after the other.

    For models whose cache cannot be merged (cross-attention over images: Mllama). Nothing is
    padded; the sequences of one request (beams, returned sequences) are the batch of its streams.
    """

    engine = "serial"

    def __init__(self, model: PreTrainedModel, prefilled: Sequence[Prefilled]) -> None:
        self.model = model
        self.states = [_SerialState(model, state) for state in prefilled]
        self.prompt_logits = torch.cat([state.logits for state in prefilled])
        device = self.prompt_logits.device
        self.owner = torch.tensor([s.entry.request for s in self.states], device=device)
        self.stream = torch.tensor([s.entry.stream for s in self.states], device=device)

    def step(self, ids: Tensor) -> Tensor:
        return torch.cat([state.step(ids.index_select(0, state.owner)) for state in self.states])

    def gather(self, index: Tensor) -> None:
        index = index.to(self.owner.device)
        for state in self.states:
            rows, state.owner = _ragged_rows(state.owner, index)
            state.gather(rows)
        self.owner = torch.cat([state.owner for state in self.states])
        self.stream = torch.cat(
            [torch.full_like(state.owner, state.entry.stream) for state in self.states]
        )

    def crop(self, tokens: int) -> None:
        for state in self.states:
            state.crop(tokens)

    @property
    def is_croppable(self) -> bool:
        return all(state.cache.is_croppable for state in self.states)

    def record_past(self) -> None:
        for state in self.states:
            state.cache.activate_past_recording()


class _SerialState:
    """One stream, stepped through the hooks by which `generate` itself prepares its model.

    `kwargs` holds what `generate` calls model_kwargs; everything in it that has a token axis is
    as long as `ids` after a step.
    """

    def __init__(self, model: PreTrainedModel, prefilled: Prefilled) -> None:
        self.model = model
        (self.entry,) = prefilled.entries
        self.outputs = prefilled.outputs
        self.ids = prompt_ids(self.entry.inputs).to(prefilled.logits.device)
        self.owner = torch.tensor([self.entry.request], device=self.ids.device)
        self.kwargs = {
            key: value
            for key, value in prefilled.kwargs.items()
            if key in _TOKEN_AXIS or not isinstance(value, Tensor)
        }
        self.kwargs.pop("mm_encoder_outputs", None)

    @property
    def cache(self) -> Cache:
        return self.kwargs[CACHE]

    def step(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        self.ids = torch.cat([self.ids, ids], dim=1)
        for _ in range(n):
            self.kwargs = self.model._update_model_kwargs_for_generation(
                self.outputs, self.kwargs, is_encoder_decoder=False
            )
        if "logits_to_keep" in self.kwargs:
            self.kwargs["logits_to_keep"] = n
        inputs = self.model.prepare_inputs_for_generation(
            self.ids, next_sequence_length=n, **self.kwargs
        )
        self.outputs = self.model(**inputs, return_dict=True)
        logits, self.outputs.logits = self.outputs.logits, None
        return logits[:, -n:]

    def gather(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.ids = self.ids.index_select(0, rows)
        for key in _TOKEN_AXIS.keys() & self.kwargs.keys():
            value = self.kwargs[key]
            batch_axis = value.dim() - 2 if key == "position_ids" else 0  # M-RoPE: [4, batch, S]
            self.kwargs[key] = value.index_select(batch_axis, rows)

    def crop(self, tokens: int) -> None:
        cross_attention = cross_attention_layers(self.model)
        for index, layer in enumerate(self.cache.layers):
            if index not in cross_attention:
                layer.crop(-tokens)
        if not tokens:
            return
        self.ids = self.ids[:, :-tokens]
        for key in _TOKEN_AXIS.keys() & self.kwargs.keys():
            value, axis = self.kwargs[key], _TOKEN_AXIS[key]
            self.kwargs[key] = value.narrow(axis, 0, value.shape[axis] - tokens)


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    """The first entry of every row object."""
    first: dict[int, Entry] = {}
    for entry in entries:
        first.setdefault(id(entry.inputs), entry)
    return list(first.values())


def _uniform_count(owners: Sequence[int], requests: int) -> int | None:
    """Streams of each request where all have equally many, else None (ragged)."""
    counts = Counter(owners)
    each = {counts[request] for request in range(requests)}
    return each.pop() if len(each) == 1 else None


def _ragged_rows(owner: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to pick so that sequence i becomes the old sequence `index[i]`, and their owners."""
    rows_of: dict[int, list[int]] = {}
    for row, sequence in enumerate(owner.tolist()):
        rows_of.setdefault(sequence, []).append(row)
    picked = [(new, row) for new, old in enumerate(index.tolist()) for row in rows_of.get(old, [])]
    rows = torch.tensor([row for _, row in picked], dtype=torch.long, device=owner.device)
    owners = [new for new, _ in picked]
    return rows, torch.tensor(owners, dtype=torch.long, device=owner.device)


def _left_padded_mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """`[rows, max length]` int64, 0 on the padding; None where no row is padded."""
    total = max(lengths)
    if min(lengths) == total:
        return None
    padding = total - torch.tensor(lengths, device=device)
    return (torch.arange(total, device=device) >= padding[:, None]).long()
