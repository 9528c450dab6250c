"""The language part of `prt`: a reward trained over a small Llama, used on a larger GPT-2."""

import math
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer
from transformers.trainer_callback import PrinterCallback

from evals.benchmarks.measuring import Claim, at_least, at_most, interleaved, median_ratio
from evals.benchmarks.prt_digits import arguments, mean_sd
from infer_kit.demo import text
from infer_kit.demo.text import corpus
from infer_kit.reward.compose import compose
from infer_kit.reward.portable import PortableReward
from infer_kit.training.prt import PRTConfig, PRTTrainer

GENERAL, TASK = corpus.DOMAINS  # errands, animals
BATCH = 8
PADDED = 576  # rows of the target's head; the tokenizer has 512 ids
WRITTEN = 48  # tokens
Block = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Size:
    """Steps, tokens in a block, blocks of held-out text, and whether B is fine-tuned as well."""

    pretraining: int
    tuning: int
    length: int
    held_out: int
    tune_target: bool

    @classmethod
    def of(cls, quick: bool) -> "Size":
        return cls(100, 400, 64, 80, False) if quick else cls(600, 300, 128, 150, True)


@dataclass(frozen=True)
class Models:
    """Two bases, what was trained on the task, and the tokenizer of all."""

    tokenizer: Any
    source: Any
    target: Any
    tuned_source: Any
    tuned_target: Any | None
    reward: PortableReward


def blocks(
    tokenizer: Any, domain: str, count: int, length: int, seed: int, held_out: bool = False
) -> list[Block]:
    """Texts one after the other, cut into `count` pieces of `length` tokens."""
    rng = random.Random(f"prt {domain} {seed} {held_out}")
    ids: list[int] = []
    while len(ids) < count * length:
        body = corpus.text(domain, rng, held_out).body
        ids += [*tokenizer(body)["input_ids"], tokenizer.eos_token_id]
    rows = torch.tensor(ids[: count * length]).view(count, length)
    return [{"input_ids": row, "labels": row} for row in rows]


def llama(tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def gpt2(tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=PADDED,
        n_embd=128,
        n_layer=3,
        n_head=4,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def trainer(
    model: Any,
    tokenizer: Any,
    data: list[Block],
    seed: int,
    steps: int,
    folder: str,
    base: Any = None,
    cache: Any = "none",
) -> Any:
    """Plain, or of a reward through `base`; all other settings are the same."""
    args = arguments(
        folder,
        seed,
        max_steps=steps,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=max(steps // 20, 1),
        per_device_train_batch_size=BATCH,
    )
    options = {"model": model, "args": args, "train_dataset": data, "processing_class": tokenizer}
    prt = PRTConfig(beta=1.0, base_cache=cache)
    made = Trainer(**options) if base is None else PRTTrainer(base_model=base, prt=prt, **options)
    made.remove_callback(PrinterCallback)
    return made


def trained(
    model: Any, tokenizer: Any, data: list[Block], seed: int, steps: int, base: Any = None
) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        trainer(model, tokenizer, data, seed, steps, folder, base).train()
    return model.eval()


def make(seed: int, size: Size) -> Models:
    """Both bases, pretrained on general text; then all that is trained on the task."""
    _, tokenizer = text.load("a")
    general = blocks(tokenizer, GENERAL, size.pretraining * BATCH, size.length, seed)
    task = blocks(tokenizer, TASK, size.tuning * BATCH // 2, size.length, seed)

    def pretrained(model: Any) -> Any:
        return trained(model, tokenizer, general, seed, size.pretraining)

    def tuned(model: Any, base: Any = None) -> Any:
        return trained(deepcopy(model), tokenizer, task, seed, size.tuning, base)

    source, target = pretrained(llama(tokenizer, seed)), pretrained(gpt2(tokenizer, seed))
    reward = PortableReward(tuned(source, source), tokenizer, beta=1.0)
    tuned_target = tuned(target) if size.tune_target else None
    return Models(tokenizer, source, target, tuned(source), tuned_target, reward)


@torch.no_grad()
def perplexity(model: Any, held_out: list[Block], vocab_size: int) -> float:
    """Over the ids that the tokenizer has."""
    ids = torch.stack([block["input_ids"] for block in held_out])
    total, count = 0.0, 0
    for rows in ids.split(16):
        logits = model(input_ids=rows).logits[:, :-1, :vocab_size].float()
        labels = rows[:, 1:].flatten()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels)) * len(
            labels
        )
        count += len(labels)
    return math.exp(total / count)


def prt_and_eft(made: Models, base: Any) -> tuple[Any, Any]:
    """The base with the reward, and with the difference of the tuned and the untuned source."""
    pair = (made.tuned_source, made.tokenizer), (made.source, made.tokenizer)
    return (
        compose(base, made.reward, tokenizer=made.tokenizer),
        compose(base, implicit=pair, tokenizer=made.tokenizer),
    )


def perplexities(made: Models, seed: int, size: Size) -> dict[str, tuple[float, float]]:
    """On held-out text of the task, and of the general kind."""
    prt, eft = prt_and_eft(made, made.target)
    models = {
        "A": made.source,
        "A + PRT": prt_and_eft(made, made.source)[0],
        "fine-tuned A": made.tuned_source,
        "reward alone": made.reward.model,
        "B": made.target,
        "B + PRT": prt,
        "B + EFT": eft,
    }
    if made.tuned_target is not None:
        models["fine-tuned B"] = made.tuned_target
    held_out = [
        blocks(made.tokenizer, domain, size.held_out, size.length, seed, held_out=True)
        for domain in (TASK, GENERAL)
    ]
    found = {}
    for name, model in models.items():
        task, general = (perplexity(model, part, len(made.tokenizer)) for part in held_out)
        found[name] = (task, general)
    return found


def row(part: str, what: str, unit: str, value: float, sd: float | str = "") -> dict[str, Any]:
    spread = "" if isinstance(sd, str) or math.isnan(sd) else round(sd, 4)
    return {"part": part, "what": what, "unit": unit, "value": round(value, 4), "sd": spread}


def measure(
    seeds: range, size: Size, tell: Callable[[str], None]
) -> tuple[list[Claim], list[dict[str, Any]], Models]:
    """Perplexities of every seed; the models of the first one are for timing."""
    runs: list[dict[str, tuple[float, float]]] = []
    first: Models | None = None
    for seed in seeds:
        tell(f"language, seed {seed}")
        made = make(seed, size)
        first = first or made
        runs.append(perplexities(made, seed, size))
    assert first is not None
    rows = []
    for name in runs[0]:
        for which, where in enumerate(("task", "general text")):
            rows.append(
                row(
                    "language",
                    name,
                    f"perplexity, {where}",
                    *mean_sd([run[name][which] for run in runs]),
                )
            )
    for right in ("B + EFT", "B", "fine-tuned B"):
        if right not in runs[0]:
            continue
        apart = [run["B + PRT"][0] - run[right][0] for run in runs]
        rows.append(
            row("language", f"B + PRT minus {right}, paired", "perplexity, task", *mean_sd(apart))
        )
    to_base = statistics.mean(run["B + PRT"][0] / run["B"][0] for run in runs)
    to_eft = statistics.mean(run["B + PRT"][0] / run["B + EFT"][0] for run in runs)
    claims = [
        at_most("language_ppl_prt_to_base", to_base, 0.6),
        at_most("language_ppl_prt_to_eft", to_eft, 1.05),
    ]
    return claims, rows, first


def decoding(made: Models, rounds: int) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Tokens a CPU second of one thread; all but the last go through `compose(...).generate`."""
    prt, eft = prt_and_eft(made, made.target)
    alone, _ = prt_and_eft(made, made.target)
    sides: Mapping[str, Any] = {
        "B + PRT": prt,
        "B + EFT": eft,
        "B, strength 0": alone.set_beta(0.0),
        "B, its own generate()": made.target,
    }
    claims, rows = [], []
    for batch in (1, 8):
        ids = torch.full((batch, 1), made.tokenizer.bos_token_id)
        given = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": WRITTEN,
            "min_new_tokens": WRITTEN,
            "do_sample": False,
        }

        def runs(model: Any, given: dict[str, Any] = given) -> Callable[[], Any]:
            return lambda: model.generate(**given)

        times = interleaved({name: runs(model) for name, model in sides.items()}, rounds)
        for name, taken in times.items():
            speed = batch * WRITTEN / statistics.median(taken)
            rows.append(row("decoding", f"{name}, batch {batch}", "tokens a CPU second", speed))
        ratio = median_ratio(times, "B + EFT", "B + PRT")
        claims.append(at_least(f"decoding_prt_to_eft_batch_{batch}", ratio, 1.15))
    return claims, rows


def training(made: Models, rounds: int, steps: int) -> list[dict[str, Any]]:
    """CPU time of a step over the source, beside fine-tuning of the source; size of the caches."""
    length = Size.of(quick=False).length
    data = blocks(made.tokenizer, TASK, steps * BATCH, length, 0)
    rows: list[dict[str, Any]] = []
    sides: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, base, cache in (
            ("fine-tuning", None, "none"),
            ("PRT", made.source, "none"),
            ("PRT, cache of scores", made.source, "full"),
            ("PRT, cache of hidden states", made.source, "hidden"),
            ("PRT, cache of the top 64", made.source, "topk"),
        ):
            where = Path(folder) / str(len(sides))
            run = trainer(
                deepcopy(made.source), made.tokenizer, data, 0, steps, str(where), base, cache
            )
            if cache != "none":
                run.build_base_cache()
                stored = sum(f.stat().st_size for f in where.rglob("*") if f.is_file())
                labels = len(data) * (length - 1)
                rows.append(row("training", name, "bytes a label", stored / labels))
            sides[name] = run.train
        times = interleaved(sides, rounds)
    for name, taken in times.items():
        cpu = 1e3 * statistics.median(taken) / steps
        rows.append(row("training", name, "CPU ms a step", cpu))
        if name != "fine-tuning":
            ratio = median_ratio(times, name, "fine-tuning")
            rows.append(row("training", name, "to fine-tuning", ratio))
    return rows
