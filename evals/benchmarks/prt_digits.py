"""The digits' part of `prt`: a reward trained over an MLP, used on a CNN."""

import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from evals.benchmarks.measuring import Claim, at_least, at_most
from infer_kit.demo import digits
from infer_kit.reward.compose import compose
from infer_kit.reward.portable import PortableReward
from infer_kit.training.prt import PRTConfig, PRTTrainer

RATE, BATCH = 2e-3, 64
BETAS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
Scores = dict[str, tuple[float, float]]
"""Accuracy in percent and NLL in nats on the test part, by what was measured."""

ACCURACY, NLL = 0, 1


def arguments(folder: str, seed: int, **given: Any) -> TrainingArguments:
    """A quiet run on the CPU."""
    quiet: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,
        "seed": seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**quiet | given)


def tuned(model: Any, part: digits.Part, seed: int, epochs: int, base: Any = None) -> Any:
    """A copy of a model, its class head frozen; fine-tuned, or a reward trained through `base`."""
    model = deepcopy(model)
    model.freeze_head()
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            folder,
            seed,
            num_train_epochs=epochs,
            learning_rate=RATE,
            per_device_train_batch_size=BATCH,
            lr_scheduler_type="cosine",
            remove_unused_columns=False,
        )
        if base is None:
            trainer: Any = Trainer(model=model, args=args, train_dataset=part)
        else:
            trainer = PRTTrainer(
                model=model,
                base_model=base,
                args=args,
                prt=PRTConfig(beta=1.0),
                train_dataset=part,
                kind="classification",
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def one(seed: int, strong: bool, epochs: int) -> tuple[Scores, float]:
    """Everything with the bases of one seed, and the β that is best on the validation part."""
    data = digits.task(seed)
    source = digits.pretrain("mlp", data, seed, strong=strong)
    target = digits.pretrain("cnn", data, seed, strong=strong)
    own = tuned(source, data.train, seed, epochs)
    reward, shuffled = (
        PortableReward(tuned(source, part, seed, epochs, base=source), kind="classification")
        for part in (data.train, data.train.with_shuffled_labels(seed))
    )
    best = compose(target, reward)
    batch = {"pixel_values": data.validation.images, "labels": data.validation.labels}
    losses = best.sweep([batch], BETAS)
    beta = min(losses, key=lambda strength: losses[strength])
    best.set_beta(beta)
    models = {
        "A": source,
        "A + PRT": compose(source, reward),
        "fine-tuned A": own,
        "B": target,
        "B + PRT": compose(target, reward),
        "B + PRT, best β": best,
        "B + EFT": compose(target, implicit=(own, source)),
        "B + shuffled reward": compose(target, shuffled),
        "fine-tuned B": tuned(target, data.train, seed, epochs),
    }
    test = data.test
    scores = {
        name: (100 * digits.accuracy(model, test), digits.nll(model, test))
        for name, model in models.items()
    }
    return scores, beta


def mean_sd(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


def measure(
    seeds: range, epochs: int, tell: Callable[[str], None]
) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Weak and strong bases of every seed."""
    claims: list[Claim] = []
    rows: list[dict[str, Any]] = []
    for strong in (False, True):
        kind = "strong" if strong else "weak"
        runs, betas = [], []
        for seed in seeds:
            tell(f"digits, {kind} bases, seed {seed}")
            scores, beta = one(seed, strong, epochs)
            runs.append(scores)
            betas.append(beta)
        for name in runs[0]:
            accuracy, spread = mean_sd([run[name][0] for run in runs])
            nll, nll_spread = mean_sd([run[name][1] for run in runs])
            rows.append(row(kind, name, len(runs), accuracy, spread, nll, nll_spread))

        def apart(which: int, left: str, right: str, of: list[Scores] = runs) -> list[float]:
            return [run[left][which] - run[right][which] for run in of]

        for left, right in (
            ("B + PRT", "B + EFT"),
            ("B + PRT", "B"),
            ("B + PRT", "fine-tuned B"),
            ("B + shuffled reward", "B"),
            ("A + PRT", "fine-tuned A"),
        ):
            parts = [*mean_sd(apart(ACCURACY, left, right)), *mean_sd(apart(NLL, left, right))]
            rows.append(row(kind, f"{left} minus {right}, paired", len(runs), *parts))
        lowest, highest = min(betas), max(betas)
        rows.append(row(kind, f"best β, {lowest:g} to {highest:g}", len(runs), *mean_sd(betas)))
        gain = statistics.mean(apart(NLL, "B", "B + PRT"))
        claims.append(at_least(f"digits_{kind}_nll_gain_of_prt", gain, 0.0 if strong else 0.3))
        gap = abs(statistics.mean(apart(ACCURACY, "B + PRT", "B + EFT")))
        claims.append(at_most(f"digits_{kind}_prt_to_eft_points", gap, 3.0))
        drop = statistics.mean(apart(ACCURACY, "B", "B + shuffled reward"))
        claims.append(at_least(f"digits_{kind}_shuffled_reward_costs_points", drop, 10.0))
    return claims, rows


def row(kind: str, what: str, seeds: int, *figures: float) -> dict[str, Any]:
    """Of accuracy and NLL, mean and sd; of β, mean and sd stand in the first two columns."""
    names = ("accuracy %", "sd", "NLL", "NLL sd")
    shown = [round(figure, 4) if figure == figure else "" for figure in figures]
    shown += [""] * (len(names) - len(shown))
    return {"bases": kind, "model": what, "seeds": seeds} | dict(zip(names, shown, strict=True))
