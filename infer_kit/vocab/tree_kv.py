"""All sequences of all requests in one row of a model's cache: prompts are trunks, tokens nodes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.model_facts import forward_parameters
from infer_kit.errors import InferKitError
from infer_kit.vocab.causal_model import CausalModel, Handle, forgotten

PACKED = 2048
"""Prompts share a forward while they have no more tokens together."""

_GARBAGE = 64  # dropped positions that are left where they are, beside an eighth of those in use
_ROOM = 256  # positions that a layer has room for at first

_ATTENTION = ("sdpa", "eager")
# Families without transformers' common attention interface that pass a mask on as it is.
_PASS_MASKS = frozenset({"falcon", "gptj", "stablelm", "xglm"})
# Families that take a token's place in the cache for its position, beside `position_ids`.
BY_PLACE = frozenset({"llama4", "llama4_text"})
_SPANS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def why_no_tree(model: PreTrainedModel) -> str | None:
    """Why a model cannot read a forest from one row of its cache; None where it can.

    It has to take a mask for each pair of query and key, a position for each token, and keep
    nothing but keys and values. All of this is read off the class and its config; no model is
    tried.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation not in _ATTENTION:
        return f"its attention is {config._attn_implementation}, which takes no mask of ancestors"
    if model.config.model_type in BY_PLACE or config.model_type in BY_PLACE:
        return "its attention takes a token's place in the cache for its position"
    if {"position_ids", "attention_mask", CACHE} - forward_parameters(model):
        return "its forward takes no positions or no cache"
    if getattr(config, "alibi", False):
        return "its positions are distances in the cache (ALiBi)"
    if not model._supports_attention_backend and config.model_type not in _PASS_MASKS:
        return "its attention is of its own kind, and may make its masks itself"
    if model._is_stateful:
        return "its layers keep a state besides keys and values"
    for layer in DynamicCache(config=config).layers:
        kind = type(layer)
        if kind not in (DynamicLayer, DynamicSlidingWindowLayer) and kind.__name__ != "DummyLayer":
            return f"a layer of its cache is a {kind.__name__}"
        if getattr(layer, "sliding_window", None) not in (None, *_windows(config).values()):
            return "its layers have windows of several sizes"
    unknown = [kind for kind in mask_kinds(config) if kind not in (*_SPANS, "full_attention")]
    return f"it has layers of kind {unknown[0]}" if unknown else None


def mask_kinds(config: Any) -> list[str]:
    """The kinds of masks that a model's layers take, by transformers' own rule for made masks."""
    if getattr(config, "layer_types", None) is not None:
        return sorted(set(config.layer_types))
    return next(([kind] for kind in _windows(config)), ["full_attention"])


def _windows(config: Any) -> dict[str, int]:
    sizes = {kind: getattr(config, name, None) for kind, name in _SPANS.items()}
    return {kind: size for kind, size in sizes.items() if size is not None}


@dataclass(slots=True)
class _Node:
    """A token, or a prompt.

    Attributes:
        slot: place of the (last) token in the cache.
        depth: its position in its own tree.
        seen: the slots of its ancestors and its own, as bits: of any length, cheap to copy, and
            a mask in one step.
    """

    parent: Handle | None
    slot: int
    depth: int
    seen: int


class _Fill:
    """How far the layers of a cache are filled.

    Attributes:
        slots: places in use.
        shown: those that the forward under way sees; none in a prefill.
    """

    slots = 0
    shown = 0


class TreeLayer(DynamicLayer):
    """Keys and values `[1, heads, slots, width]` in buffers with room, so that growing is rare.

    Full length whatever the model's window is: a window goes by positions, and neighbours in this
    cache need not be neighbours in a text.
    """

    def __init__(self, fill: _Fill) -> None:
        super().__init__()
        self._fill = fill
        self._room: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new states, and return all that the forward under way sees."""
        new, start = (key_states, value_states), self._fill.slots
        end = start + key_states.shape[-2]
        if not self._room or end > self._room[0].shape[-2]:
            self._grow(new, start, end)
        for room, states in zip(self._room, new, strict=True):
            room[:, :, start:end] = states
        if not self._fill.shown:
            return key_states, value_states
        keys, values = (room[:, :, :end] for room in self._room)
        return keys, values

    def get_seq_length(self) -> int:
        return self._fill.shown

    def move(self, slots: Tensor, start: int) -> None:
        """Put the states of `slots` in their order from `start` on."""
        end = start + len(slots)
        for room in self._room:
            room[:, :, start:end] = room.index_select(2, slots.to(room.device))

    def release(self) -> None:
        """Give the memory back."""
        self._room = []

    def _grow(self, new: tuple[Tensor, Tensor], start: int, end: int) -> None:
        old, self._room = self._room, []
        for index, states in enumerate(new):
            room = states.new_empty(*states.shape[:2], max(_ROOM, 2 * end), states.shape[-1])
            if start:
                room[:, :, :start] = old[index][:, :, :start]
            self._room.append(room)


class TreeKV:
    """A forest in one row of a model's cache; new tokens of any trees share one forward.

    A new token is one position of a forward `[1, n]`: its mask shows its ancestors, its position
    is its depth. Requests of different prompts need no padding, and a prompt is kept once however
    many branches it has. Numbers are those of plain forwards up to rounding.

    Attributes:
        rows: token positions computed by `extend`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises: `InferKitError` where the model cannot do this; `language_model` chooses."""
        why = why_no_tree(model)
        if why is not None:
            raise InferKitError(f"{type(model).__name__} cannot be a TreeKV: {why}.",
                                "Use BatchedKV, or language_model, which chooses.")  # fmt: skip
        self._lm = CausalModel(model)
        config = self._lm.config
        kinds, windows = mask_kinds(config), _windows(config)
        self._windows = {kind: windows.get(kind) for kind in kinds}
        self._masks_by_kind = getattr(config, "layer_types", None) is not None
        self._fill = _Fill()
        self._layers: list[TreeLayer] = []
        layers: list[Any] = DynamicCache(config=config).layers
        for index, layer in enumerate(layers):
            if isinstance(layer, DynamicLayer):
                layers[index] = TreeLayer(self._fill)
                self._layers.append(layers[index])
        self._cache = Cache(layers=layers)
        self._depths = np.zeros(_ROOM, np.int64)  # of the token in each slot
        self._nodes: dict[Handle, _Node] = {}  # parents come before their children
        self._next = 0
        self.rows = 0

    @property
    def calls(self) -> int:
        """Forwards made."""
        return self._lm.calls

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Handle], Tensor]:
        """Read prompts, several in a forward while they have at most `PACKED` tokens together.

        Equal prompts are read once, and are one node.

        Args:
            prompts: token ids, none empty.

        Returns:
            A node for each prompt, and the logits `[len(prompts), V]` after it.

        Raises:
            InferKitError: a prompt is empty or has an unknown token.
            PromptTooLong: a prompt has more tokens than the model takes.
        """
        self._lm.check_prompts(prompts)
        wanted = [tuple(map(int, prompt)) for prompt in prompts]
        distinct = dict.fromkeys(wanted)
        handles: dict[tuple[int, ...], Handle] = {}
        parts = []
        for group in _packed(list(distinct)):
            parts.append(self._read(group))
            for prompt in group:
                last = self._fill.slots + len(prompt) - 1
                seen = ((1 << len(prompt)) - 1) << self._fill.slots
                node = _Node(None, last, len(prompt) - 1, seen)
                handles[prompt] = self._add(node)
                self._fill.slots = last + 1
        if not parts:
            return [], self._lm.no_logits()
        logits = torch.cat(parts)
        order = {prompt: row for row, prompt in enumerate(handles)}
        if len(order) < len(prompts):
            logits = logits[[order[prompt] for prompt in wanted]]
        return [handles[prompt] for prompt in wanted], logits

    def extend(self, nodes: Sequence[tuple[Handle, int]]) -> tuple[list[Handle], Tensor]:
        """Read a token after each of the given nodes, all in one forward.

        Args:
            nodes: pairs of a node, of any prompt, and the token id that follows it.

        Returns:
            The new nodes, and the logits `[len(nodes), V]` after them.

        Raises:
            InferKitError: a node has been forgotten, or a token is unknown.
            PromptTooLong: a sequence becomes longer than the model takes.
        """
        if not nodes:
            return [], self._lm.no_logits()
        start, tokens, new = self._fill.slots, [], []
        for slot, (handle, token) in enumerate(nodes, start):
            parent = self._nodes.get(handle)
            if parent is None:
                raise forgotten(handle)
            tokens.append(token)
            new.append(_Node(handle, slot, parent.depth + 1, parent.seen | (1 << slot)))
        depths = [node.depth for node in new]
        self._lm.check(tokens, max(depths) + 1)
        self._set_depths(start, depths)
        total = start + len(new)
        mask = None
        if len(new) > 1 or new[0].seen != (1 << total) - 1:  # else all see all: no mask
            mask = self._masks(_bits([node.seen for node in new], total), depths, 0)
        inputs = torch.tensor([tokens, depths], device=self._lm.device)
        self._fill.shown = start
        logits = self._lm(
            input_ids=inputs[:1],
            position_ids=inputs[1:],
            attention_mask=mask,
            use_cache=True,
            **{CACHE: self._cache},
        )
        self._fill.slots = total
        self.rows += len(new)
        return [self._add(node) for node in new], logits[0]

    def keep(self, live: Iterable[Handle]) -> None:
        """Forget every node that is neither live nor an ancestor of a live one.

        Handles of what remains stay valid. The cache closes its gaps when they are worth it.

        Raises:
            InferKitError: a live node has been forgotten before.
        """
        kept: set[Handle] = set()
        seen = 0
        for live_handle in live:
            node = self._nodes.get(live_handle)
            if node is None:
                raise forgotten(live_handle)
            seen |= node.seen
            handle: Handle | None = live_handle
            while handle is not None and handle not in kept:
                kept.add(handle)
                handle = self._nodes[handle].parent
        if len(kept) < len(self._nodes):
            self._nodes = {handle: node for handle, node in self._nodes.items() if handle in kept}
        used = seen.bit_count()
        if self._fill.slots - used > _GARBAGE + used // 8 or not used:
            self._close_gaps(seen)

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Read prompts in one forward, which sees nothing else; logits `[len(prompts), V]`."""
        ids = [token for prompt in prompts for token in prompt]
        lengths = [len(prompt) for prompt in prompts]
        depths = np.concatenate([np.arange(length) for length in lengths])
        self._set_depths(self._fill.slots, depths)
        ends = np.cumsum(lengths)
        mask = None  # one prompt alone is plainly causal, and the model knows best how
        if len(prompts) > 1:
            place = np.arange(len(ids))
            own = place >= np.repeat(ends - lengths, lengths)[:, None]
            mask = self._masks(own & (place <= place[:, None]), depths, self._fill.slots)
        device = self._lm.device
        inputs = {"attention_mask": mask, "use_cache": True, CACHE: self._cache}
        last = torch.from_numpy(ends - 1).to(device)
        if "logits_to_keep" in self._lm.parameters:
            inputs["logits_to_keep"] = 1 if len(prompts) == 1 else last
        self._fill.shown = 0
        logits = self._lm(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.from_numpy(depths)[None].to(device),
            **inputs,
        )[0]
        return logits if len(logits) == len(prompts) else logits[last]

    def _add(self, node: _Node) -> Handle:
        handle, self._next = self._next, self._next + 1
        self._nodes[handle] = node
        return handle

    def _set_depths(self, start: int, depths: Sequence[int] | NDArray[np.int64]) -> None:
        end = start + len(depths)
        if end > len(self._depths):
            self._depths = np.concatenate([self._depths, np.zeros(end, np.int64)])
        self._depths[start:end] = depths

    def _masks(
        self,
        seen: NDArray[np.bool_],
        depths: Sequence[int] | NDArray[np.int64],
        start: int,
    ) -> Tensor | dict[str, Tensor]:
        """Masks `[1, 1, n, m]` for each kind of layer.

        Args:
            seen: `[n, m]`, which slots are no other tree's, nor later.
            depths: of the n queries.
            start: the first of the m slots.
        """
        masks: dict[str, Tensor] = {}
        for kind, window in self._windows.items():
            near = seen
            if window is not None:
                at = np.asarray(depths)[:, None]
                first = at - window + 1 if kind == "sliding_attention" else at // window * window
                near = seen & (self._depths[start : start + seen.shape[1]] >= first)
            masks[kind] = self._mask(near)
        return masks if self._masks_by_kind else next(iter(masks.values()))

    def _mask(self, seen: NDArray[np.bool_]) -> Tensor:
        mask = torch.from_numpy(seen)[None, None].to(self._lm.device)
        if self._lm.config._attn_implementation == "sdpa":
            return mask
        hidden = torch.finfo(self._lm.dtype).min  # eager attention adds the mask to its scores
        zero = torch.zeros(mask.shape, dtype=self._lm.dtype, device=mask.device)
        return zero.masked_fill_(~mask, hidden)

    def _close_gaps(self, seen: int) -> None:
        """Move what is `seen` to the front, in its order, so that prompts stay in one piece."""
        kept = np.flatnonzero(_bits([seen], self._fill.slots)[0])
        first = int((kept == np.arange(len(kept))).sum())  # these stay where they are
        moved = torch.from_numpy(kept[first:])
        for layer in self._layers:
            if len(kept):
                layer.move(moved, first)
            else:
                layer.release()
        self._depths[: len(kept)] = self._depths[kept]
        slot_of = np.zeros(self._fill.slots, np.int64)
        slot_of[kept] = np.arange(len(kept))
        slots = slot_of.tolist()
        for node in self._nodes.values():
            node.slot = slots[node.slot]
            if node.parent is None:
                node.seen = ((1 << (node.depth + 1)) - 1) << (node.slot - node.depth)
            else:
                node.seen = self._nodes[node.parent].seen | (1 << node.slot)
        self._fill.slots = len(kept)


def _packed(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Prompts in groups of at most `PACKED` tokens; a longer one is alone."""
    groups: list[list[tuple[int, ...]]] = []
    room = 0
    for prompt in prompts:
        room -= len(prompt)
        if room < 0:
            groups.append([])
            room = PACKED - len(prompt)
        groups[-1].append(prompt)
    return groups


def _bits(rows: Sequence[int], count: int) -> NDArray[np.bool_]:
    """`[len(rows), count]`: the `count` lowest bits of each number, the lowest first."""
    width = (count + 7) // 8
    packed = np.frombuffer(b"".join([row.to_bytes(width, "little") for row in rows]), np.uint8)
    bits = np.unpackbits(packed.reshape(-1, width), axis=1, count=count, bitorder="little")
    return bits.view(np.bool_)
