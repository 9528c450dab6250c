"""The faults of reduced vocabularies and their ensembles; see `tests/faults.py`."""

from __future__ import annotations

from tests.faults import Mutant

REDUCER, REDUCTION = "vocab/reducer.py", "vocab/reduction.py"
CANONICAL, POOLED = "vocab/canonical.py", "vocab/pooled_text.py"
READING, CALL = "vocab/reading.py", "vocab/symbol_call.py"
WEIGHTING, CONDITIONING = "vocab/weighting.py", "vocab/conditioning.py"
TREE, SUBMAP, TRIE = "vocab/tree_kv.py", "vocab/submap.py", "vocab/trie.py"

MODES = "tests/vocab/test_reducer_modes.py"
POOLING = "tests/vocab/test_pooled_text.py"
SCORES = "tests/vocab/test_ensemble_scores.py"
GENERATE = "tests/vocab/test_ensemble_generate.py"
PACE = "tests/vocab/test_pace.py"
PROMPTS = "tests/vocab/test_conditioning.py"
WEIGHTS = "tests/vocab/test_weighting.py"
FOREST = "tests/vocab/test_tree_kv.py"

VOCAB_MUTANTS = (
    Mutant(
        "vocab: the ledger is never read while something is retained",
        REDUCER,
        "        if retained > 0 and rest <= self.eps * total:\n",
        "        if retained > 0:\n",
        (MODES,),
    ),
    Mutant(
        "vocab: a revived entry skips a symbol",
        REDUCER,
        "        for symbol in entry.symbols:\n",
        "        for symbol in entry.symbols[1:]:\n",
        (POOLING,),
    ),
    Mutant(
        "vocab: the scale of the first symbols is lost",
        REDUCER,
        "        self.log_scale += math.log(retained)\n",
        "        self.log_scale = math.log(retained)\n",
        (POOLING,),
    ),
    Mutant(
        "vocab: the ledger keeps its old scale",
        REDUCER,
        "            entry.mass /= retained\n",
        "            entry.mass /= 1.0\n",
        (POOLING,),
    ),
    Mutant(
        "vocab: bounds after a prompt forget what was left out in it",
        REDUCER,
        "        self.given = math.log1p(self.ledger)\n",
        "        self.given = 0.0\n",
        (SCORES, MODES),
    ),
    Mutant(
        "vocab: what is unread cannot end",
        REDUCER,
        "self._forgotten + math.fsum(e.mass for e in self._unread if e.may_end)",
        "self._forgotten",
        (POOLING,),
    ),
    Mutant(
        "vocab: canonical mass is lost unseen",
        REDUCER,
        "                    lost += mass\n",
        "                    lost += 0.0\n",
        ("tests/vocab/test_leak.py",),
    ),
    Mutant(
        "vocab: a text may end inside a character",
        REDUCTION,
        "for symbol in self.symbols] + [not tail])",
        "for symbol in self.symbols] + [True])",
        (POOLING, SCORES, GENERATE),
    ),
    Mutant(
        "vocab: warpers of tokens do nothing",
        REDUCTION,
        "            logits = warper(",
        "            warper(",
        ("tests/vocab/test_odd_prompts.py",),
    ),
    Mutant(
        "vocab: words in progress are judged as if they were whole",
        CANONICAL,
        "        return since in self._words_in_progress\n",
        "        return False\n",
        ("tests/vocab/test_canonical.py", MODES),
    ),
    Mutant(
        "vocab: bytes of a character that is a piece stay",
        CANONICAL,
        "            return self._encoded(character) == [*pending, token]\n",
        "            return True\n",
        ("tests/vocab/test_canonical.py", MODES),
    ),
    Mutant(
        "vocab: what comes before an added token in progress is taken for settled",
        CANONICAL,
        'self.text[:-count].decode(), ""), "") for count in begun)',
        'self.text[:-count].decode(), ""), "") for count in begun[:0])',
        ("tests/vocab/test_canonical.py", MODES),
    ),
    Mutant(
        "vocab: masses are differences of one running sum",
        TRIE,
        "        return np.add.reduceat(masses, starts - self._low[node])\n",
        "        sums = np.append(0.0, np.cumsum(masses))\n"
        "        ends = np.append(starts[1:] - self._low[node], len(masses))\n"
        "        return sums[ends] - sums[starts - self._low[node]]\n",
        ("tests/vocab/test_trie.py",),
    ),
    Mutant(
        "vocab: symbols above 255 in the order of their low bytes",
        TRIE,
        'np.uint8 if small else ">u4"',
        'np.uint8 if small else "<u4"',
        ("tests/vocab/test_trie.py",),
    ),
    Mutant(
        "vocab: symbols that one member cannot write stay in the pool",
        POOLED,
        "            writable = ((laws > 0) | unread).all(0)\n",
        "            writable = ((laws > 0) | unread).any(0)\n",
        (POOLING,),
    ),
    Mutant(
        "vocab: the pooled bound forgets that some symbols are left out",
        POOLED,
        "ledgers[:, 0]) + missed) / (total + missed)",
        "ledgers[:, 0]) + missed) / 1.0",
        ("tests/vocab/test_left_out.py",),
    ),
    Mutant(
        "vocab: posterior weights are scored step by step",
        POOLED,
        '        if self._weighting.rule == "bayes":  # the mixture of whole texts\n',
        "        if False:\n",
        (SCORES,),
    ),
    Mutant(
        "vocab: a product's score is not normalised",
        POOLED,
        "float(weights @ np.log(likely)) - self._log_total",
        "float(weights @ np.log(likely))",
        (SCORES,),
    ),
    Mutant(
        "vocab: texts to score read as soon as one waits",
        "vocab/pace.py",
        "            if going and all(map(self.waits, going)):\n",
        "            if going and any(map(self.waits, going)):\n",
        ("tests/vocab/test_ensemble_laws.py",),
    ),
    Mutant(
        "vocab: texts that are written go in step",
        "vocab/symbol_lm.py",
        "            if not self._in_step and not all(waits):\n",
        "            if False:\n",
        (PACE,),
    ),
    Mutant(
        "vocab: a copy of the reducer goes on in its place",
        "vocab/pace.py",
        "waiting = reader.go_on(reducer, reducer.advance(symbol))",
        "waiting = reader.go_on(reducer, reducer.fork().advance(symbol))",
        (POOLING,),
    ),
    Mutant(
        "vocab: what a text waits for is dropped from the cache",
        READING,
        "        live |= {node for node, _ in asked}\n",
        "",
        (PACE, GENERATE),
    ),
    Mutant(
        "vocab: nothing is read ahead",
        READING,
        "            wanted |= dict.fromkeys(ahead[:",
        "            wanted |= dict.fromkeys(ahead[:0][:",
        (MODES,),
    ),
    Mutant(
        "vocab: stop texts are looked for in the prompt",
        CALL,
        "for row in input_ids[:, self._start :]]",
        "for row in input_ids]",
        ("tests/vocab/test_symbol_call.py",),
    ),
    Mutant(
        "vocab: texts that wait are ended by their calls",
        CALL,
        "        return (input_ids[:, 1:] != self._wait).sum(1) >= self._most\n",
        "        return (input_ids[:, 1:] >= 0).sum(1) >= self._most\n",
        (PACE,),
    ),
    Mutant(
        "vocab: a text is cut at its last stop text",
        CALL,
        "    return text[: min(ends)] if ends else text\n",
        "    return text[: max(ends)] if ends else text\n",
        ("tests/vocab/test_symbol_call.py",),
    ),
    Mutant(
        "vocab: fixed share does not share",
        WEIGHTING,
        "(1 - self.switching_rate) * posterior + self.switching_rate * self.start()",
        "(1 - self.switching_rate) * posterior + self.switching_rate * posterior",
        (WEIGHTS,),
    ),
    Mutant(
        "vocab: the unsurer member counts more",
        WEIGHTING,
        "np.exp(entropy.min() - entropy)",
        "np.exp(entropy - entropy.max())",
        (WEIGHTS,),
    ),
    Mutant(
        "vocab: healing cuts into special tokens",
        CONDITIONING,
        "    cut = max(len(ids) - healing, start)\n",
        "    cut = max(len(ids) - healing, 0)\n",
        (PROMPTS,),
    ),
    Mutant(
        "vocab: the beginning of a long token is taken for settled",
        CONDITIONING,
        "            return max(healing, len(ids) - before + 1)\n",
        "            return healing\n",
        (PROMPTS,),
    ),
    Mutant(
        "vocab: branches see each other",
        TREE,
        "parent.depth + 1, parent.seen | (1 << slot)))",
        "parent.depth + 1, parent.seen | ((2 << slot) - (1 << start))))",
        (FOREST,),
    ),
    Mutant(
        "vocab: depths stay behind when gaps are closed",
        TREE,
        "        self._depths[: len(kept)] = self._depths[kept]\n",
        "",
        (FOREST,),
    ),
    Mutant(
        "vocab: a token that is a symbol is cut like the others",
        SUBMAP,
        "            elif text in self.index:\n",
        "            elif False:\n",
        ("tests/vocab/test_submap.py",),
    ),
    Mutant(
        "vocab: tokens are cut the way that agrees worst",
        "vocab/mismatch.py",
        "    method = min(found, key=",
        "    method = max(found, key=",
        ("tests/vocab/test_alphabet.py",),
    ),
)
