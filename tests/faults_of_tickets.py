"""The faults of lottery tickets; see `tests/faults.py`."""

from __future__ import annotations

from tests.faults import Mutant

HOME = "training/tickets/"
TESTS = "tests/training/tickets/"
RNG, FREEZING, MASKS = (f"{TESTS}test_{name}.py" for name in ("rng", "freezing", "masks"))
FILES, SEARCH, META = (f"{TESTS}test_{name}.py" for name in ("tickets", "search", "meta"))
SUBSETS, HEADS = (f"{TESTS}test_{name}.py" for name in ("subsetsum", "attention_slt"))


def _fault(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(f"tickets: {name}", HOME + file, old, new, tests)


TICKET_MUTANTS = (
    _fault(
        "a shift copies the sign",
        "rng.py",
        "    return (z >> by) & ((1 << (64 - by)) - 1)",
        "    return z >> by",
        RNG,
    ),
    _fault(
        "the order of frozen bits is signed",
        "rng.py",
        "torch.sort(signed ^ _int64(1 << 63), stable=True)",
        "torch.sort(signed, stable=True)",
        RNG,
    ),
    _fault(
        "the generation is not drawn",
        "rng.py",
        "            g = gen if gens is None else gens[start:end]",
        "            g = gen if gens is None else gens[:end - start]",
        RNG,
    ),
    _fault(
        "dense layers are found all at once",
        "allocate.py",
        "        dense |= {name for name in sparse if raw[name] == most}",
        "        dense |= {name for name in sparse if factor * raw[name] > 0.5}",
        FREEZING,
    ),
    _fault(
        "what a layer cannot hold is lost",
        "allocate.py",
        "        left -= kept[name]",
        "        left -= left / (len(sizes) - rank)",
        FREEZING,
    ),
    _fault(
        "k is rounded down",
        "masks.py",
        "1 + round(p * (n - 1)) if",
        "1 + int(p * (n - 1)) if",
        MASKS,
    ),
    _fault(
        "ties are pruned in a layer",
        "masks.py",
        'z >= t if self.scope == "layer" else z > t',
        "z > t",
        MASKS,
    ),
    _fault(
        "with k = 0 the largest score is the threshold",
        "masks.py",
        "            return joined.new_tensor(-inf if self.signed else -1.0)",
        "            return joined.max()",
        MASKS,
    ),
    _fault(
        "pruned weights have no gradient",
        "masks.py",
        "        m = _StraightThrough.apply(self.scores, kept, self.rule.signed)",
        "        m = _StraightThrough.apply(self.scores * kept, kept, self.rule.signed)",
        MASKS,
    ),
    _fault(
        "the sign of a score is ignored",
        "masks.py",
        "grad if ctx.signed else grad * ctx.saved_tensors[0].sign()",
        "grad",
        MASKS,
    ),
    _fault(
        "a fused optimizer leaves the threshold",
        "masks.py",
        "        seen = (p, _STEPS.count, *",
        "        seen = (p, 0, *",
        MASKS,
    ),
    _fault(
        "what is frozen and unsearchable passes",
        "masks.py",
        "            if out <= pruned or n - out <= locked:",
        "            if out < pruned or n - out < locked:",
        FREEZING,
    ),
    _fault(
        "the state of another seed is taken",
        "masks.py",
        "        if given is not None and int(given) != int(self.identity):",
        "        if False:",
        FILES,
    ),
    _fault(
        "materialize takes the weight of the search",
        "tickets.py",
        "            _own_class(module)\n",
        "",
        FILES,
    ),
    _fault(
        "the checksum is not looked at",
        "contents.py",
        "        if self.checksum and checksum(fresh, self.raw) != self.checksum:",
        "        if False:",
        FILES,
    ),
    _fault(
        "generations are lost on the way",
        "ticket_file.py",
        "            gens[name][kept[name]] = values",
        "            gens[name][kept[name]] = values.flip(0)",
        FILES,
    ),
    _fault(
        "locked weights are forgotten on the way",
        "ticket_file.py",
        "== LOCKED",
        "== SEARCHED",
        FILES,
    ),
    _fault(
        "only the first third has larger queries and keys",
        "qk_scale.py",
        "        return 1, 0, 2 * shape[1] // 3",
        "        return 1, 0, shape[1] // 3",
        FILES,
    ),
    _fault(
        "kept weights are drawn anew",
        "search.py",
        "        pruned = ~layer.mask(self.rerand_rate)",
        "        pruned = layer.mask(self.rerand_rate)",
        SEARCH,
    ),
    _fault(
        "frozen weights are drawn anew",
        "search.py",
        "            pruned &= layer.frozen == SEARCHED",
        "            pass",
        SEARCH,
    ),
    _fault(
        "generators stay where the skipped batches left them",
        "fit.py",
        "        checkpoint_file.set_generators(now, data)\n",
        "        pass\n",
        SEARCH,
    ),
    _fault(
        "the gradient of the inner gradient is lost",
        "meta.py",
        "        if first_order:",
        "        if True:",
        META,
    ),
    _fault(
        "a subset is looked for on one side",
        "subsetsum.py",
        "    np.putmask(gap, first[:, 1:] == first[:, :-1], np.inf)",
        "    np.putmask(gap, ~(first[:, :-1] & ~first[:, 1:]), np.inf)",
        SUBSETS,
    ),
)
