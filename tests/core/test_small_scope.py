"""The exhaustive small-scope model, at the size that every run of the suite can afford."""

import pytest
from small_scope import SCOPES, scope

# Forced preemptions in each scope, and the states that it then has. A count that falls means that events went missing.
MAX_FORCED = (1, 0, 0, 0, 0, 0)
NUM_STATES = (12_000, 9_000, 12_000, 4_500, 9_000, 9_000)


@pytest.mark.parametrize("number", range(len(SCOPES)))
def test_every_interleaving_keeps_every_promise(number: int) -> None:
    model = scope(MAX_FORCED[number], **SCOPES[number])
    model.explore()
    print(f"\n{SCOPES[number]}: {model.summary()}")
    assert model.violation is None
    assert model.complete
    assert model.num_states >= NUM_STATES[number]
