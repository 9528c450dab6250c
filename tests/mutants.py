"""Seeded faults in the engine: each must turn a test red. Run by hand: `python tests/mutants.py`.

Every mutant is one textual change in a copy of the package. The tests named with it are run on the
copy, first without any change, when all must pass, then with it, when one must fail. A mutant
whose text is no longer in its file is stale, and counts as a failure.

    python tests/mutants.py                 # all of them
    python tests/mutants.py crop positions  # those whose name contains one of the words
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROUPS, MERGE = "engine/groups.py", "engine/cache_merge.py"
CACHE, POOLING = "engine/stream_cache.py", "engine/pooling.py"
GRID = "tests/engine/test_coupled_lm.py"
LAWS = "tests/engine/test_laws.py"
POOL = "tests/engine/test_pooling.py"
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
        "            self.position = self.position.amax(-2, keepdim=True).expand(self.position.shape)\n",
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
        "crop of the serial state's ids skipped",
        GROUPS,
        "        self.ids = self.ids[:, :-tokens]\n",
        "        self.ids = self.ids\n",
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


def _copy(folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("infer_kit", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def _run(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit code of pytest on the copy, and the line of the first failure."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, failed[0][:100] if failed else lines[-1] if lines else ""


def _verdict(mutant: Mutant) -> tuple[bool, str]:
    """Whether the mutant was killed, and how."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder)
        file = folder / "infer_kit" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return False, f"stale: its text is {text.count(mutant.old)} times in {mutant.file}"
        file.write_text(text.replace(mutant.old, mutant.new))
        code, line = _run(folder, mutant.tests)
    if code == 1:
        return True, line
    return False, "survived" if code == 0 else f"pytest ended with code {code}: {line}"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    if not chosen:
        print(f"No mutant is called so; there are: {', '.join(m.name for m in MUTANTS)}.")
        return 1
    tests = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
    print(f"without a fault: {' '.join(tests)}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        _copy(Path(name))
        code, line = _run(Path(name), tests)
    print(f"  {line}", flush=True)
    if code != 0:
        print("The tests fail without a fault; mend that first.")
        return 1
    survivors = []
    for number, mutant in enumerate(chosen, start=1):
        start = time.monotonic()
        killed, how = _verdict(mutant)
        if not killed:
            survivors.append(mutant.name)
        mark = "killed  " if killed else "SURVIVED"
        print(f"{number:3}/{len(chosen)} {mark} {mutant.name} ({time.monotonic() - start:.0f} s): {how}",
              flush=True)  # fmt: skip
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed.")
    for name in survivors:
        print(f"survived: {name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
