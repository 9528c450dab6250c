"""Units of a real pretrained language model, reordered and found again (`conftest.py`)."""

import pytest
import torch

from infer_kit.training.symmetry import discover, match

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


def test_its_function_is_kept_and_its_units_are_found(smollm2) -> None:
    model, tokenizer = smollm2
    ids = tokenizer("The ferry leaves the island every morning.", return_tensors="pt").input_ids
    spec = discover(model, {"input_ids": ids})
    assert len(spec.groups) == 1 + 30 * 4  # the stream; heads of keys, of queries, values, MLP
    assert not spec.unknown
    assert spec.check(model, {"input_ids": ids}) < 1e-5
    state = model.state_dict(keep_vars=True)
    planted = spec.random(1)
    found = match(spec, state, spec.apply(planted, state), start="signature")
    undone = spec.inverse(planted)
    assert all(torch.equal(found.perms[g], undone[g]) for g in spec.groups)
