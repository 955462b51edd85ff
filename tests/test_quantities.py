import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotransfer.errors import SpaceError
from autotransfer.quantities import format_bytes, format_count, format_duration, parse_count, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h", 3600),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("2D", 172800),
        ("45", 45),
        (" .5m ", 30),
        (12, 12),
        (0.25, 0.25),
    ],
)
def test_durations_people_write_are_understood(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "10q", "m", "-5m", "1h-3m", "ten minutes", "1e3", "0", "0s", 0, -1, float("nan"), float("inf")]
)
def test_anything_else_is_refused_with_what_was_got(text: str | float) -> None:
    with pytest.raises(SpaceError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("20M", 20_000_000),
        ("1.5k", 1500),
        ("0.3M", 300_000),
        ("2b", 2 * 10**9),
        ("1G", 10**9),
        ("2e7", 20_000_000),
        ("300_000", 300_000),
        ("20,000", 20_000),
        (" 7 ", 7),
        (12, 12),
    ],
)
def test_counts_people_write_are_understood(text: str | int, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["lots", "", "M", "-1", "0", "1.5", "20MB", "1e99", "9" * 40, 0, True, "nan", "٣"])
def test_other_counts_are_refused(text: str | int) -> None:
    with pytest.raises(SpaceError, match="count"):
        parse_count(text)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.integers(1, 10**6), st.sampled_from([("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9)]))
def test_units_multiply_counts_exactly(number: int, unit: tuple[str, int]) -> None:
    assert parse_count(f"{number / 100:.2f}G") == number * 10**7
    assert parse_count(f"{number}{unit[0]}") == number * unit[1]


@given(st.text(max_size=12))
def test_any_text_gives_a_positive_number_or_a_space_error(text: str) -> None:
    for parse in (parse_duration, parse_count):
        try:
            assert parse(text) > 0
        except SpaceError as error:
            assert text in str(error)


@given(st.floats(0.1, 10**6))
def test_formatted_durations_read_back_to_what_they_show(seconds: float) -> None:
    shown = parse_duration(format_duration(seconds))
    assert abs(shown - seconds) <= (0.06 if seconds < 10 else 0.51 if seconds < 3600 else 60)


def test_large_numbers_read_well() -> None:
    assert format_count(4.09e9) == "4.09G"
    assert format_bytes(999) == "999 B"
    assert format_bytes(3_200_000_000) == "3.2 GB"
