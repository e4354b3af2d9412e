"""Log-probabilities kept as arrays, and the lists of dicts that users see in them."""

import copy
import pickle

from quire.core.batch import LogprobColumns, TokenLogprobs
from quire.engine.logprob_store import LogprobStore
from quire.outputs import Logprob

ENTRIES = [
    TokenLogprobs([7, 3, 7], [-1.5, -0.25, -1.5], 2),
    TokenLogprobs([4, 4, 9], [-0.5, -0.5, -2.0], 1),
    TokenLogprobs([5, 1, 2], [-9.0, -0.125, -3.0], 40),
]
DICTS = [
    {7: Logprob(-1.5, 2), 3: Logprob(-0.25, 1)},
    {4: Logprob(-0.5, 1), 9: Logprob(-2.0, 2)},
    {5: Logprob(-9.0, 40), 1: Logprob(-0.125, 1), 2: Logprob(-3.0, 2)},
]


def filled() -> LogprobStore:
    store = LogprobStore(None)
    store.extend(LogprobColumns.of(ENTRIES[:2]))
    store.extend(LogprobColumns.of(ENTRIES[2:]))
    return store


def test_entries_are_those_that_came() -> None:
    store = filled()
    assert len(store) == 3 and store.total == -11.0
    assert list(store.since(0)) == DICTS and store.since(0) == DICTS and store.since(0) != DICTS[:2]


def test_a_view_stays_as_it_was() -> None:
    store = LogprobStore(None)
    store.extend(LogprobColumns.of(ENTRIES[:2]))
    new = store.since(1)
    store.extend(LogprobColumns.of(ENTRIES[2:]))
    assert new == DICTS[1:2] and store.since(2) == DICTS[2:]


def test_it_reads_like_a_list() -> None:
    shown = filled().since(0)
    assert (shown[0], shown[-1], shown[1:]) == (DICTS[0], DICTS[2], DICTS[1:])
    assert len(shown) == 3 and bool(shown) and not filled().since(3)
    assert DICTS[1] in shown and shown.index(DICTS[1]) == 1
    assert repr(shown) == repr(DICTS)


def test_copies_are_plain_lists() -> None:
    shown = filled().since(1)
    assert pickle.loads(pickle.dumps(shown)) == copy.deepcopy(shown) == DICTS[1:]
    assert type(copy.deepcopy(shown)) is list


def test_columns_are_cut_and_joined_like_lists() -> None:
    columns = LogprobColumns.of(ENTRIES)
    assert len(columns) == 3 and list(columns) == ENTRIES
    assert list(columns.first(2)) == ENTRIES[:2] and not columns.first(0) and columns.first(9) is columns
    assert columns.first(1) + LogprobColumns.of(ENTRIES[1:]) == columns
    assert list(LogprobColumns()) == [] and LogprobColumns() + columns == columns
