"""Faults in concept bottlenecks, and the tests that must notice each."""

from __future__ import annotations

from tests.faults import Mutant

LASSO, ACTIVE, ADMM = "concepts/lasso.py", "concepts/active_set.py", "concepts/admm.py"
EXCHANGE, CERTIFICATE = "concepts/exchange.py", "concepts/certificate.py"
BANK, FILES, RETRIEVAL = "concepts/bank.py", "concepts/bank_files.py", "concepts/retrieval.py"
CBM, EXPLANATION = "concepts/cbm.py", "concepts/explanation.py"
SOLVED = ("tests/concepts/test_lasso.py",)
FOUND = ("tests/concepts/test_retrieval.py",)
BANKS = ("tests/concepts/test_bank.py",)
MODELS = ("tests/concepts/test_cbm.py",)
CHANGED = ("tests/concepts/test_explanation.py",)
MEASURED = ("tests/concepts/test_measures.py",)

CONCEPT_MUTANTS = (
    Mutant(
        "lasso: the printed penalty is taken for λ",
        LASSO,
        'factors = {"sklearn": float(d), "squared": 0.5, "lambda": 1.0}',
        'factors = {"sklearn": float(d), "squared": 1.0, "lambda": 1.0}',
        SOLVED,
    ),
    Mutant(
        "lasso: the length of an image is not given back to its weights",
        LASSO,
        "        w=w * size[:, None],\n",
        "        w=w,\n",
        SOLVED,
    ),
    Mutant(
        "lasso: an unconverged image is not named",
        LASSO,
        "    if not bool(code.converged.all()):\n",
        "    if False:\n",
        SOLVED,
    ),
    Mutant(
        "lasso: equal phrases are solved apart",
        LASSO,
        "    alone = first == torch.arange(F.shape[1], device=F.device)\n",
        "    alone = first == first\n",
        SOLVED,
    ),
    Mutant(
        "lasso: the weight of equal phrases stays on the first",
        LASSO,
        "        w = shared_out(w, first)\n",
        "        w = w + 0\n",
        SOLVED,
    ),
    Mutant(
        "lasso: what a solver leaves is not finished",
        LASSO,
        '    "admm": ("admm", "exchange"),\n',
        '    "admm": ("admm",),\n',
        SOLVED,
    ),
    Mutant(
        "active set: the penalty has no sign",
        ACTIVE,
        "target = (Fv.gather(1, at) - lam[:, None] * signs.gather(1, at)) * inside",
        "target = (Fv.gather(1, at) - lam[:, None]) * inside",
        SOLVED,
    ),
    Mutant(
        "active set: padded rows are phrases",
        ACTIVE,
        "    F_S = F_S if bool(inside.all()) else F_S * inside[..., None]\n",
        "    F_S = F_S + 0\n",
        SOLVED,
    ),
    Mutant(
        "active set: violations are not looked for",
        ACTIVE,
        "    optimal = solved & ~(flipped | joining).any(1)\n",
        "    optimal = solved & ~flipped.any(1)\n",
        SOLVED,
    ),
    Mutant(
        "admm: weights below 0 where they may not be",
        ADMM,
        "    return (x - by).clamp_min(0) if positive else ",
        "    return ",
        SOLVED,
    ),
    Mutant(
        "exchange: the step goes past the first sign change",
        EXCHANGE,
        "x + share.min() * (to - x)",
        "x + (to - x)",
        SOLVED,
    ),
    Mutant(
        "certificate: an infeasible dual point",
        CERTIFICATE,
        "    s = torch.where(most > problem.lam, problem.lam / most, 1.0)\n",
        "    s = torch.ones_like(most)\n",
        SOLVED,
    ),
    Mutant(
        "certificate: weights below 0 are certified where they may not be",
        CERTIFICATE,
        "        gap = torch.where((w < 0).any(1), torch.inf, gap)\n",
        "        gap = gap + 0\n",
        SOLVED,
    ),
    Mutant(
        "retrieval: rows of a chunk are numbered within it",
        RETRIEVAL,
        "torch.cat([rows, at + start], 1)",
        "torch.cat([rows, at], 1)",
        FOUND,
    ),
    Mutant(
        "retrieval: the floor is of the wrong end",
        RETRIEVAL,
        "best.amin(1, keepdim=True)",
        "best.amax(1, keepdim=True)",
        FOUND,
    ),
    Mutant(
        "retrieval: centred rows are not made unit",
        RETRIEVAL,
        "part = torch.nn.functional.normalize(part - mean.to(part), dim=1)",
        "part = part - mean.to(part)",
        FOUND,
    ),
    Mutant(
        "retrieval: equal rows in any order",
        RETRIEVAL,
        "    rows, order = rows.sort(dim=1)\n",
        "    rows, order = rows.sort(dim=1, descending=True)\n",
        FOUND,
    ),
    Mutant(
        "near duplicates: dropped phrases drop others",
        "concepts/near_duplicates.py",
        "        stays |= settled\n",
        "        stays |= settled & ~close.any(1)\n",
        FOUND,
    ),
    Mutant(
        "bank: features stay where phrases go",
        BANK,
        "features=self.features[kept.to(self.features.device)],",
        "features=self.features[: len(phrases)],",
        BANKS,
    ),
    Mutant(
        "bank: any encoder will do",
        BANK,
        "        if float(cosine.min()) < _ALIKE:\n",
        "        if False:\n",
        BANKS,
    ),
    Mutant(
        "bank: phrases in the order of a set",
        "concepts/phrase_lists.py",
        "return tuple(sorted(names)),",
        "return tuple(names),",
        BANKS,
    ),
    Mutant(
        "bank: a resumed build begins a part too late",
        FILES,
        'same, done = notes["bank"] == wanted, int(notes["done"])',
        'same, done = notes["bank"] == wanted, int(notes["done"]) + 1',
        BANKS,
    ),
    Mutant(
        "bank: changed features are loaded",
        FILES,
        '            or (not mmap and _digest(table) != notes["features_sha256"])\n',
        "",
        BANKS,
    ),
    Mutant(
        "bank: an unfinished build of another encoder goes on",
        FILES,
        "features=earlier).check(encoder)",
        "features=earlier)",
        BANKS,
    ),
    Mutant(
        "cbm: the class is read from the image",
        CBM,
        "code, self.rebuilt(code.z))",
        "code, self.rebuilt(target.double()))",
        MODELS + MEASURED,
    ),
    Mutant(
        "cbm: the mean image is not put back",
        CBM,
        "+ self.image_mean.to(z)",
        "+ 0 * self.image_mean.to(z)",
        MODELS,
    ),
    Mutant(
        "cbm: phrases are not centred",
        CBM,
        "torch.nn.functional.normalize(F - self.bank.mean.to(F), dim=-1)",
        "torch.nn.functional.normalize(F, dim=-1)",
        MODELS,
    ),
    Mutant(
        "cbm: class names in the bank are passed over",
        CBM,
        "        if inside:\n",
        "        if False:\n",
        MODELS,
    ),
    Mutant(
        "explanation: deleted phrases come back in a refit",
        EXPLANATION,
        "if bank.phrases[n] not in {*gone, *added}]",
        "if bank.phrases[n] not in added]",
        CHANGED,
    ),
    Mutant(
        "explanation: a set weight is refitted",
        EXPLANATION,
        "        if isinstance(what, Mapping):\n            given",
        "        if isinstance(what, Mapping) and False:\n            given",
        CHANGED,
    ),
    Mutant(
        "explanation: the smallest phrases are deleted first",
        EXPLANATION,
        'range(what) if order == "descending" else',
        'range(what) if order == "ascending" else',
        CHANGED,
    ),
    Mutant(
        "measures: images without a phrase are counted right",
        "concepts/measures.py",
        "    return torch.where(empty, -1, model.read(z).argmax(1))\n",
        "    return model.read(z).argmax(1)\n",
        MEASURED,
    ),
    Mutant(
        "measures: the random dictionary is not made unit",
        "concepts/measures.py",
        "    return torch.nn.functional.normalize(rows, dim=1)\n",
        "    return rows\n",
        MEASURED,
    ),
    Mutant(
        "deletion: phrases without weight are drawn too",
        "concepts/deletion.py",
        "key.masked_fill(w == 0, -torch.inf)",
        "key",
        MEASURED,
    ),
)
