"""The process that compiles grammars of strangers: frames of JSON in, frames of JSON out, until its input ends.

It may crash; whoever started it makes another. Its memory is bounded, and so is the time that a grammar may take, for the engine
compiles it once more, between steps that everyone waits for.
"""

import contextlib
import json
import math
import os
import resource
import sys
import time
from typing import Any

from quire.core.structured import StructuredOutputsParams
from quire.errors import InvalidRequest
from quire.text.grammar import GrammarCompiler, refused
from quire.text.isolated_grammar import read_frame, write_frame
from quire.text.tokenizer import Tokenizer

MAX_ADDRESS_BYTES = 8 * 2**30


def main() -> int:
    """Reads the settings, then one constraint after another."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    _bound_memory()
    settings = json.loads(read_frame(questions) or b"{}")
    tokenizer = Tokenizer.from_dir(settings["folder"])
    compiler = GrammarCompiler(tokenizer, settings["vocab_size"], settings["eos_token_ids"])
    write_frame(answers, b"{}")
    while (question := read_frame(questions)) is not None:
        _bound_time(settings["max_compile_s"])
        found = answer(compiler, json.loads(question), settings["max_compile_s"])
        write_frame(answers, json.dumps(found).encode())
    return 0


def answer(compiler: GrammarCompiler, constraint: dict[str, Any], max_compile_s: float) -> dict[str, Any]:
    """{"text", "num_closing"} of a constraint, or {"error", "param"}."""
    began = time.process_time()
    try:
        grammar = compiler.checked(StructuredOutputsParams(**constraint))
        took_s = time.process_time() - began
        if took_s > max_compile_s:
            raise refused(f"it took {took_s:.1f} s to compile; the limit is {max_compile_s:.0f} s")
    except InvalidRequest as error:
        return {"error": str(error), "param": error.param}
    return {"text": grammar.text, "num_closing": grammar.num_closing}


def _bound_time(max_compile_s: float) -> None:
    """From now on, the kernel ends this process after so much computing and a bit, whatever library it is lost in."""
    most = math.ceil(time.process_time() + max_compile_s) + 1
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _bound_memory() -> None:
    """No more address space than MAX_ADDRESS_BYTES, and no core file of what strangers sent."""
    for what, most in ((resource.RLIMIT_AS, MAX_ADDRESS_BYTES), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


if __name__ == "__main__":
    sys.exit(main())
