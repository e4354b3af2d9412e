"""`quire complete [MODEL]`: continue text, in this process or on a server (--url)."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quire.cli.args import Parser, parse
from quire.cli.remote import Server, check_given
from quire.config import EngineArgs, option
from quire.core.params import RequestOutputKind

HELP = "continue text in the terminal"


@dataclass
class CompleteArgs:
    """Options of `quire complete`."""

    url: str | None = option(None, "use this server (such as http://127.0.0.1:8000/v1) and load nothing here")
    model_name: str | None = option(None, "model to ask on the server; default: the first it lists")
    api_key: str | None = option(None, "the server's key; default: QUIRE_API_KEY or VLLM_API_KEY")
    quick: str | None = option(None, "continue this one text and end", aliases=("-q",))
    max_tokens: int = option(128, "longest continuation, in tokens")
    temperature: float | None = option(None, "default: the model's own")


def main(argv: Sequence[str]) -> int:
    """Continues --quick's text, or each line of the input."""
    parser = Parser(prog="quire complete", description=HELP, conflict_handler="resolve")
    (engine, args), given = parse(parser, argv, [EngineArgs, CompleteArgs])
    check_given(given)
    proceed = _remote(args) if args.url else _local(engine, args)
    lines = [args.quick] if args.quick is not None else (line.rstrip("\n") for line in sys.stdin)
    for text in lines:
        if text:
            for piece in proceed(text):
                print(piece, end="", flush=True)
            print()
    return 0


def _local(engine: EngineArgs, args: CompleteArgs) -> Callable[[str], Iterator[str]]:
    from quire.llm import LLM  # loads the engine: only needed without --url

    llm = LLM(**vars(engine))
    changes: dict[str, Any] = {"max_tokens": args.max_tokens, "output_kind": RequestOutputKind.DELTA}
    if args.temperature is not None:
        changes["temperature"] = args.temperature
    params = llm.get_default_sampling_params().clone(**changes)
    return lambda text: (o.outputs[0].text for o in llm.generate(text, params, stream=True, use_tqdm=False))


def _remote(args: CompleteArgs) -> Callable[[str], Iterator[str]]:
    server = Server.at(args.url or "", args.api_key)
    body: dict[str, Any] = {"model": args.model_name or server.first_model(), "max_tokens": args.max_tokens}
    if args.temperature is not None:
        body["temperature"] = args.temperature

    def proceed(text: str) -> Iterator[str]:
        for event in server.stream("/completions", {**body, "prompt": text}):
            if event["choices"]:
                yield event["choices"][0]["text"]

    return proceed
