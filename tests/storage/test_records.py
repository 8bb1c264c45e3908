"""Records: what a later version of Hostler wrote is read by this one as far as it is understood."""

from dataclasses import dataclass

import pytest

from storage.records import understood


@dataclass
class Point:
    x: int
    y: int = 0


def test_a_field_of_a_later_version_is_left_out() -> None:
    assert understood(Point, {"x": 1, "z": 3}) == Point(1)


def test_a_field_that_is_missing_is_no_record() -> None:
    with pytest.raises(TypeError, match="'x'"):
        understood(Point, {"y": 1})
