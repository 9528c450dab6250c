"""A forest with a row of a cache for each node, for models that one row cannot hold."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from infer_kit.engine.cache_merge import has_keys, merge_caches
from infer_kit.engine.cache_name import CACHE
from infer_kit.vocab.causal_model import CausalModel, Handle, forgotten
from infer_kit.vocab.forest_facts import cache_argument, pads

_READ_TOGETHER = 4096  # tokens of equally long sequences that are read whole in one forward


@dataclass(slots=True, eq=False)
class _Block:
    """The cache after one forward: a row a node, the shorter ones left-padded.

    Attributes:
        lengths: tokens of each row.
    """

    cache: Cache
    lengths: list[int]

    def rows(self, index: Sequence[int]) -> "_Block":
        """Some rows, copied, without the padding that they do not need."""
        lengths = [self.lengths[row] for row in index]
        longest = max(lengths)
        cache = copy.copy(self.cache)
        cache.layers = []
        for layer in self.cache.layers:
            part = copy.copy(layer)
            for name, value in vars(layer).items():
                if isinstance(value, dict):  # linear attention has its states and flags in these
                    setattr(part, name, dict(value))
            cache.layers.append(part)
        device = next((t.device for layer in cache.layers for t in _states(layer)), None)
        cache.reorder_cache(torch.tensor(index, device=device))
        for layer in cache.layers:
            if has_keys(layer):
                width = min(longest, layer.keys.shape[-2])
                layer.keys = layer.keys[:, :, -width:]
                layer.values = layer.values[:, :, -width:]
                if hasattr(layer, "cumulative_length"):
                    layer.cumulative_length = longest
        return _Block(cache, lengths)


@dataclass(slots=True)
class _Node:
    """A token, or a prompt.

    Attributes:
        tokens: the prompt's, or one.
        depth: position of the (last) token.
        block, row: where the state after it is; None if it has to be read anew to go on from it.
    """

    parent: Handle | None
    tokens: tuple[int, ...]
    depth: int
    block: _Block | None = None
    row: int = 0


class BatchedKV:
    """A forest with a row of a cache for each node. Slower than `TreeKV`, and for every model.

    A forward of n new tokens is a batch of n rows: copies of the parents' rows, left-padded to
    the longest. What has no row is read whole, without padding: prompts, ancestors whose row `keep`
    has dropped, and everything where a model's state is of a kind not known here.

    Attributes:
        rows: token positions computed by `extend`.
        cached: whether states are kept; else every sequence is read from its beginning each time.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._lm = CausalModel(model)
        self._cache_name = cache_argument(model, self._lm.parameters)
        self._pads = pads(model, self._lm.parameters)
        self._nodes: dict[Handle, _Node] = {}  # parents come before their children
        self._next = 0
        self.rows = 0

    @property
    def calls(self) -> int:
        """Forwards made."""
        return self._lm.calls

    @property
    def cached(self) -> bool:
        return self._cache_name is not None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Handle], Tensor]:
        """Read prompts; those of equal length share forwards. See `TreeKV.prefill`."""
        self._lm.check_prompts(prompts)
        wanted = [tuple(map(int, prompt)) for prompt in prompts]
        distinct = list(dict.fromkeys(wanted))
        if not distinct:
            return [], self._lm.no_logits()
        new = [_Node(None, prompt, len(prompt) - 1) for prompt in distinct]
        logits = self._read(new, distinct)
        handles = {prompt: self._add(node) for prompt, node in zip(distinct, new, strict=True)}
        order = {prompt: row for row, prompt in enumerate(distinct)}
        return [handles[p] for p in wanted], logits[[order[p] for p in wanted]]

    def extend(self, nodes: Sequence[tuple[Handle, int]]) -> tuple[list[Handle], Tensor]:
        """Read a token after each of the given nodes, in as few forwards as can be.

        That is one, where all parents have a row and rows of unequal length may share a batch. See
        `TreeKV.extend`.
        """
        if not nodes:
            return [], self._lm.no_logits()
        new = []
        for handle, token in nodes:
            if handle not in self._nodes:
                raise forgotten(handle)
            new.append(_Node(handle, (token,), self._nodes[handle].depth + 1))
        depths = [node.depth for node in new]
        self._lm.check([token for _, token in nodes], max(depths) + 1)
        groups: dict[Any, list[int]] = {}
        for index, (handle, _) in enumerate(nodes):
            has_row = self._nodes[handle].block is not None
            uneven = None if self._pads else depths[index]
            groups.setdefault((has_row, uneven if has_row else None), []).append(index)
        logits: list[Tensor | None] = [None] * len(new)
        for (has_row, _), group in groups.items():
            members = [new[index] for index in group]
            if has_row:
                part = self._step(members)
                self.rows += len(members)
            else:
                paths = [self._path(node) for node in members]
                part = self._read(members, paths)
                self.rows += sum(map(len, paths))
            for index, row in zip(group, part, strict=True):
                logits[index] = row
        return [self._add(node) for node in new], torch.stack([x for x in logits if x is not None])

    def keep(self, live: Iterable[Handle]) -> None:
        """Forget every node that is neither live nor an ancestor of a live one.

        Ancestors that are not live lose their row, and are read anew if something follows them.
        """
        wanted = set(live)
        kept: set[Handle] = set()
        for live_handle in wanted:
            if live_handle not in self._nodes:
                raise forgotten(live_handle)
            handle: Handle | None = live_handle
            while handle is not None and handle not in kept:
                kept.add(handle)
                handle = self._nodes[handle].parent
        self._nodes = {handle: node for handle, node in self._nodes.items() if handle in kept}
        owners: dict[_Block, list[_Node]] = {}
        for handle, node in self._nodes.items():
            if handle not in wanted:
                node.block = None
            elif node.block is not None:
                owners.setdefault(node.block, []).append(node)
        for block, members in owners.items():
            if 2 * len(members) <= len(block.lengths):  # copied when half of it is of no use
                smaller = block.rows([node.row for node in members])
                for row, node in enumerate(members):
                    node.block, node.row = smaller, row

    def _step(self, new: Sequence[_Node]) -> Tensor:
        """One token for each of some nodes whose parents have rows; logits `[len(new), V]`."""
        parents = [self._nodes[node.parent] for node in new if node.parent is not None]
        taken: dict[_Block, list[int]] = {}
        for index, parent in enumerate(parents):
            assert parent.block is not None
            taken.setdefault(parent.block, []).append(index)
        parts = [block.rows([parents[i].row for i in index]) for block, index in taken.items()]
        cache = merge_caches([part.cache for part in parts], [max(part.lengths) for part in parts])
        order = [index for group in taken.values() for index in group]  # of the batch's rows
        lengths = [length + 1 for part in parts for length in part.lengths]
        device = self._lm.device
        inputs: dict[str, Any] = {"use_cache": True, self._cache_name or CACHE: cache}
        if "position_ids" in self._lm.parameters:
            depths = [new[index].depth for index in order]
            inputs["position_ids"] = torch.tensor(depths, device=device)[:, None]
        width = max(lengths)
        if min(lengths) < width and any(has_keys(layer) for layer in cache.layers):
            pads = torch.tensor([width - length for length in lengths], device=device)
            columns = torch.arange(width, device=device)
            inputs["attention_mask"] = (columns >= pads[:, None]).long()
        ids = torch.tensor([new[index].tokens for index in order], device=device)
        logits = self._lm(input_ids=ids, **inputs)[:, -1]
        block = _Block(cache, lengths)
        for row, index in enumerate(order):
            new[index].block, new[index].row = block, row
        back = torch.tensor(order, device=logits.device).argsort()
        return logits[back]

    def _read(self, new: Sequence[_Node], paths: Sequence[tuple[int, ...]]) -> Tensor:
        """Whole sequences, equally long ones together; logits `[len(new), V]` after them."""
        logits: list[Tensor | None] = [None] * len(paths)
        for batch in _equally_long(paths):
            length = len(paths[batch[0]])
            cache = DynamicCache(config=self._lm.config) if self.cached else None
            inputs: dict[str, Any] = {"use_cache": self.cached}
            if self._cache_name is not None:
                inputs[self._cache_name] = cache
            if "position_ids" in self._lm.parameters:
                places = torch.arange(length, device=self._lm.device)
                inputs["position_ids"] = places.expand(len(batch), -1)
            if "logits_to_keep" in self._lm.parameters:
                inputs["logits_to_keep"] = 1
            ids = torch.tensor([paths[index] for index in batch], device=self._lm.device)
            part = self._lm(input_ids=ids, **inputs)[:, -1]
            block = None if cache is None else _Block(cache, [length] * len(batch))
            for row, index in enumerate(batch):
                logits[index] = part[row]
                new[index].block, new[index].row = block, row
        return torch.stack([row for row in logits if row is not None])

    def _path(self, node: _Node) -> tuple[int, ...]:
        """All tokens from the beginning to a node."""
        parts = [node.tokens]
        while node.parent is not None:
            node = self._nodes[node.parent]
            parts.append(node.tokens)
        return tuple(token for part in reversed(parts) for token in part)

    def _add(self, node: _Node) -> Handle:
        handle, self._next = self._next, self._next + 1
        self._nodes[handle] = node
        return handle


def _equally_long(paths: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Indices of sequences, in batches of equal length and bounded size."""
    batches: list[list[int]] = []
    open_batch: dict[int, list[int]] = {}
    for index, path in enumerate(paths):
        batch = open_batch.get(len(path))
        if batch is None or (len(batch) + 1) * len(path) > _READ_TOGETHER:
            batches.append(batch := [])
            open_batch[len(path)] = batch
        batch.append(index)
    return batches


def _states(layer: Any) -> Iterable[Tensor]:
    if has_keys(layer):
        yield layer.keys
    for name in ("conv_states", "recurrent_states"):
        yield from (state for state in getattr(layer, name, {}).values() if state is not None)
