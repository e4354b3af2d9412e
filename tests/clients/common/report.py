"""What the Python clients here have in common: the server's address, the questions, and a line for each check that holds.

Each client runs as a program of its own in an environment of its own (environments.py), so this file needs nothing but Python.
"""

import sys
from collections.abc import Callable

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
MODEL = "builtin-tiny"
QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


def run(*checks: Callable[[], None]) -> None:
    """Runs the checks in order; the first that fails ends the program with its traceback."""
    for check in checks:
        check()
        print("ok", check.__name__, flush=True)


def is_weather(arguments: dict) -> bool:
    """Whether the arguments are what the parameters of WEATHER allow."""
    return set(arguments) == {"city", "unit"} and isinstance(arguments["city"], str) and arguments["unit"] in ("C", "F")
