"""The faults of weight symmetry; see `tests/faults.py`."""

from __future__ import annotations

from tests.faults import Mutant

HOME = "training/symmetry/"
TESTS = "tests/training/symmetry/"
TRACE, MATCHING, ACTIVATIONS, STE, TRANSFER = (
    f"{TESTS}test_{name}.py" for name in ("trace", "matching", "activations", "ste", "transfer")
)
EXPORTING, STATES, LOSSES = (f"{TESTS}test_{name}.py" for name in ("exporting", "states", "losses"))
MERGING, NORMS, MEASURES, DATA = (
    f"{TESTS}test_{name}.py" for name in ("merging", "batch_norm", "connectivity", "data")
)


def _fault(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(f"symmetry: {name}", HOME + file, old, new, tests)


SYMMETRY_MUTANTS = (
    _fault(
        "an axis that is shared by two of a kind is not fixed",
        "atoms.py",
        "            y.why = y.why or x.why",
        "            pass",
        TRACE,
    ),
    _fault(
        "a divided atom forgets that it is fixed",
        "atoms.py",
        "    atom.kids = [Atom(slow, atom.why), Atom(atom.size // slow, atom.why)]",
        "    atom.kids = [Atom(slow), Atom(atom.size // slow)]",
        TRACE,
    ),
    _fault(
        "the fast factor comes first",
        "atoms.py",
        "    atom.kids = [Atom(slow, atom.why), Atom(atom.size // slow, atom.why)]",
        "    atom.kids = [Atom(atom.size // slow, atom.why), Atom(slow, atom.why)]",
        TRACE,
    ),
    _fault(
        "outputs may move",
        "trace.py",
        "                fix_all(axes_out, _OUTPUT)",
        "                pass",
        TRACE,
    ),
    _fault(
        "an unknown operator passes",
        "rules.py",
        "            fix_all(tensor, call.why)\n        return None",
        "            pass\n        return None",
        TRACE,
    ),
    _fault(
        "running statistics stay",
        "rules_of_layers.py",
        "    for vector in (weight, bias, mean, variance):",
        "    for vector in (weight, bias):",
        TRACE,
    ),
    _fault(
        "groups of a convolution are not tied",
        "rules_of_layers.py",
        "    unify(slow, slow_of_weight, call.why)\n    if transposed",
        "    if transposed",
        TRACE,
    ),
    _fault(
        "causal attention has no order",
        "rules_of_layers.py",
        "    unify(q[-1], k[-1], call.why)\n    unify(k[-2], v[-2], call.why)",
        "    unify(k[-2], v[-2], call.why)",
        TRACE,
    ),
    _fault(
        "parts of a split are alike",
        "rules_of_shapes.py",
        "        slow, within = factor(x[place], (n, part), call.why)\n        fix(slow, call.why)",
        "        slow, within = factor(x[place], (n, part), call.why)",
        TRACE,
    ),
    _fault(
        "the vocabulary may move",
        "rules_of_layers.py",
        '    fix(weight[0], f"{call.why}: which row is which word is given")',
        "    pass",
        TRACE,
    ),
    _fault(
        "a rule's sizes are believed",
        "rules.py",
        "    if sizes != list(call.shapes):",
        "    if False:",
        TRACE,
    ),
    _fault(
        "what is left over in a reshape is let go",
        "atoms.py",
        "    if len(filled) < len(shape) or at < len(",
        "    if len(filled) < len(shape) or 0 > len(",
        TRACE,
    ),
    _fault(
        "memory that is shared is not seen",
        "trace.py",
        "    _fix_shared(model, axes)\n",
        "",
        TRACE,
    ),
    _fault(
        "check passes over what is not finite",
        "spec.py",
        "    a, b = a[finite], b[finite]\n",
        "    a, b = a[:0], b[:0]\n",
        TRACE,
    ),
    _fault(
        "check runs the caller's buffers",
        "spec.py",
        "        before = outputs_of(model, x, state, self.chosen)",
        "        before = outputs_of(model, x, None, self.chosen)",
        TRACE,
    ),
    _fault(
        "the kept gains are shifted by the potentials",
        "descent.py",
        "    table = table - potential  # which may be the caller's",
        "    table -= potential",
        MATCHING,
    ),
    _fault(
        "a temperature fitted on training data is not told",
        "merging.py",
        "                if point.losses.above(own) > 3:",
        "                if own.mean == 0:",
        MERGING,
    ),
    _fault(
        "a sample that is all right has no error",
        "losses.py",
        "        error = sqrt(max(variance * (1 / n + 1 / m), self._between() + other._between()))",
        "        own = [(s.squares / s.count - s.mean**2) / s.count for s in (self, other)]\n"
        "        error = sqrt(max(0.0, sum(own), self._between() + other._between()))",
        LOSSES,
    ),
    _fault(
        "targets of one text are taken as independent",
        "losses.py",
        "self._between() + other._between()))",
        "0.0))",
        LOSSES,
    ),
    _fault(
        "a source with one name of a tied tensor moves one",
        "transfer.py",
        "        to, start = whole(self.model, to), whole(self.model, start)\n",
        "",
        STATES,
    ),
    _fault(
        "a list is several arguments",
        "calling.py",
        "    return (x if isinstance(x, tuple) else (x,)), {}",
        "    return (tuple(x) if isinstance(x, (tuple, list)) else (x,)), {}",
        STATES,
    ),
    _fault(
        "noise hides a wrong order",
        "spec.py",
        "            if own > tol:",
        "            if own > 0:",
        EXPORTING,
    ),
    _fault(
        "a view that reaches over the next is not seen",
        "trace.py",
        "        if widest is None or widest[0] != device or end > widest[1]:",
        "        if True:",
        TRACE,
    ),
    _fault(
        "an output that is not asked for is fixed",
        "trace.py",
        "        if kept is None or place in kept:",
        "        if True:",
        EXPORTING,
    ),
    _fault(
        "what was asked for is not what is compared",
        "spec.py",
        "self.apply(self._moving_all(seed), state), self.chosen)",
        "self.apply(self._moving_all(seed), state))",
        EXPORTING,
    ),
    _fault(
        "the report names the factors of what is wholly fixed",
        "spec.py",
        "            fixed[place] = fixed.get(place, 1) * item.size",
        "            fixed[place] = item.size",
        EXPORTING,
    ),
    _fault(
        "transferred states have the target's statistics",
        "transfer.py",
        "        thetas = tuple(self._placed(self.state(perms, t)) for t in steps)",
        "        thetas = tuple(self.state(perms, t) for t in steps)",
        TRANSFER,
    ),
    _fault(
        "a state with one name of a tied tensor stays so",
        "placed.py",
        "            found |= {name: found[given[0]] for name in same if name not in found}",
        "            pass",
        STATES,
    ),
    _fault(
        "the other way round of a linear layer is forgotten",
        "connectivity.py",
        "isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module)",
        "isinstance(module, nn.Linear | _ConvNd)",
        MEASURES,
    ),
    _fault(
        "tied tensors are two",
        "trace.py",
        "        if id(tensor) not in records:",
        "        if True:",
        TRACE,
    ),
    _fault(
        "the inverse is the permutation",
        "spec.py",
        "        return {group: torch.argsort(p) for group, p in perms.items()}",
        "        return dict(perms)",
        TRACE,
    ),
    _fault(
        "composition the wrong way round",
        "spec.py",
        "        return {group: first[group][second[group]] for group in self.groups}",
        "        return {group: second[group][first[group]] for group in self.groups}",
        TRACE,
    ),
    _fault(
        "the factors of an axis are swapped",
        "spec.py",
        "        index = (index[:, None] * size + p[None, :]).reshape(-1)",
        "        index = (index[None, :] * size + p[:, None]).reshape(-1)",
        TRACE,
    ),
    _fault(
        "kept gains are not brought up to date",
        "descent.py",
        "                    self._gains[other] += found.to(self._gains[other].device)",
        "                    pass",
        MATCHING,
    ),
    _fault(
        "kept gains keep their columns",
        "descent.py",
        "        self._gains[group] = gain.index_select(1, order.to(gain.device))",
        "        self._gains[group] = gain",
        MATCHING,
    ),
    _fault(
        "a linearisation is trusted",
        "descent.py",
        "        if sum(values) - sum(pair.objective for pair in having) <= floor:\n"
        "            return False",
        "        pass",
        MATCHING,
    ),
    _fault(
        "an order found by potentials is that of the rows sorted",
        "descent.py",
        "    order[rows_first] = torch.from_numpy(columns)",
        "    order[:] = torch.from_numpy(columns)",
        MATCHING,
    ),
    _fault(
        "running statistics are compared",
        "matching.py",
        "n in spec.weights and n not in spec.same]",
        "n not in spec.same]",
        MATCHING,
    ),
    _fault(
        "signatures depend on the neighbours' order",
        "matching.py",
        "    return parts.sort(-1)[0].reshape",
        "    return parts.reshape",
        MATCHING,
    ),
    _fault(
        "activations are not centred",
        "activations.py",
        "    units = units - units.mean(-1, keepdim=True)\n",
        "",
        ACTIVATIONS,
    ),
    _fault(
        "activations change after they were seen",
        "activations.py",
        "found[name].append(out.detach().clone())",
        "found[name].append(out.detach())",
        ACTIVATIONS,
    ),
    _fault(
        "the midpoint pulls with all its weight",
        "ste.py",
        "        tensor.grad = None if grad is None else 0.5 * grad",
        "        tensor.grad = grad",
        STE,
    ),
    _fault(
        "each match begins at the identity",
        "ste.py",
        "found = match(spec, now, b, start=perms, seed=seed).perms",
        'found = match(spec, now, b, start="identity", seed=seed).perms',
        STE,
    ),
    _fault(
        "GMT keeps the pairs of earlier steps",
        "transfer.py",
        "            if not fast:\n                theirs, own = [], []\n",
        "",
        TRANSFER,
    ),
    _fault(
        "the two gradients have batches of their own",
        "transfer.py",
        "                own.append(self._gradient(self.state(perms, t - 1), batch))",
        "                batch = list(islice(given, batches))\n"
        "                own.append(self._gradient(self.state(perms, t - 1), batch))",
        TRANSFER,
    ),
    _fault(
        "gradients are taken where the step ends",
        "transfer.py",
        "                own.append(self._gradient(self.state(perms, t - 1), batch))",
        "                own.append(self._gradient(self.state(perms, t), batch))",
        TRANSFER,
    ),
    _fault(
        "the cosine's steps grow",
        "trajectory.py",
        "1 + cos(pi * t / steps) for t in range(steps)",
        "1 - cos(pi * (t + 1) / steps) for t in range(steps)",
        TRANSFER,
    ),
    _fault(
        "batch norms of the ends are not estimated anew",
        "merging.py",
        "            state = reestimate_by(predict, model, interpolate(a, b, at), bn_data)",
        "            state = interpolate(a, b, at)\n"
        "            if 0 < at < 1:\n"
        "                state = reestimate_by(predict, model, state, bn_data)",
        MERGING,
    ),
)
