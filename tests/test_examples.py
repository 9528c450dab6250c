"""Every example runs, as a script, and prints what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMISES = {
    "red_on_a_picture": ("rationale:", "the rationale mattered:", "JSD"),
    "explain_an_answer": (
        "answer: the red circle",
        "page: page.html",
        "weight 0.0: the red triangle",
    ),
    "does_the_rationale_matter": ("own ", "shuffled ", "empty ", "given "),
    "contrast_the_image": ("plain ", "VCD, kl:0.1 ", "noised", "weights under the budget: [["),
    "many_demonstrations": ("true answer:", "answer:", "chunk 3 wanted", "full context:"),
    "concepts_of_a_picture": ("pictures", "without '", "refitted:", "put back:", "as before: True"),
    "two_tokenizers": ("pooled over bytes", "model calls (", "log P of it under b:", "bits a byte"),
    "portable_reward": ("gain on its own base:", "before, ", "with the reward: "),
    "portable_reward_digits": ("gain on its own base:", "CNN with the MLP's reward", "loss by β"),
    "ticket_in_a_transformer": (
        "qk_scale=n**0.25: ",
        "bits, 1.",
        "another process writes the same: True",
    ),
    "merge_two_networks": (
        "in a random order the outputs differ by",
        "by activations",
        "the better of the two alone:",
    ),
    "refine_a_clip": ("CLIP-Refine: similarities are raw", "contrastive  ", "features.png"),
    "evaluate_and_compare": ("direct  accuracy/walk", "difference +", "again: nothing was left"),
    "sweep_the_weight": ("RED: accuracy over 60 requests", "best: ", "among 5 colours: ["),
    "your_own_method": ("('image', 'black')", "right by alpha:", "page of:"),
    "your_own_group": ("engine: ('fused',)", "log π(red)", "by certainty:"),
}


def test_every_example_is_listed() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_the_example_runs(name: str) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    for words in PROMISES[name]:
        assert words in run.stdout
