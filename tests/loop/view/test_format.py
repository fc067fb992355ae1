"""Numbers in print."""

import pytest

from loop.format import (
    clock,
    duration,
    one_line,
    percent,
    percent_with_interval,
    points,
    points_with_interval,
    typeset,
    visible,
)


def test_shares_are_printed_in_per_cent_and_missing_ones_as_a_dash() -> None:
    assert [percent(0.5213), percent(0.5213, 0), percent(None), percent(float("nan"))] == ["52.1", "52", "–", "–"]
    assert percent(None, none="") == ""
    assert percent_with_interval(0.521, 0.48, 0.559) == "52.1 [48, 56]"
    assert percent_with_interval(0.521, 0.48, 0.559, between="\n") == "52.1\n[48, 56]"
    assert percent_with_interval(None, None, None) == "–"


def test_differences_are_printed_in_points_with_their_sign() -> None:
    assert [points(0.012), points(-0.00253, 2)] == ["+1.2", "-0.25"]
    assert points_with_interval(0.012, -0.003, 0.027) == "+1.2 points [-0.3, +2.7]"
    assert points_with_interval(0.012, -0.003, 0.027, unit="") == "+1.2 [-0.3, +2.7]"
    assert points_with_interval(None, None, None) == "–"
    assert typeset("-0.3") == "−0.3"


@pytest.mark.parametrize(
    ("seconds", "words", "digits", "minutes"),
    [
        (9.94, "9.9 s", "0:10", "0:10"),
        (59.4, "59 s", "0:59", "0:59"),
        (185, "3 min 05 s", "3:05", "3:05"),
        (3723, "1 h 02 min", "1:02:03", "62:03"),
    ],
)
def test_durations_are_printed_in_two_forms(seconds: float, words: str, digits: str, minutes: str) -> None:
    assert (duration(seconds), clock(seconds), clock(seconds, hours=False)) == (words, digits, minutes)


def test_control_characters_of_a_response_do_not_reach_the_terminal() -> None:
    assert visible("a\x1b[2J\tb\nc\x07\x9b") == "a␛[2J\tb\nc␇<U+009B>"
    assert one_line(" a\r\n\tb\x1b]0;title\x07 ") == "a b␛]0;title␇"
