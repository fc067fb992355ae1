"""Numbers survive every way of writing them, exactly; what cannot be read is never read as something else."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judges.rules.numerals import find_numbers, last_number, parse_number, plain_text
from judges.rules.values import close, show

unhurried = settings(deadline=None)
integers = st.integers(-(10**15), 10**15)
decimals = st.builds(lambda digits, places: Fraction(digits, 10**places), integers, st.integers(0, 6))


def grouped(value: Fraction, separator: str, point: str = ".") -> str:
    whole, _, places = show(abs(value)).partition(".")
    written = f"{int(whole):,}".replace(",", separator) + (point + places if places else "")
    return ("-" if value < 0 else "") + written


@unhurried
@given(decimals)
def test_what_is_shown_is_read_back(value: Fraction) -> None:
    assert parse_number(show(value)) == value


@unhurried
@given(st.fractions(max_denominator=10**6))
def test_fractions_are_read_back_exactly(value: Fraction) -> None:
    assert parse_number(f"{value.numerator}/{value.denominator}") == value
    assert parse_number(show(value)) == value


@unhurried
@given(decimals, st.sampled_from([",", "'", "’", "_", "\u00a0", "\u202f", "\u2009", "٬", "{,}", "\\,", ",\\!"]))
def test_thousands_separators_do_not_change_the_value(value: Fraction, separator: str) -> None:
    assert parse_number(grouped(value, separator)) == value


@unhurried
@given(decimals)
def test_european_separators_are_read_where_they_are_unambiguous(value: Fraction) -> None:
    written = grouped(value, ".", ",")
    if written.count(".") > 1 or ("." in written and "," in written):
        assert parse_number(written) == value


@unhurried
@given(decimals, st.sampled_from("٠०০௦๐０"))
def test_digits_of_any_script_are_digits(value: Fraction, zero: str) -> None:
    written = "".join(chr(ord(zero) + int(c)) if c.isdigit() else c for c in show(value))
    assert parse_number(written) == value


@unhurried
@given(decimals, st.sampled_from("-−–－"))
def test_every_dash_is_a_minus(value: Fraction, dash: str) -> None:
    assert parse_number(show(value).replace("-", dash)) == value


WRAPPED = [
    "${}",
    "{} dollars",
    "{}%",
    "{}km",
    "**{}**",
    "`{}`",
    "({})",
    "{}.",
    "{}!",
    "= {}",
    "\\${}",
    "x = {}",
    "「{}」",
]


@unhurried
@given(decimals, st.sampled_from(WRAPPED), st.sampled_from(["", "So it is ", "a\n", "答案", "Paid in full: "]))
def test_clothes_do_not_change_the_last_number(value: Fraction, wrapped: str, before: str) -> None:
    number = last_number(plain_text(before + wrapped.format(show(value))))
    assert number is not None
    assert number.value == value


@unhurried
@given(st.text(alphabet="0123456789.,/ -+*=x^%$#\\{}()or\n٣½√eEk_'", max_size=40))
def test_the_last_number_is_the_last_of_all_numbers(text: str) -> None:
    plain = plain_text(text)
    numbers, last = find_numbers(plain), last_number(plain)
    assert last == (numbers[-1] if numbers else None)


@unhurried
@given(st.text(max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    parse_number(text)
    for number in find_numbers(plain_text(text)):
        assert number.value is None or show(number.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7:00", 7),
        ("2 1/2", Fraction(5, 2)),
        ("16 48/2", 24),
        ("$2.5 million", 2_500_000),
        ("1.5e3", 1500),
        ("1.5 × 10^{-1}", Fraction(3, 20)),
        ("answer: negative 3/4", Fraction(-3, 4)),
        ("either 18 or 18.00", 18),
        ("3:30", None),
        ("18 or 20", None),
        ("between 18 and 20", None),
        ("18 to 20", None),
        ("9 times 2", None),
        ("2^10", None),
        ("1,23,4", None),
        ("1.2.3", None),
        ("5'11", None),
        ("5/0", None),
        ("7" * 101, None),
        ("1e1000", None),
    ],
)
def test_the_last_number_of(text: str, value: int | Fraction | None) -> None:
    number = last_number(plain_text(text))
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize("text", ["", "eighteen", "x2", "H2O", "A4.12", "x_1", "m^2", "√2", "₁₈", "²", "."])
def test_there_is_no_number_in(text: str) -> None:
    assert last_number(plain_text(text)) is None


def test_a_tenth_is_exactly_a_tenth() -> None:
    assert parse_number("0.1") == Fraction(1, 10)
    assert parse_number("0.1") != Fraction(0.1)
    limits = {"tolerance": Fraction("0.1"), "relative": Fraction(0)}
    assert close(Fraction("0.3"), Fraction("0.2"), **limits)
    assert not close(Fraction("0.31"), Fraction("0.2"), **limits)
