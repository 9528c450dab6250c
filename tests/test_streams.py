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


def _red() -> Group:
    return Group((Stream("i", 2.0, "image"), Stream("r", 0.5, "rationale")))


def _pair(primary: int = 0, experts: tuple[int, ...] | None = None) -> Group:
    streams = (Stream("a", 1.5, "clean", "model"), Stream("b", -0.5, "noised"))
    return Group(streams, primary, experts)


def _shape(group: Group) -> list[tuple[str, float, object]]:
    return [(s.context, s.weight, s.model) for s in group.streams]


@pytest.mark.parametrize("which", ["image", 0])
def test_a_group_in_the_place_of_the_primary(which: str | int) -> None:
    group = _red().replace(which, _pair())
    assert _shape(group) == [("a", 3.0, "model"), ("b", -1.0, None), ("r", 0.5, None)]
    assert [s.name for s in group.streams] == ["clean", "noised", "rationale"]
    assert group.primary == 0 and group.experts == (0,)
    group = _red().replace(which, _pair(primary=1, experts=(0, 1)))
    assert group.primary == 1 and group.experts == (0, 1)


@pytest.mark.parametrize("which", ["rationale", 1])
def test_a_group_in_the_place_of_another_stream(which: str | int) -> None:
    group = _red().replace(which, _pair(primary=1))
    assert _shape(group) == [("i", 2.0, None), ("a", 0.75, "model"), ("b", -0.25, None)]
    assert group.primary == 0 and group.experts == (0,)


def test_places_after_a_replaced_stream_move() -> None:
    last = Group((*_red().streams, Stream("z", 1.0, "last")), primary=2, experts=(1, 2))
    group = last.replace("image", _pair())
    assert group.primary == 3 and group.experts == (2, 3)
    group = last.replace("rationale", _pair(primary=0, experts=(1,)))
    assert [s.context for s in group.streams] == ["i", "a", "b", "z"]
    assert group.primary == 3 and group.experts == (2, 3)
    group = last.replace(2, _pair(primary=1, experts=(1,)))
    assert group.primary == 3 and group.experts == (1, 3)


def test_replacing_twice() -> None:
    group = _red().replace("image", _pair()).replace("rationale", _pair())
    assert [s.weight for s in group.streams] == [3.0, -1.0, 0.75, -0.25]
    assert group.experts == (0,)


def test_a_stream_to_replace_must_be_one() -> None:
    with pytest.raises(InferKitError, match=r"0 streams are named 'picture', of \['image', 'rat"):
        _red().replace("picture", _pair())
    twins = Group((Stream("a", 1.0, "x"), Stream("b", 1.0, "x")))
    with pytest.raises(InferKitError, match="2 streams are named 'x'"):
        twins.replace("x", _pair())
    assert [s.context for s in twins.replace(1, _red()).streams] == ["a", "i", "r"]


@pytest.mark.parametrize("which", [2, -1])
def test_a_number_to_replace_must_be_a_streams(which: int) -> None:
    with pytest.raises(InferKitError, match=f"No stream {which}: the group has 2 streams"):
        _red().replace(which, _pair())


def test_reweighted_keeps_the_rest() -> None:
    base = Group(_pair().streams, primary=1, experts=(0, 1))
    group = base.reweighted([1, 0])
    assert _shape(group) == [("a", 1.0, "model"), ("b", 0.0, None)]
    assert all(type(s.weight) is float for s in group.streams)
    assert group.primary == 1 and group.experts == (0, 1)
    assert [s.weight for s in base.streams] == [1.5, -0.5]
    with pytest.raises(ValueError, match="shorter|longer"):
        base.reweighted([1.0])


def test_experts_are_streams_of_the_group() -> None:
    assert Group(_pair().streams, primary=1).experts == (1,)
    for experts in ((2,), (), (0, -1)):
        with pytest.raises(InferKitError, match=r"experts=\(.*\), but the group has 2 streams"):
            Group(_pair().streams, experts=experts)
