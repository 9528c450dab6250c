"""Groups: what they refuse, and their weights as a table."""

import pytest

from infer_kit.errors import InferKitError
from infer_kit.streams import Group, Stream, weight_table


def test_weight_table_pads_smaller_groups_with_zero() -> None:
    groups = [Group((Stream("a", 1.0), Stream("b", -0.5))), Group((Stream("c", 2.0),))]
    assert weight_table(groups) == [[1.0, -0.5], [2.0, 0.0]]


def test_a_group_needs_a_stream() -> None:
    with pytest.raises(InferKitError, match="at least one stream"):
        Group(())


def test_the_primary_must_be_a_stream_of_the_group() -> None:
    with pytest.raises(InferKitError, match="primary=1, but the group has 1 streams"):
        Group((Stream("a"),), primary=1)
