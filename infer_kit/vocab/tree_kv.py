"""All sequences of all requests in one row of a model's cache: prompts are trunks, tokens nodes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from infer_kit.engine.cache_name import CACHE
from infer_kit.errors import InferKitError
from infer_kit.vocab.causal_model import CausalModel, Handle, forgotten
from infer_kit.vocab.forest_facts import mask_kinds, why_no_tree, windows
from infer_kit.vocab.tree_layer import ROOM, Fill, TreeLayer

PACKED = 2048
"""Prompts share a forward while they have no more tokens together."""

_GARBAGE = 64  # dropped positions that are left where they are, beside an eighth of those in use


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
        sizes = windows(config)
        self._windows = {kind: sizes.get(kind) for kind in mask_kinds(config)}
        self._masks_by_kind = getattr(config, "layer_types", None) is not None
        self._fill = Fill()
        self._layers: list[TreeLayer] = []
        layers: list[Any] = DynamicCache(config=config).layers
        for index, layer in enumerate(layers):
            if isinstance(layer, DynamicLayer):
                layers[index] = TreeLayer(self._fill)
                self._layers.append(layers[index])
        self._cache = Cache(layers=layers)
        self._depths = np.zeros(ROOM, np.int64)  # of the token in each slot
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
