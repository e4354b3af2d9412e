"""Stop strings: the first complete one ends the text, however the text is cut, and no part of one is shown before."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.text.detokenizer import StopChecker


def naive(text, stops, include):
    """Reads the text character by character: (what is shown, which stop string ended it)."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            matched = max(complete, key=len)
            return text[: end if include else end - len(matched)], matched
    return text, None


@given(
    text=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=6), max_size=4),
    include=st.booleans(),
    cuts=st.lists(st.integers(0, 40), max_size=10),
)
@settings(max_examples=1500, deadline=None, derandomize=True)
def test_any_cut_of_the_text_gives_what_the_whole_gives(text, stops, include, cuts):
    checker = StopChecker(stops, include)
    bounds = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    expected, expected_match = naive(text, stops, include)
    shown, matched = "", None
    for a, b in zip(bounds, bounds[1:]):
        result = checker.push(text[a:b])
        shown += result.text
        assert expected.startswith(shown)
        if result.stopped:
            matched = result.matched
            break
    else:
        shown += checker.flush()
    assert (shown, matched) == (expected, expected_match)


def test_only_what_may_begin_a_stop_string_is_held_back():
    checker = StopChecker(["\n\nUser:", "END"])
    assert checker.push("hello E").text == "hello "
    assert checker.push("N").text == ""
    assert checker.push("x").text == "ENx"
    assert checker.push("a\n").text == "a"
    assert checker.push("\n").text == ""
    assert checker.push("\n").text == "\n"
    assert checker.push("User: hi") == ("", True, "\n\nUser:")


def test_included_stop_strings_need_no_holding_back():
    checker = StopChecker(["END"], include=True)
    assert checker.push("E").text == "E"
    assert checker.push("ND more") == ("ND", True, "END")


@pytest.mark.parametrize("stops", [[], ["x"]])
def test_text_without_a_stop_string_passes(stops):
    checker = StopChecker(stops)
    assert checker.push("abc") == ("abc", False, None)
    assert checker.flush() == ""


def test_hostile_stop_strings_cost_little():
    """Sixteen stop strings of 256 equal characters over a text of the same character but one."""
    import time

    checker = StopChecker(["a" * 255 + chr(0x61 + i) for i in range(16)][1:])
    start = time.perf_counter()
    for _ in range(2000):
        checker.push("a")
    assert time.perf_counter() - start < 60.0
