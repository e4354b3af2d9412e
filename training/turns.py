"""One question and its answer, with what the evaluation needs in order to judge another answer to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.tables import Place


@dataclass(frozen=True)
class Turn:
    """A user's message and the assistant's reply.

    `category` is the name it is reported under. `check` says how a reply is judged (see `training.checks`).
    `place` is what a follow-up ("what is good to eat there?") would speak of.
    """

    category: str
    language: str
    user: str
    answer: str
    check: dict[str, Any] = field(default_factory=dict)
    place: Place | None = None


def exact(answer: str) -> dict[str, Any]:
    return {"kind": "exact", "want": answer}


def contains(*wanted: str) -> dict[str, Any]:
    """Any one of `wanted` occurs in the reply."""
    return {"kind": "any", "want": list(wanted)}


def one_name(wanted: str, others: str, ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    """`wanted` occurs, and no other name of the table `others` ("capital" or "place") does."""
    return {"kind": "name", "want": wanted, "others": others, "ignore": list(ignore)}
