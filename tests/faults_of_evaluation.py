"""Seeded faults of the evaluation loop and its data; see `tests/mutants.py`."""

from __future__ import annotations

from tests.faults import Mutant

PREPARATION, IDENTITY = "evaluation/preparation.py", "evaluation/identity.py"
RUNNER, FOLDER = "evaluation/runner.py", "evaluation/run_folder.py"
ANSWERING, SAMPLES = "evaluation/answering.py", "evaluation/samples.py"
LOOP = "tests/evaluation/test_runner.py"
FILES = "tests/evaluation/test_run_folder.py"
DATA = "tests/evaluation/test_samples.py"
FIGURES = "tests/evaluation/test_comparison.py"

EVALUATION_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "evaluation: a batch cut in the middle is answered without the lines that it has",
        RUNNER,
        "return [b for b in batches if any(prepared.samples[n].id not in done for n in b)]",
        "parts = [[n for n in b if prepared.samples[n].id not in done] for b in batches]\n"
        "        return [b for b in parts if b]",
        (LOOP,),
    ),
    Mutant(
        "evaluation: the seed is not the batch's own",
        RUNNER,
        "torch.manual_seed(hash_of(",
        "(lambda _: None)(hash_of(",
        (LOOP,),
    ),
    Mutant(
        "evaluation: processes share out samples, not batches",
        RUNNER,
        "batches = plan(prepared.samples, prepared.batch_size)[rank::world]",
        "batches = [b[rank::world] for b in plan(prepared.samples, prepared.batch_size)]",
        (LOOP,),
    ),
    Mutant(
        "evaluation: figures are written before all have answered",
        RUNNER,
        "    if missing:\n        return None\n",
        "",
        (LOOP,),
    ),
    Mutant(
        "evaluation: a lasting failure counts as answered",
        FOLDER,
        'if "error" not in line:',
        "if line:",
        (FILES,),
    ),
    Mutant(
        "evaluation: torn lines stay",
        FOLDER,
        "    file.truncate(whole)\n",
        "",
        (FILES,),
    ),
    Mutant(
        "evaluation: the part of a line that a full disk took stays",
        FOLDER,
        "                    os.truncate(self.path, end)\n",
        "                    pass\n",
        (FILES,),
    ),
    Mutant(
        "evaluation: a run goes on under other versions",
        FOLDER,
        'if found["versions"] != versions and self.lines():',
        "if False:",
        (FILES,),
    ),
    Mutant(
        "evaluation: the method's options are no part of the configuration",
        PREPARATION,
        '        "options": _identities(method, e.options),\n',
        "",
        ("tests/cli/test_eval.py", LOOP),
    ),
    Mutant(
        "evaluation: Parallel-ICL keeps the first sample's demonstrations",
        ANSWERING,
        "        for sample in samples:\n            self.recipe.fit(",
        "        self.recipe.fit([shot.turns(asking.instruction) for shot in samples[0].shots])\n"
        "        for sample in samples:\n            (lambda _: None)(",
        (LOOP,),
    ),
    Mutant(
        "evaluation: rationales of other samples are shared",
        ANSWERING,
        "        shared = [known.get(sample.id) for sample in samples]\n",
        "        shared = [next(iter(known.values()), None) for sample in samples]\n",
        (LOOP,),
    ),
    Mutant(
        "evaluation: marked pictures come in the order of the list",
        SAMPLES,
        "str(images[int(mark[1]) - 1])",
        "str(images[0])",
        (DATA,),
    ),
    Mutant(
        "evaluation: missing pictures are found on the way",
        SAMPLES,
        "    _check_images(path, samples)\n",
        "",
        (DATA,),
    ),
    Mutant(
        "evaluation: the bootstrap is not paired",
        "evaluation/comparison.py",
        "differences[drawn].sum(1)",
        "generator.permuted(differences[drawn], axis=1)[:, : n // 2].sum(1) * 2",
        (FIGURES,),
    ),
    Mutant(
        "evaluation: a standard error without Bessel's correction",
        "evaluation/results.py",
        "* n / (n - 1)",
        "",
        (FIGURES,),
    ),
    Mutant(
        "evaluation: pictures count by their size",
        IDENTITY,
        "        digest.update(file_identity(image).encode())\n",
        "        digest.update(str(image.stat().st_size).encode())\n",
        (LOOP,),
    ),
    Mutant(
        "evaluation: files below a model's folder do not count",
        IDENTITY,
        'folder.rglob("*")',
        'folder.glob("*")',
        (LOOP,),
    ),
    Mutant(
        "evaluation: a torn line is not taken away by who writes on",
        FOLDER,
        "    file.truncate(whole)\n",
        "",
        (FILES,),
    ),
    Mutant(
        "evaluation: each process may have all failures",
        RUNNER,
        'failed = {line["id"] for line in self.folder.failures()} | {sample.id}',
        "failed = {sample.id}",
        (LOOP,),
    ),
    Mutant(
        "evaluation: a finished run's figures are written anew",
        RUNNER,
        "    elif folder.is_finished:\n",
        "    elif False:\n",
        (LOOP,),
    ),
    Mutant(
        "evaluation: the instruction is asked of the rationale",
        ANSWERING,
        "instructed=not self.instructs_itself",
        "instructed=True",
        ("tests/evaluation/test_answering.py",),
    ),
    Mutant(
        "evaluation: a sample may be its own demonstration",
        PREPARATION,
        "    check_own_shots(samples, str(e.data))\n",
        "",
        (LOOP,),
    ),
)
