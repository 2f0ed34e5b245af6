"""Suspects: a row that ends its process is found in few ends, and rows beside it are not blamed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.job.workers.suspects import GROUPS, Suspects


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=400), st.data())
def test_each_row_that_ends_its_process_is_found_and_no_other(rows: set[int], data: st.DataObject) -> None:
    poison = set(data.draw(st.lists(st.sampled_from(sorted(rows)), max_size=3)))
    suspects, found, served = Suspects(), set(), set()
    suspects.add(rows)
    while suspects:
        group = suspects.next_group()
        assert group == sorted(group)
        bad = next((row for row in group if row in poison), None)
        if bad is None:
            served.update(group)
            suspects.finish_group()
        else:
            in_flight = group[group.index(bad) :] if data.draw(st.booleans()) else group
            served.update(set(group) - set(in_flight))
            if (row := suspects.end(in_flight)) is not None:
                found.add(row)
    assert found == poison
    assert served == rows - poison


@pytest.mark.parametrize(("count", "ends"), [(1, 2), (16, 3), (256, 4), (4096, 5)])
def test_a_sixteenth_is_left_after_each_end(count: int, ends: int) -> None:
    """The worst case: the row is in the last group of each division."""
    suspects, poison, num_ends, groups = Suspects(), count - 1, 0, 0
    suspects.add(range(count))
    while suspects:
        group = suspects.next_group()
        groups += 1
        if poison in group:
            num_ends += 1
            suspects.end(group)
        else:
            suspects.finish_group()
    assert num_ends == ends
    assert groups == 2 + GROUPS * (ends - 2)


def test_a_group_whose_machine_is_lost_is_served_again_as_it_is() -> None:
    suspects = Suspects()
    suspects.add([3, 1, 2])
    assert suspects.next_group() == [1, 2, 3]
    suspects.retry_group()
    assert suspects.rows == [1, 2, 3]
    assert suspects.next_group() == [1, 2, 3]


def test_a_process_that_ended_before_it_said_what_it_serves_blames_the_whole_group() -> None:
    suspects = Suspects()
    suspects.add([1, 2])
    suspects.next_group()
    assert suspects.end([]) is None
    assert suspects.next_group() == [1]
