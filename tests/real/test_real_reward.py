"""A LoRA reward on a pretrained model: it helps on held-out text and leaves the base as it was."""

import pytest

from evals.benchmarks.real_reward import measure

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


def test_a_reward_is_trained_saved_loaded_and_used(smollm2) -> None:
    claims, rows = measure(*smollm2, steps=60, beside=False)
    assert {claim.name: claim.holds for claim in claims} == {
        "gain_nats_a_token": True,
        "base_tensors_changed": True,
        "reloaded_reward_apart": True,
    }
    ratio = next(row["value"] for row in rows if row["unit"] == "ratio")
    assert 1.5 < ratio < 4  # two models of one size
