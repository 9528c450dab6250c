"""What a language model over bytes costs, beside the model itself and the peers.

Every side scores the same passage from nothing, byte by byte, at V = 512 and V = 151,644
(`lvr_models`); CPU time of one thread, interleaved. "bare" is the limit: one forward for each token
of the passage. The peers (`lvr_peers`) take part where they are installed; where not, their claims
are left out and a line says so. Then: model calls for each token of the passage, building the
trie, and writing eight texts at once beside the same one by one.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks.lvr_models import large_vocabulary, passage, small_vocabulary
from evals.benchmarks.lvr_peers import BareForward, ByteSampler, GenlmBytes
from evals.benchmarks.measuring import (
    Claim,
    arguments,
    at_least,
    at_most,
    interleaved,
    median_ratio,
    report,
)
from infer_kit.errors import MissingExtra
from infer_kit.vocab.ensemble import ReducedLM
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.submap import SubwordMap
from infer_kit.vocab.trie import DfsTrie
from infer_kit.vocab.vocabulary import Vocabulary

PROMPTS = ("Exceptions", "A class", "The name", "When a", "Objects are", "If the", "This is", "In")
WRITTEN = 64  # bytes


def row(size: str, what: str, unit: str, value: float) -> dict[str, Any]:
    return {"vocabulary": size, "what": what, "unit": unit, "value": value, "to bare": ""}


def peers(model: Any, tokenizer: Any, missing: dict[str, str]) -> dict[str, Any]:
    """The peers that are installed, started up; why the others are not goes into `missing`."""
    found = {}
    for name, make in (("genlm-bytes", GenlmBytes), ("byte-sampler", ByteSampler)):
        try:
            found[name] = make(model, tokenizer)
        except MissingExtra as error:
            missing[name] = f"{error}. Not measured. To measure it: {error.hint}"
    return found


def scoring(
    size: str,
    model: Any,
    tokenizer: Any,
    length: int,
    rounds: int,
    quick: bool,
    missing: dict[str, str],
) -> tuple[list[Claim], list[dict[str, Any]]]:
    """A passage scored by every side, with the claims for a vocabulary of this size."""
    text = passage(length)
    bare = BareForward(model, tokenizer)
    ours = ReducedLM(model, tokenizer, eps=1e-3)
    tight = ReducedLM(model, tokenizer, eps=1e-6)
    sides: dict[str, Callable[[], Any]] = {
        "bare": partial(bare.score, text),
        "ours, eps 1e-3": partial(ours.logprob, text),
        "ours, eps 1e-6": partial(tight.logprob, text),
    }
    found = peers(model, tokenizer, missing)
    if "genlm-bytes" in found:
        sides["genlm-bytes, K 5, 1e-3"] = partial(found["genlm-bytes"].score, text)
        if not quick:
            sides["genlm-bytes, K 30, 1e-6"] = partial(
                found["genlm-bytes"].score, text, width=30, threshold=1e-6
            )
    if "byte-sampler" in found:
        sides["byte-sampler"] = partial(found["byte-sampler"].score, text)
    times = interleaved(sides, rounds)
    per_byte = 1e3 / len(text.encode())
    rows = [
        row(size, name, "CPU ms a byte", statistics.median(t) * per_byte)
        | {"to bare": round(median_ratio(times, name, "bare"), 3)}
        for name, t in times.items()
    ]
    quick_side = "ours, eps 1e-3"
    tokens = len(tokenizer.encode(text, add_special_tokens=False))
    claims = [
        at_most(f"{size}_calls_per_native_token", ours.logprob(text).calls[0] / tokens, 1.2),
    ]
    if size == "large":
        claims.append(at_most("large_ours_vs_bare", median_ratio(times, quick_side, "bare"), 1.8))
    if "genlm-bytes" in found:
        bound = 10 if size == "large" else 2.5
        ratio = median_ratio(times, "genlm-bytes, K 5, 1e-3", quick_side)
        claims.append(at_least(f"{size}_genlm_bytes_vs_ours", ratio, bound))
        nats = gap(model, tokenizer, found, text)
        claims.append(at_most(f"{size}_logp_gap_to_genlm_bytes_nats", nats, 1e-3))
    if "byte-sampler" in found:
        bound = 3 if size == "large" else 1.2
        ratio = median_ratio(times, "byte-sampler", "ours, eps 1e-6")
        claims.append(at_least(f"{size}_byte_sampler_vs_ours", ratio, bound))
    return claims, rows


def gap(model: Any, tokenizer: Any, found: dict[str, Any], text: str) -> float:
    """Nats between log P of genlm-bytes (K 30, 1e-6, its masses summed in float64) and ours.

    Both over every segmentation of a beginning of the passage.
    """
    text = text[:64]
    theirs = found["genlm-bytes"].score(text, width=30, threshold=1e-6, float64=True)
    return abs(theirs - ReducedLM(model, tokenizer, mode="full", eps=1e-6).logprob(text).low)


def building(tokenizer: Any, model: Any) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Time and memory of the map to bytes and the trie at the large vocabulary."""
    vocabulary = Vocabulary.from_hf(tokenizer, model)
    start = time.process_time()
    made = SubwordMap(vocabulary)
    ids = vocabulary.text_ids
    offsets = [*made.offsets[ids], len(made.flat)]
    trie = DfsTrie(made.flat, torch.tensor(offsets).numpy())
    seconds = time.process_time() - start
    start = time.process_time()
    Reduction(vocabulary)
    whole = time.process_time() - start
    claims = [
        at_most("map_and_trie_seconds", seconds, 1.5),
        at_most("trie_mib", trie.nbytes / 2**20, 60),
    ]
    rows = [
        row("large", f"map to bytes, trie of {len(trie):,} nodes", "CPU s", seconds),
        row("large", "the same with the tokenizer's rules", "CPU s", whole),
        row("large", "trie", "MiB", trie.nbytes / 2**20),
    ]
    return claims, rows


def batches(
    size: str, model: Any, tokenizer: Any, rounds: int
) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Bytes a second in eight texts at once and in the same eight one by one."""
    lm = ReducedLM(model, tokenizer)
    options = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN}

    def one_by_one() -> int:
        return sum(lm.generate(prompt, **options).calls[0] for prompt in PROMPTS)

    def together() -> int:
        return lm.generate(list(PROMPTS), **options).calls[0]

    sides = {"one by one": one_by_one, "together": together}
    times = interleaved(sides, rounds)
    rows = []
    for name, side in sides.items():
        speed = len(PROMPTS) * WRITTEN / statistics.median(times[name])
        rows.append(row(size, f"8 texts {name}", "bytes a CPU second", speed))
        rows.append(row(size, f"8 texts {name}", "model calls", side()))
    ratio = median_ratio(times, "one by one", "together")
    return [at_least(f"{size}_bytes_per_second_b8_vs_b1", ratio, 3.0)], rows


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    rounds = 1 if options.quick else 5
    large, large_tokenizer, origin = large_vocabulary()
    small, small_tokenizer = small_vocabulary()
    claims, rows = [], []
    missing: dict[str, str] = {}
    for size, model, tokenizer, length in (
        ("small", small, small_tokenizer, 160 if options.quick else 300),
        ("large", large, large_tokenizer, 64 if options.quick else 300),
    ):
        part = scoring(size, model, tokenizer, length, rounds, options.quick, missing)
        claims += part[0]
        rows += part[1]
    parts = [
        building(large_tokenizer, large),
        batches("small", small, small_tokenizer, rounds),
        batches("large", large, large_tokenizer, rounds),
    ]
    for part in parts:
        claims += part[0]
        rows += part[1]
    for why in missing.values():
        print(why)
    report(f"Language models over bytes, one thread; large: {origin}", claims, rows, options.json)


if __name__ == "__main__":
    main()
