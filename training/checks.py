"""Judges a reply by the check of its turn. Strict: the right name and no other one, JSON that parses and is equal."""

from __future__ import annotations

import json
import re
from typing import Any

from training.ask_places import COUNTRIES, SEATED
from training.tables import LANGUAGES

CAPITALS = sorted({p.capital[lang].split(",")[0] for p in COUNTRIES + SEATED for lang in LANGUAGES})
PLACES = sorted({p.name[lang].removeprefix("the ") for p in COUNTRIES + SEATED for lang in LANGUAGES})
NAMES = {"capital": CAPITALS, "place": PLACES}


def is_right(check: dict[str, Any], reply: str) -> bool:
    """Whether `reply` passes `check`. Raises KeyError for a kind of check that does not exist."""
    return CHECKS[check["kind"]](check, reply)


def _exact(check: dict[str, Any], reply: str) -> bool:
    return reply.strip() == check["want"]


def _any(check: dict[str, Any], reply: str) -> bool:
    return any(wanted in reply for wanted in check["want"])


def _word(check: dict[str, Any], reply: str) -> bool:
    return reply.strip().rstrip(".。").lower() == check["want"].lower()


def _number(check: dict[str, Any], reply: str) -> bool:
    """The last number of the reply, after its equals sign, is the result."""
    found = re.findall(r"-?\d+", reply.rsplit("=", 1)[-1])
    return len(found) == 1 and int(found[0]) == check["want"]


def _json(check: dict[str, Any], reply: str) -> bool:
    try:
        return bool(json.loads(reply) == check["want"])
    except json.JSONDecodeError:
        return False


def _name(check: dict[str, Any], reply: str) -> bool:
    """The wanted name occurs, and with it and the names of the question taken out no other name is left."""
    if check["want"] not in reply:
        return False
    rest = reply
    for known in sorted((check["want"], *check["ignore"]), key=len, reverse=True):
        rest = rest.replace(known, "")
    return not any(_occurs(name, rest) for name in NAMES[check["others"]])


def _occurs(name: str, text: str) -> bool:
    if name.isascii():
        return re.search(rf"\b{re.escape(name)}\b", text) is not None
    return name in text


def _unknown(check: dict[str, Any], reply: str) -> bool:
    """Admits not to know, in the language of the question, and names no capital."""
    admits = any(wanted in reply for wanted in check["want"])
    return admits and not any(_occurs(name, reply) for name in CAPITALS)


CHECKS = {
    "exact": _exact,
    "any": _any,
    "word": _word,
    "number": _number,
    "json": _json,
    "name": _name,
    "unknown": _unknown,
}
