"""What groups of streams and composites cost inside vLLM.

Compares, in interleaved rounds of one run: G groups of K streams with G · K plain rows of the same
prompts and lengths, on the same engine, greedy and sampled; a composite of two models with the sum
of both alone; and, without `--quick`, plain rows on an engine with the plug-ins and on vLLM's own.
Each engine is a process of its own that waits for its turn. Random weights: speed does not depend
on them. On CPUs the time is CPU time of the engine's process, on a GPU it is the clock's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks.measuring import Claim, arguments, at_least, at_most, report

NEW_TOKENS = 64
PROMPT = 48
GROUPS = 8
STREAMS = 2
VOCABULARY = 32_000
KINDS = ("greedy", "sampled")
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def save_model(folder: Path, seed: int) -> str:
    """A Llama of 4 layers, width 512 and 32,000 tokens, random."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


class Engine:
    """A process with one engine; it runs a side when told to, and says how long that took."""

    def __init__(self, what: str, model: str, member: str | None = None) -> None:
        """Args:
        what: "groups", "stock" or "composite". model: its folder. member: of a composite.
        """
        command = [sys.executable, __file__, "--engine", json.dumps([what, model, member])]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )
        self.device = ""

    def ready(self) -> None:
        """Wait until the engine is there."""
        self.device = self._answer()["device"]

    def run(self, side: str) -> float:
        """Seconds of one side."""
        assert self.process.stdin is not None
        print(side, file=self.process.stdin, flush=True)
        return self._answer()["seconds"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"The engine's process ended with code {self.process.wait()}.")


def serve(what: str, model: str, member: str | None) -> None:
    """The other end of `Engine`: makes the engine, then runs sides as they are named."""
    import torch
    from vllm import LLM, SamplingParams

    from infer_kit.vllm import CoupledLLM, Group, Stream
    from infer_kit.vllm.composite import composite_overrides

    gpu = torch.cuda.is_available()
    options: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "max_model_len": 512,
        "max_num_seqs": 64,
        "dtype": "bfloat16" if gpu else "float32",
        "enforce_eager": not gpu,
    }
    if what == "composite":
        assert member is not None
        options["hf_overrides"] = composite_overrides([member], weights=[1.0, 0.5], base=model)
    llm = LLM(model, **options) if what == "stock" else CoupledLLM(model, **options)
    generator = torch.Generator().manual_seed(0)
    rows = GROUPS * STREAMS
    ids = torch.randint(3, VOCABULARY, (rows, PROMPT), generator=generator).tolist()
    prompts = [{"prompt_token_ids": row} for row in ids]

    def run(side: str) -> None:
        temperature = 0.0 if side.endswith("greedy") else 1.0
        params = SamplingParams(temperature=temperature, max_tokens=NEW_TOKENS, ignore_eos=True)
        if not side.startswith("groups"):
            llm.generate(prompts, params, use_tqdm=False)
            return
        groups = [
            Group(tuple(Stream(p, 0.5) for p in prompts[STREAMS * g : STREAMS * (g + 1)]))
            for g in range(GROUPS)
        ]
        assert isinstance(llm, CoupledLLM)
        llm.generate_groups(groups, params)

    clock = time.perf_counter if gpu else time.process_time
    print(json.dumps({"device": torch.cuda.get_device_name() if gpu else "cpu"}), flush=True)
    for line in sys.stdin:
        start = clock()
        run(line.strip())
        print(json.dumps({"seconds": clock() - start}), flush=True)


def main() -> None:
    options = arguments(__doc__ or "")
    rounds = 4 if options.quick else 15
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "a", 0)
        member = save_model(Path(folder) / "b", 1)
        engines = {
            "groups": Engine("groups", model),
            "composite": Engine("composite", model, member),
        }
        if not options.quick:
            engines["stock"] = Engine("stock", model)
        try:
            for engine in engines.values():
                engine.ready()
            times = measure(engines, rounds, options.quick)
            device = engines["groups"].device
        finally:
            for engine in engines.values():
                engine.close()
    claims, rows = summary(times, stock=not options.quick)
    for row in rows:
        row["device"] = device
    report("vLLM: groups and composites", claims, rows, options.json)


def measure(engines: dict[str, Engine], rounds: int, quick: bool) -> dict[str, list[float]]:
    """Seconds by engine and side, in rounds whose order turns; a first round warms up."""
    sides = [("groups", f"{what}, {kind}") for what in ("groups", "rows") for kind in KINDS]
    others = [name for name in engines if name != "groups"]
    sides += [(name, f"rows, {kind}") for name in others for kind in KINDS[: 1 if quick else 2]]
    times: dict[str, list[float]] = {f"{name}: {side}": [] for name, side in sides}
    for turn in range(-1, rounds):
        for name, side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            seconds = engines[name].run(side)
            if turn >= 0:
                times[f"{name}: {side}"].append(seconds)
    return times


def summary(times: dict[str, list[float]], stock: bool) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Claims, and tokens per second of rows: a group of K streams is K rows."""

    def ratio(a: str, b: str, scale: float = 1.0) -> float:
        pairs = zip(times[a], times[b], strict=True)
        return statistics.median(scale * x / y for x, y in pairs)

    tokens = GROUPS * STREAMS * NEW_TOKENS
    rows = [
        {"what": name, "row tokens per second": tokens / statistics.median(seconds)}
        for name, seconds in times.items()
    ]
    claims = []
    for kind in KINDS:
        plain = f"groups: rows, {kind}"
        claims.append(
            at_least(f"groups_vs_rows_{kind}", ratio(plain, f"groups: groups, {kind}"), 0.95)
        )
        if f"composite: rows, {kind}" in times:
            composite = ratio(plain, f"composite: rows, {kind}", 2.0)
            claims.append(at_least(f"composite_vs_members_{kind}", composite, 0.95))
        if stock:
            with_plugins = ratio(plain, f"stock: rows, {kind}")
            claims.append(at_most(f"plugins_vs_stock_{kind}", with_plugins, 1.05))
    return claims, rows


if __name__ == "__main__":
    if "--engine" in sys.argv:
        serve(*json.loads(sys.argv[sys.argv.index("--engine") + 1]))
    else:
        main()
