"""The faults that `tests/mutants.py` seeds, and the tests that must notice each."""

from __future__ import annotations

from dataclasses import dataclass

GROUPS, MERGE = "engine/groups.py", "engine/cache_merge.py"
CACHE, POOLING = "engine/stream_cache.py", "pooling.py"
GRID = "tests/engine/test_coupled_lm.py"
LAWS = "tests/engine/test_laws.py"
POOL = "tests/test_pooling.py"
MODELS = "tests/engine/test_coupled_lm_models.py"
IMAGES = "tests/engine/test_image_features.py"
LVLM = "tests/engine/test_lvlm.py"


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` in `file` (under infer_kit/) becomes `new`; `tests` must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (GRID,)


MUTANTS = (
    Mutant(
        "pads visible",
        GROUPS,
        "return (torch.arange(total, device=device) >= padding[:, None]).long()",
        "return (torch.arange(total, device=device) >= 0 * padding[:, None]).long()",
    ),
    Mutant(
        "positions + 1",
        GROUPS,
        'inputs["position_ids"] = self.position + torch.arange(n, device=rows.device)',
        'inputs["position_ids"] = self.position + torch.arange(n, device=rows.device) + 1',
    ),
    Mutant(
        "positions from the padded length",
        GROUPS,
        "            self.position = torch.cat(positions, dim=-2) + 1\n",
        "            self.position = torch.cat(positions, dim=-2) + 1\n"
        "            self.position = torch.ones_like(self.position) * self.position.amax(-2)\n",
    ),
    Mutant(
        "M-RoPE positions of the last prompt for all",
        GROUPS,
        "            self.position = torch.cat(positions, dim=-2) + 1\n",
        "            self.position = torch.cat(positions, dim=-2) + 1\n"
        "            if self.position.dim() == 3:\n"
        "                self.position[1:] += (self.position[1:] - self.position[:1])[:, -1:]\n"
        "                self.position[1:] -= self.position[1:] - self.position[:1]\n",
        (LVLM,),
    ),
    Mutant(
        "beam reorder skipped",
        CACHE,
        "        for group in self._groups:\n            group.gather(beam_idx)\n",
        "        for group in self._groups:\n"
        "            if len(beam_idx) != len(self.request):\n"
        "                group.gather(beam_idx)\n",
    ),
    Mutant(
        "stride K ignored",
        GROUPS,
        "rows = (index[:, None] * s + torch.arange(s, device=index.device)).reshape(-1)",
        "rows = index.repeat_interleave(s)",
    ),
    Mutant(
        "mask not reordered",
        GROUPS,
        "            self.mask = self.mask.index_select(0, rows)\n",
        "            self.mask = self.mask[:1].expand(len(rows), -1)\n",
    ),
    Mutant(
        "positions not reordered",
        GROUPS,
        "            self.position = self.position.index_select(-2, rows)\n",
        "            self.position = self.position[..., :1, :].expand(\n"
        "                *self.position.shape[:-2], len(rows), -1\n"
        "            )\n",
    ),
    Mutant(
        "crop of the cache skipped",
        GROUPS,
        "        self.cache.crop(-tokens)  #",
        "        self.cache.crop(0)  #",
    ),
    Mutant(
        "crop of positions skipped",
        GROUPS,
        "                self.position = self.position - tokens\n",
        "                self.position = self.position\n",
    ),
    Mutant(
        "crop of the mask skipped",
        GROUPS,
        "                self.mask = self.mask[:, :-tokens]\n",
        "                self.mask = self.mask\n",
        ("tests/engine/test_stream_cache.py",),
    ),
    Mutant(
        "crop of the serial state's positions skipped",
        GROUPS,
        "value.narrow(axis, 0, value.shape[axis] - tokens)",
        "value.narrow(axis, 0, value.shape[axis])",
        ("tests/engine/test_groups.py", "tests/engine/test_stream_cache.py"),
    ),
    Mutant(
        "crop of 0 not forwarded",
        GROUPS,
        "        self.cache.crop(-tokens)  #",
        "        _ = tokens and self.cache.crop(-tokens)  #",
        ("tests/engine/test_stream_cache.py",),
    ),
    Mutant(
        "right-padded merge",
        MERGE,
        "merged[start : start + len(state), :, width - kept.shape[-2] :] = kept",
        "merged[start : start + len(state), :, : kept.shape[-2]] = kept",
    ),
    Mutant(
        "sliding length of row 0",
        MERGE,
        "        layers[0].cumulative_length = total\n",
        "        layers[0].cumulative_length = layers[0].cumulative_length\n",
    ),
    Mutant(
        "sliding layers keep the whole window",
        MERGE,
        "    return length if window is None else min(length, window - 1)",
        "    return length if window is None else min(length, window)",
    ),
    Mutant(
        "-inf guard dropped",
        "pool.py",
        "    if not signed:\n",
        "    if True:\n",
        (POOL, "tests/test_pool.py"),
    ),
    Mutant(
        "negative weights called unsigned",
        POOLING,
        "return self.weights is None or bool((self.weights < 0).any())",
        "return False",
        (POOL,),
    ),
    Mutant(
        "bare log-probabilities",
        POOLING,
        "            return product(logits, weights, signed=self.signed)",
        "            return product(logits.log_softmax(-1), weights, signed=self.signed)",
        (LAWS,),
    ),
    Mutant(
        "bare mixture",
        POOLING,
        "return mixture(logprobs, weights) + (w[..., None] * log_z).sum(1)",
        "return mixture(logprobs, weights)",
        (LAWS,),
    ),
    Mutant(
        "streams of weight zero run",
        POOLING,
        "    running = present & (table != 0)",
        "    running = present",
        (LAWS,),
    ),
    Mutant(
        "streams of weight zero added",
        POOLING,
        "    running = present & (table != 0)",
        "    running = present\n    table = table.masked_fill(table == 0, 0.05)",
        (LAWS,),
    ),
    Mutant(
        "a lone stream of any weight is the identity",
        POOLING,
        "return bool((self.weights == 1).all())",
        "return True",
    ),
    Mutant(
        "request 0's weights for all",
        POOLING,
        "            return self.weights.index_select(0, request)",
        "            return self.weights.index_select(0, request * 0)",
        (LAWS,),
    ),
    Mutant(
        "weights of the wrong step",
        "engine/coupled_lm.py",
        "position = cache.new_tokens - fed.shape[1] + 1",
        "position = cache.new_tokens - fed.shape[1]",
        (POOL,),
    ),
    Mutant(
        "streams of missing models counted",
        GROUPS,
        "    each = {counts[request] for request in range(requests)}",
        "    each = set(counts.values())",
        (MODELS,),
    ),
    Mutant(
        "prompts prefilled together keep the order of their batches",
        GROUPS,
        "            self.prompt_logits = logits.index_select(0, rows)\n",
        "            self.prompt_logits = logits\n",
        (GRID, "tests/engine/test_groups.py"),
    ),
    Mutant(
        "vocabularies not compared",
        "engine/arguments.py",
        "        if alike < len(ids) or max(ids, default=0) >= common:",
        "        if max(ids, default=0) >= common:",
        (MODELS,),
    ),
    Mutant(
        "images told apart by shape, not by pixels",
        "engine/image_features.py",
        "    return (tuple(value.shape), str(value.dtype), content)",
        "    return (tuple(value.shape), str(value.dtype), content and 0)",
        (IMAGES, LVLM),
    ),
    Mutant(
        "images told apart without the model",
        "engine/image_features.py",
        "    return (id(model), *((name, _digest(vision[name])) for name in sorted(vision)))",
        "    return (0, *((name, _digest(vision[name])) for name in sorted(vision)))",
        (IMAGES,),
    ),
    Mutant(
        "encoded images never shared",
        "engine/image_features.py",
        "        if whole not in self._outputs:\n",
        "        if True:\n",
        (IMAGES,),
    ),
    Mutant(
        "grid of the images dropped",
        "engine/image_features.py",
        '_KEPT_WITH_FEATURES = {"image_grid_thw"}',
        "_KEPT_WITH_FEATURES: set = set()",
        (LVLM,),
    ),
    Mutant(
        "padding mask passed to the prefill's positions of image prompts",
        "engine/prefill.py",
        '            ids, {**kwargs, "attention_mask": ones}\n',
        '            ids, {"attention_mask": ones}\n',
        (LVLM,),
    ),
    Mutant(
        "serial gather skipped",
        GROUPS,
        "        self.cache.reorder_cache(rows)\n        self.ids",
        "        self.cache.reorder_cache(rows * 0)\n        self.ids",
        ("tests/engine/test_groups.py", "tests/engine/test_stream_cache.py"),
    ),
    Mutant(
        "figures of a trace taken for the wrong token between chunks",
        "engine/recording.py",
        "            self._settle(fed[:, 0])\n",
        "            self._settle(fed[:, -1] * 0)\n",
        ("tests/engine/test_recording.py",),
    ),
    Mutant(
        "cross-attention told by length alone",
        GROUPS,
        "    cross_attention = cross_attention_layers(model)\n",
        "    cross_attention = ()\n",
        ("tests/engine/test_mllama.py",),
    ),
    Mutant(
        "what one stream excludes stays excluded without it",
        "token_statistics.py",
        "        experts = [e for e in pooling.experts if e != k]\n",
        "        experts = [e for e in pooling.experts if e != k]\n"
        "        rest = rest.masked_fill(pooled.isneginf(), -torch.inf)\n",
        (POOL,),
    ),
    Mutant(
        "rejected drafts left in the trace",
        CACHE,
        "            self.recorder.crop(-tokens_to_remove)",
        "            self.recorder.crop(0)",
        ("tests/engine/test_recording.py",),
    ),
    Mutant(
        "the trace shares memory with what generate writes to",
        "engine/coupled_lm.py",
        "            pooled = pooled.clone()  #",
        "            pooled = pooled  #",
        ("tests/engine/test_recording.py",),
    ),
)
