"""The faults of groups in vLLM; see `tests/faults.py`. They need an environment with vLLM."""

from __future__ import annotations

from tests.faults import Mutant

SCHEDULER, BOOK = "vllm/scheduler.py", "vllm/scheduled_groups.py"
BATCH, PROCESSOR = "vllm/batch_groups.py", "vllm/processor.py"
JOBS, SAMPLING, PROMPTS = "vllm/jobs.py", "vllm/sampling.py", "vllm/prompts.py"
BACKEND = "vllm/backend.py"

RANDOM = "tests/vllm/test_groups.py::test_random_groups"
ENDS = "tests/vllm/test_lifecycle.py"
POOLS = "tests/vllm/test_batch_groups.py"
LAW = "tests/vllm/test_backend_law.py"
DRAWN = "tests/vllm/test_sampling_groups.py"

VLLM_MUTANTS = (
    Mutant(
        "vllm: members read their last token when they like",
        SCHEDULER,
        "        return max(min(tokens, known - 1 - num_computed_tokens), 0)\n",
        "        return tokens if known else 0\n",
        (f"{RANDOM}[default]",),
    ),
    Mutant(
        "vllm: groups draw without blocks for all members",
        SCHEDULER,
        "            while needed > free and self._make_room(group, front):\n"
        "                free = self._free_block_count() - sum(map(self._blocks_needed, front))\n"
        "            if needed > free:\n"
        "                if not self._others_hold_blocks(group):\n"
        "                    self._fail(group, _TOO_LARGE)\n"
        "                break\n",
        "",
        (f"{RANDOM}[pressure]",),
    ),
    Mutant(
        "vllm: groups that are released stay where they are in the queue",
        SCHEDULER,
        "        self.running = front + [r for r in self.running if id(r) not in chosen]\n",
        "        self.running = [r for r in self.running if id(r) or id(r) not in chosen]\n",
        ("tests/vllm/test_groups.py::test_prompts_before_a_group_leave_one_token[chunked]",),
    ),
    Mutant(
        "vllm: a hit that leaves one token is taken whole",
        SCHEDULER,
        "        if free or hit == 0 or hit < request.num_tokens - 1:\n",
        "        if free or hit == 0 or hit < request.num_tokens:\n",
        ("tests/vllm/test_groups.py::test_a_hit_that_leaves_one_token[default-True]",),
    ),
    Mutant(
        "vllm: members of one token enter like others",
        SCHEDULER,
        "                if request.num_tokens > 1:  # else see `_run_alone`\n",
        "                if request.num_tokens:\n",
        (f"{RANDOM}[default]",),
    ),
    Mutant(
        "vllm: the victims of a preemption are single members",
        SCHEDULER,
        "        victims = [request] if group is None else group.requests()\n"
        "        now = time.monotonic()\n",
        "        victims = [request]\n        now = time.monotonic()\n",
        (f"{RANDOM}[pressure]", f"{RANDOM}[async-pressure]"),
    ),
    Mutant(
        "vllm: a group goes on when a member has ended",
        SCHEDULER,
        "            if any(r.is_finished() for r in requests):\n",
        "            if all(r.is_finished() for r in requests):\n",
        (f"{ENDS}::test_a_stop_token_ends_all",),
    ),
    Mutant(
        "vllm: an abort ends one member",
        SCHEDULER,
        "        for each in {g for r in known if (g := self._book.of(r)) is not None}:\n"
        "            self._end(each)\n",
        "",
        (f"{ENDS}::test_an_incomplete_group_blocks_nobody",),
    ),
    Mutant(
        "vllm: embedded members answer too",
        SCHEDULER,
        "each.outputs = [o for o in each.outputs if o.request_id not in hidden]",
        "each.outputs = [o for o in each.outputs if o.request_id or o.request_id not in hidden]",
        (f"{ENDS}::test_a_stop_token_ends_all", f"{ENDS}::test_embedded_members_stay_hidden"),
    ),
    Mutant(
        "vllm: groups enter before all members will find slots",
        SCHEDULER,
        "                if taken + group.size > self._most_running():\n",
        "                if taken > self._most_running():\n",
        (f"{RANDOM}[chunked]",),
    ),
    Mutant(
        "vllm: a group that its last member spoils is forgotten",
        SCHEDULER,
        "            if spoilt is not None:\n",
        "            if spoilt is None and spoilt:\n",
        (f"{ENDS}::test_weights_that_are_all_zero_end_with_an_error",),
    ),
    Mutant(
        "vllm: the leader's cap alone counts",
        BOOK,
        "        cap = min(*rooms, *(r.max_tokens for r in requests))\n",
        "        cap = min(rooms[0], requests[0].max_tokens)\n",
        (f"{ENDS}::test_room_of_the_longest_member", f"{ENDS}::test_the_least_cap_is_all_members"),
    ),
    Mutant(
        "vllm: token ids are not checked",
        BOOK,
        "        if largest >= self.vocab_size:\n",
        "        if largest > self.vocab_size:\n",
        (f"{ENDS}::test_what_cannot_run_ends_with_an_error",),
    ),
    Mutant(
        "vllm: followers keep the tokens that they drew",
        BATCH,
        "        sampled[self._followers] = sampled[self._led_by]\n",
        "        sampled[self._led_by] = sampled[self._led_by]\n",
        (POOLS, f"{RANDOM}[default]"),
    ),
    Mutant(
        "vllm: members' weights are ignored",
        BATCH,
        "        table = torch.tensor([[m.weight for _, m in chosen[n]] for n in names]",
        "        table = torch.tensor([[1.0 for _, m in chosen[n]] for n in names]",
        (POOLS,),
    ),
    Mutant(
        "vllm: streams of weight 0 have a say",
        BATCH,
        " for k, (_, m) in enumerate(parts) if rule.needs_all or m.weight != 0]",
        " for k, (_, m) in enumerate(parts)]",
        (POOLS,),
    ),
    Mutant(
        "vllm: the cut-off's experts are counted with idle streams",
        BATCH,
        "        experts = tuple(speaking.index(k) for k in rule.experts if k in speaking)\n",
        "        experts = tuple(k % len(speaking) for k in rule.experts)\n",
        (POOLS,),
    ),
    Mutant(
        "vllm: the noise of a seed is that of the first step",
        PROCESSOR,
        "                row: _generator(seed, ours.step(row), logits.device)\n",
        "                row: _generator(seed, 0, logits.device)\n",
        (f"{DRAWN}::test_a_seed_moves_with_the_step",),
    ),
    Mutant(
        "vllm: the seeds of groups reach the runner's own generators",
        BOOK,
        "    return params.seed is not None and not stateless_noise\n",
        "    return params.seed is None and not stateless_noise\n",
        (f"{DRAWN}::test_a_seed_says_what_is_drawn",),
    ),
    Mutant(
        "vllm: several answers of a seed are one",
        JOBS,
        "            each.seed = params.seed + place\n",
        "            each.seed = params.seed\n",
        (f"{DRAWN}::test_several_answers_of_a_seed",),
    ),
    Mutant(
        "vllm: the cut-off's experts are counted with left-out streams",
        JOBS,
        "experts=experts_among(rule.experts, kept))\n",
        "experts=tuple(min(k, len(kept) - 1) for k in rule.experts))\n",
        (f"{LAW}::test_experts_behind_an_idle_stream",),
    ),
    Mutant(
        "vllm: the cut-off's experts are counted as if the primary were first",
        BACKEND,
        "            experts = tuple(order.index(k) for k in group.experts or ())\n",
        "            experts = tuple(group.experts or ())\n",
        (f"{LAW}::test_experts_behind_the_primary",),
    ),
    Mutant(
        "vllm: traces have what was drawn behind the end",
        BACKEND,
        "                    len(ids),  # asynchronous",
        "                    figures.chosen.shape[1],  # asynchronous",
        (f"{DRAWN}::test_penalties_are_those_of_transformers",),
    ),
    Mutant(
        "vllm: end tokens do not end",
        SAMPLING,
        "        stop_token_ids=sorted(end_tokens(config)),\n",
        "        stop_token_ids=sorted(end_tokens(config))[:0],\n",
        (f"{LAW}::test_ends",),
    ),
    Mutant(
        "vllm: suppressed tokens are drawn",
        SAMPLING,
        "        logit_bias=dict.fromkeys(suppressed, -math.inf) or None,\n",
        "        logit_bias=None,\n",
        (f"{LAW}::test_options",),
    ),
    Mutant(
        "vllm: pictures stay clean",
        PROMPTS,
        '            item["pixel_values"].data = part\n',
        '            item["pixel_values"].data = part * 0 + item["pixel_values"].data\n',
        (f"{LAW}::test_methods[VCD]",),
    ),
    Mutant(
        "vllm: noised pictures have the clean ones' names",
        PROMPTS,
        "        made = self._processed(prompt.text, prompt.special, prompt.images, 0, uuids)\n",
        "        made = self._processed(prompt.text, prompt.special, prompt.images, 0, None)\n",
        (f"{LAW}::test_methods[VCD]",),
    ),
    Mutant(
        "vllm: candidates of a trace are not asked for",
        BACKEND,
        "candidates=depth if trace else 0,",
        "candidates=0,",
        (f"{LAW}::test_candidates_of_a_trace",),
    ),
    Mutant(
        "vllm: who says what is plausible is lost in a trace",
        BACKEND,
        "judges = tuple(ran.index(k) for k in group.experts or () if k in ran)",
        "judges = ()",
        (f"{LAW}::test_methods[VCD]",),
    ),
)
