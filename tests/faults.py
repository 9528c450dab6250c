"""The faults that `tests/mutants.py` seeds, and the tests that must notice each."""

from __future__ import annotations

from dataclasses import dataclass

GROUPS, MERGE = "engine/groups.py", "engine/cache_merge.py"
CACHE, POOLING = "engine/stream_cache.py", "engine/pooling.py"
GRID = "tests/engine/test_coupled_lm.py"
LAWS = "tests/engine/test_laws.py"
POOL = "tests/engine/test_pooling.py"
MODELS = "tests/engine/test_coupled_lm_models.py"
IMAGES = "tests/engine/test_image_features.py"
LVLM = "tests/engine/test_lvlm.py"
PREFIXES = "tests/engine/test_context_prefix.py"
ROWS = "tests/engine/test_rows.py"
ICL, ICL_REFUSALS = (
    "tests/methods/test_parallel_icl.py",
    "tests/methods/test_parallel_icl_refusals.py",
)
CONTRASTIVE, NOISE = "methods/contrastive.py", "engine/image_noise.py"
CONTRAST = "tests/methods/test_contrastive.py"
CONTRAST_LAWS = "tests/methods/test_contrastive_laws.py"
BUDGETS = "tests/methods/test_contrastive_budgets.py"
RECORDING = "tests/engine/test_recording.py"


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
        "engine/recording.py",
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
    Mutant(
        "contrast: cut-off taken on the pooled scores",
        POOLING,
        "        return plausible(pooled, expert, self.plausibility)",
        "        return plausible(pooled, pooled, self.plausibility)",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: cut-off taken on the amateur",
        POOLING,
        "        expert = logits[:, chosen[0]]\n",
        "        expert = logits[:, -1]\n",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: cut-off taken on the first of several experts",
        POOLING,
        "        if len(chosen) > 1:\n",
        "        if False:\n",
        (POOL,),
    ),
    Mutant(
        "contrast: several experts not weighted",
        POOLING,
        "            expert = product(logits[:, chosen], shares)",
        "            expert = product(logits[:, chosen], torch.ones_like(shares))",
        (POOL,),
    ),
    Mutant(
        "contrast: weights of several experts not normalised",
        POOLING,
        "shares = weights[:, chosen] / weights[:, chosen].sum(1, keepdim=True)",
        "shares = weights[:, chosen]",
        (POOL,),
    ),
    Mutant(
        "contrast: experts by the caller's numbers",
        POOLING,
        "        experts=tuple(streams.index(k) for k in experts),\n",
        "        experts=tuple(experts),\n",
        (POOL,),
    ),
    Mutant(
        "contrast: cut-off dropped",
        POOLING,
        "        if not self.plausibility or not experts:\n",
        "        if True:\n",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: a lone stream is not cut off",
        POOLING,
        "        if self.plausibility:\n            return False\n",
        "",
        (POOL,),
    ),
    Mutant(
        "contrast: sign of the logarithm of beta",
        "pool.py",
        "keepdim=True) + math.log(cutoff)",
        "keepdim=True) - math.log(cutoff)",
        (CONTRAST, "tests/test_pool.py"),
    ),
    Mutant(
        "contrast: the expert's best token is cut off as well",
        "pool.py",
        "    return pooled.masked_fill(expert < floor, -torch.inf)",
        "    return pooled.masked_fill(expert <= floor, -torch.inf)",
        ("tests/test_pool.py",),
    ),
    Mutant(
        "contrast: decided by a stream without cutting off the others",
        "engine/recording.py",
        "        rest = pooling.cut_off(rest, logprobs, others, experts)\n",
        "",
        (RECORDING, CONTRAST_LAWS),
    ),
    Mutant(
        "contrast: a mixture of the others taken from the pool's own",
        "engine/recording.py",
        '        rest = (product if pooling.pool == "product" else mixture)(logprobs, others)\n',
        '        rest = (product if pooling.pool == "product" else mixture)(logprobs, others)\n'
        '        if pooling.pool == "mixture":\n'
        "            rest = pooled.softmax(-1) - weights[:, k, :, None] * logprobs[:, k].exp()\n",
        (RECORDING,),
    ),
    Mutant(
        "contrast: weights alpha and -alpha",
        CONTRASTIVE,
        "        return [1 + value, -value]\n\n    def _group(",
        "        return [value, -value]\n\n    def _group(",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: third stream of ICD is not counted",
        CONTRASTIVE,
        "        return [2 + 2 * value, -value, -value]",
        "        return [2 + value, -value, -value]",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: CFG off by one",
        CONTRASTIVE,
        "        return [value, 1 - value]",
        "        return [1 + value, -value]",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: negative stream given the positive prompt",
        CONTRASTIVE,
        "other = self.backend.render(negatives[b % len(negatives)], b)",
        "other = self.backend.render(chat, b)",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: the first negative chat for all",
        CONTRASTIVE,
        "other = self.backend.render(negatives[b % len(negatives)], b)",
        "other = self.backend.render(negatives[0], b)",
        (CONTRAST_LAWS,),
    ),
    Mutant(
        "contrast: the negative keeps its images",
        CONTRASTIVE,
        'with_prompt(chat, "", "", images=False)',
        'with_prompt(chat, "", "", images=True)',
        (CONTRAST,),
    ),
    Mutant(
        "contrast: the disturbance comes after the question",
        CONTRASTIVE,
        'with_prompt(chat, f"{self.disturbance}\\n", "")',
        'with_prompt(chat, "", f"{self.disturbance}\\n")',
        (CONTRAST,),
    ),
    Mutant(
        "contrast: document in both streams",
        CONTRASTIVE,
        "for c in (full, chat)]",
        "for c in (full, full)]",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: amateur's temperature turned round",
        CONTRASTIVE,
        "            return [1.0, -1.0 / self.temperature]",
        "            return [1.0, -1.0 * self.temperature]",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: amateur's temperature forgotten with a strength",
        CONTRASTIVE,
        "        return [1 + value, -value / self.temperature]",
        "        return [1 + value, -value]",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: the amateur reads with the expert's model",
        CONTRASTIVE,
        "replace(amateur, model=self._amateur)",
        "replace(amateur, model=None)",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: a contrasted stream forgets its model",
        CONTRASTIVE,
        "replace(s, model=stream.model)",
        "replace(s, model=None)",
        (CONTRAST,),
    ),
    Mutant(
        "contrast: noise without the signal's factor",
        NOISE,
        "kept.sqrt() * pixels.double()",
        "pixels.double()",
        ("tests/engine/test_image_noise.py",),
    ),
    Mutant(
        "contrast: noise one step early",
        NOISE,
        ".cumprod(0)[step]",
        ".cumprod(0)[step - 1]",
        ("tests/engine/test_image_noise.py",),
    ),
    Mutant(
        "contrast: noise from the global generator",
        NOISE,
        "generator=torch.Generator().manual_seed(seed)",
        "generator=None",
        ("tests/engine/test_image_noise.py", CONTRAST_LAWS),
    ),
    Mutant(
        "contrast: weights of a replaced stream's group not multiplied",
        "streams.py",
        "weight=stream.weight * s.weight",
        "weight=s.weight",
        ("tests/test_streams.py", CONTRAST),
    ),
    Mutant(
        "contrast: experts do not follow a replaced stream",
        "streams.py",
        "experts += [begin + e for e in inner_experts]",
        "experts += [k]",
        ("tests/test_streams.py",),
    ),
    Mutant(
        "contrast: divergence of a budget the other way round",
        "pool.py",
        "    return weight * mean - log_z, weight * variance",
        "    return log_z - (base.exp() * reward).sum(-1) * weight, "
        "(mean - (base.exp() * reward).sum(-1))",
        (BUDGETS, "tests/test_pool.py"),
    ),
    Mutant(
        "contrast: a budget's weights without its base",
        "pool.py",
        "    return start[..., None] + solved[:, None] * d[..., None]",
        "    return solved[:, None] * d[..., None]",
        (BUDGETS, "tests/test_pool.py"),
    ),
    Mutant(
        "contrast: a budget measured from the first stream",
        "pool.py",
        "        pi_0 = product(step.logprobs, start).log_softmax(-1)\n",
        "        pi_0 = step.logprobs[:, 0]\n",
        (BUDGETS, "tests/test_pool.py"),
    ),
    Mutant(
        "bank: positions of what follows a prefix start at 0",
        "engine/prefill.py",
        "torch.cat([p[..., -ids.shape[1] :] for p in every], dim=-2)",
        "torch.cat([p[..., : ids.shape[1]] for p in every], dim=-2)",
        (PREFIXES,),
    ),
    Mutant(
        "bank: positions without the images of the prefix",
        "engine/prefill.py",
        '{"attention_mask": torch.ones_like(whole["input_ids"])} | whole,',
        '{"attention_mask": torch.ones_like(whole["input_ids"])},',
        (PREFIXES,),
    ),
    Mutant(
        "bank: states of linear attention shared by all users of a prefix",
        "engine/context_prefix.py",
        'copy.deepcopy(layer) if hasattr(layer, "conv_states") else copy.copy(layer)',
        "copy.copy(layer)",
        (PREFIXES,),
    ),
    Mutant(
        "bank: layers of a prefix written to",
        "engine/context_prefix.py",
        'copy.deepcopy(layer) if hasattr(layer, "conv_states") else copy.copy(layer)',
        "layer",
        (PREFIXES,),
    ),
    Mutant(
        "bank: padding of shorter prefixes visible",
        "engine/prefill.py",
        "    if not bool(mask.all()):\n",
        "    if False:\n",
        (PREFIXES,),
    ),
    Mutant(
        "bank: mask of the first prefix for all",
        "engine/prefill.py",
        '        inputs["attention_mask"] = mask\n',
        '        inputs["attention_mask"] = mask[:1].expand_as(mask)\n',
        (PREFIXES,),
    ),
    Mutant(
        "bank: prompts that go on from prefixes batched whatever their length",
        "engine/prefill.py",
        "                key = (PREFIX, encoded is not None, new)",
        "                key = (PREFIX, encoded is not None, min(new, 6))",
        (PREFIXES,),
    ),
    Mutant(
        "bank: images of a batch in reverse",
        "engine/prefill.py",
        '    outputs = [entry.inputs["mm_encoder_outputs"]["image"] for entry in entries]',
        '    outputs = [entry.inputs["mm_encoder_outputs"]["image"] for entry in entries[::-1]]',
        (PREFIXES,),
    ),
    Mutant(
        "bank: length of a prompt without its prefix",
        "engine/context_prefix.py",
        '    return row["input_ids"].shape[1] + read',
        '    return row["input_ids"].shape[1]',
        (PREFIXES,),
    ),
    Mutant(
        "bank: processors do not see the prefix",
        "engine/context_prefix.py",
        "    return ids if prefix is None else torch.cat",
        "    return ids if True else torch.cat",
        (PREFIXES,),
    ),
    Mutant(
        "bank: a prefix of any model",
        "engine/arguments.py",
        "not isinstance(prefix, ContextPrefix) or prefix.model is not model",
        "not isinstance(prefix, ContextPrefix)",
        (PREFIXES,),
    ),
    Mutant(
        "bank: later images of Gemma 3 read in two passes",
        "engine/model_facts.py",
        '    if later_images and (name in _IMAGES_AT_ONCE or both_ways == "vision"):',
        "    if False:",
        (PREFIXES,),
    ),
    Mutant(
        "bank: Jamba read in two passes",
        "engine/model_facts.py",
        '    "jamba": _RESTARTS,\n',
        "",
        (PREFIXES,),
    ),
    Mutant(
        "bank: a picture alone and one among several taken for alike",
        "engine/model_facts.py",
        "    if not encodes_images_apart(model) and prefix_images and later_images:",
        "    if False:",
        (PREFIXES,),
    ),
    Mutant(
        "unread prefix: its images forgotten",
        "engine/context_prefix.py",
        '    images = [row[PREFIX].images, None if own is None else own["image"]]',
        '    images = [None, None if own is None else own["image"]]',
        (PREFIXES,),
    ),
    Mutant(
        "unread prefix: pixels after it lost",
        "engine/context_prefix.py",
        "    whole |= {name: row[name] for name in rest}\n",
        "",
        (PREFIXES,),
    ),
    Mutant(
        "rows: a template may rewrite the beginning",
        "engine/rows.py",
        "        if len(after) + len(before) != len(whole):",
        "        if False:",
        (ROWS,),
    ),
    Mutant(
        "rows: tokens may join across the boundary",
        "engine/rows.py",
        "        if self._ids(whole, added) != [",
        "        if self._ids(whole, added) == [] != [",
        (ROWS,),
    ),
    Mutant(
        "icl: the prefix of another chunk",
        "methods/chunk_prompts.py",
        "return self.backend.follow(self.prefixes, beginnings, chat, request)",
        "return self.backend.follow(self.prefixes[::-1], beginnings, chat, request)",
        (ICL,),
    ),
    Mutant(
        "icl: every chunk reads all demonstrations",
        "methods/chunk_prompts.py",
        "        for n in members:\n            turns",
        "        for n in range(len(self.demonstrations)):\n            turns",
        (ICL,),
    ),
    Mutant(
        "icl: similarities summed, not averaged",
        "methods/weighting.py",
        "s[list(members)].mean()",
        "s[list(members)].sum()",
        (ICL,),
    ),
    Mutant(
        "icl: temperature ignored",
        "methods/weighting.py",
        "keepdim=True)) / temperature).softmax(dim)",
        "keepdim=True)) / 1.0).softmax(dim)",
        (ICL,),
    ),
    Mutant(
        "icl: weights not a softmax",
        "methods/parallel_icl.py",
        "        return similarity_weights(features @ query, "
        "[*map(list, parts)], self.temperature)",
        "        s = [float((features[list(m)] @ query).mean()) for m in parts]\n"
        "        return [x / sum(s) for x in s]",
        (ICL,),
    ),
    Mutant(
        "icl: the first query's weights for all",
        "methods/parallel_icl.py",
        "            weights = self._weights(parts, None if queries is None else queries[b])",
        "            weights = self._weights(parts, None if queries is None else queries[0])",
        (ICL,),
    ),
    Mutant(
        "icl: clusters sorted and cut in equal slices",
        "methods/chunking.py",
        "            parts = _split_largest(_members(_kmeans(points, chunks, seed)), chunks)",
        "            labels = _kmeans(points, chunks, seed)\n"
        "            parts = _cut(sorted(range(len(labels)), key=labels.__getitem__), chunks)",
        (ICL,),
    ),
    Mutant(
        "icl: chunks of one's own reordered",
        "methods/chunking.py",
        "    return [[int(i) for i in part] for part in parts]",
        "    return _in_order(parts)",
        (ICL,),
    ),
    Mutant(
        "icl: entropy weights of the wrong sign",
        "methods/weighting.py",
        "return _softmax(-entropy.double(), temperature, dim=1).float()",
        "return _softmax(entropy.double(), temperature, dim=1).float()",
        (ICL,),
    ),
    Mutant(
        "icl: answers left out of the demonstrations' features",
        "methods/parallel_icl.py",
        '[f"{demo.question} {demo.answer}" for demo in demos]',
        '[f"{demo.question}" for demo in demos]',
        (ICL,),
    ),
    Mutant(
        "icl: encoded images of fit forgotten",
        "methods/parallel_icl.py",
        "        return self._memory.copy()",
        "        return self.backend.new_memory()",
        (ICL,),
    ),
    Mutant(
        "icl: only the first chunk says what is plausible",
        "methods/parallel_icl.py",
        "ran = [tuple(k for k, s in enumerate(group.streams) if s.weight) for group in groups]",
        "ran = [(0,) for group in groups]",
        (ICL,),
    ),
    Mutant(
        "icl: twins not noticed",
        "methods/parallel_icl.py",
        "            if twin is not None:",
        "            if False:",
        (ICL,),
    ),
    Mutant(
        "icl: pools of any model",
        "methods/fitted_pool.py",
        '        if config["fingerprint"] != fingerprint:',
        "        if False:",
        (ICL_REFUSALS,),
    ),
    Mutant(
        "icl: chunks are read before the others are checked",
        "methods/chunk_prompts.py",
        "contexts = [self.backend.render(chat, 0, answer=False) for chat in beginnings]\n",
        "contexts = []\n"
        "            for chat in beginnings:\n"
        "                contexts.append(self.backend.render(chat, 0, answer=False))\n"
        "                self.backend.prefix(contexts[-1], memory, read)\n",
        (ICL_REFUSALS,),
    ),
    Mutant(
        "icl: a number of chunks proposed without room for the system's turn",
        "methods/chunk_prompts.py",
        "            room -= self._tokens_of(self.beginning([]), limit)",
        "            room -= 0",
        (ICL_REFUSALS,),
    ),
    Mutant(
        "icl: texts of an encoder padded on the left",
        "methods/demonstrations.py",
        'padding_side="right"',
        'padding_side="left"',
        ("tests/methods/test_demonstrations.py",),
    ),
)
