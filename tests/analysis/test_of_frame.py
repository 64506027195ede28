"""What is made of a frame is made once, and forgotten with it."""

import gc

import pandas as pd
import pytest

from analysis.records.of_frame import of_frame
from analysis.selection import views


def test_each_frame_and_each_argument_once_and_no_longer_than_the_frame():
    asked = []

    @of_frame
    def total(frame: pd.DataFrame, column: str, times: int = 1) -> int:
        asked.append((len(frame), column, times))
        return int(frame[column].sum()) * times

    small, large = pd.DataFrame({"a": [1, 2], "b": [3, 4]}), pd.DataFrame({"a": [1, 2, 3]})
    for _ in range(2):
        assert total(small, "a") == 3 and total(small, "b") == 7 and total(large, "a") == 6
        assert total(small, "a", times=2) == 6
    assert asked == [(2, "a", 1), (2, "b", 1), (3, "a", 1), (2, "a", 2)]
    # The next frame may lie where this one lay.
    (kept,) = (cell.cell_contents for cell in total.__closure__ if type(cell.cell_contents) is dict)
    del small
    gc.collect()
    assert [*kept] == [id(large)]


def test_what_fails_is_tried_again():
    @of_frame
    def first(frame: pd.DataFrame) -> int:
        return int(frame["a"].iloc[0])

    frame = pd.DataFrame({"a": pd.Series([], dtype=int)})
    for _ in range(2):
        with pytest.raises(IndexError):
            first(frame)


def test_a_view_and_its_series_are_chosen_once(laptop):
    one = views.view(laptop, "dilated")
    assert views.view(laptop, "dilated") is one
    assert views.view(laptop.copy(), "dilated") is not one
    assert one.series() is one.series("forward")
    assert one.series() is not one.series("forward_backward")
