"""FreeList against an OrderedDict, which does the same by other means."""

import random
from collections import OrderedDict

import pytest

from quire.core.free_list import FreeList


def test_at_first_all_are_there_in_order() -> None:
    numbers = FreeList(5)
    assert list(numbers) == [1, 2, 3, 4, 5] and len(numbers) == 5
    assert numbers.take(0) == [] and numbers.take(5) == [1, 2, 3, 4, 5]
    assert list(numbers) == [] and len(numbers) == 0


@pytest.mark.parametrize("highest", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("seed", range(5))
def test_it_keeps_the_order_that_an_ordered_dict_does(highest: int, seed: int) -> None:
    draw = random.Random(seed)
    numbers, expected, away = FreeList(highest), OrderedDict.fromkeys(range(1, highest + 1)), []
    for _ in range(400):
        step = draw.choice(("take", "remove", "extend", "prepend"))
        if step == "take":
            count = draw.randint(0, len(expected))
            taken = numbers.take(count)
            assert taken == [expected.popitem(last=False)[0] for _ in range(count)]
            away += taken
        elif step == "remove" and expected:
            number = draw.choice(list(expected))
            numbers.remove(number)
            del expected[number]
            away.append(number)
        elif step == "extend":
            draw.shuffle(away)
            more = [away.pop() for _ in range(draw.randint(0, len(away)))]
            numbers.extend(more)
            expected.update(dict.fromkeys(more))
        elif step == "prepend" and away:
            number = away.pop(draw.randrange(len(away)))
            numbers.prepend(number)
            expected[number] = None
            expected.move_to_end(number, last=False)
        assert list(numbers) == list(expected) and len(numbers) == len(expected)
