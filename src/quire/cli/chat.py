"""`quire chat [MODEL]`: talk to a model in the terminal, in this process or on a server (--url)."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quire.cli.args import Parser, parse
from quire.cli.remote import Server, check_given
from quire.config import EngineArgs, option
from quire.core.params import RequestOutputKind
from quire.errors import ClientError

HELP = "chat with a model in the terminal"
QUIT_WORDS = ("exit", "quit", ":q")


@dataclass
class ChatArgs:
    """Options of `quire chat`."""

    url: str | None = option(None, "talk to this server (such as http://127.0.0.1:8000/v1) and load nothing here")
    model_name: str | None = option(None, "model to ask on the server; default: the first it lists")
    api_key: str | None = option(None, "the server's key; default: QUIRE_API_KEY or VLLM_API_KEY")
    system_prompt: str | None = option(None, "what the assistant is told first")
    quick: str | None = option(None, "ask this one question, print the answer and end", aliases=("-q",))
    max_tokens: int = option(512, "longest answer, in tokens")
    temperature: float | None = option(None, "default: the model's own")


Speak = Callable[[list[dict[str, str]]], Iterator[str]]


def main(argv: Sequence[str]) -> int:
    """Reads a line, prints the answer as it comes, until exit, quit or end of input."""
    parser = Parser(prog="quire chat", description=HELP, conflict_handler="resolve")
    (engine, args), given = parse(parser, argv, [EngineArgs, ChatArgs])
    check_given(given)
    speak = _remote(args) if args.url else _local(engine, args)
    messages: list[dict[str, str]] = []
    if args.system_prompt:
        messages.append({"role": "system", "content": args.system_prompt})
    if args.quick is not None:
        _turn(speak, messages, args.quick)
        return 0
    print("Type a message; exit, quit or Ctrl-D ends.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        if line in QUIT_WORDS:
            return 0
        if line:
            _try_turn(speak, messages, line)


def _try_turn(speak: Speak, messages: list[dict[str, str]], text: str) -> None:
    """A message that is refused (a conversation grown too long, say) is taken back; the conversation goes on."""
    num_before = len(messages)
    try:
        _turn(speak, messages, text)
    except ClientError as error:
        del messages[num_before:]
        print(f"quire chat: {error}", file=sys.stderr)


def _turn(speak: Speak, messages: list[dict[str, str]], text: str) -> None:
    messages.append({"role": "user", "content": text})
    answer = ""
    for piece in speak(messages):
        print(piece, end="", flush=True)
        answer += piece
    print()
    messages.append({"role": "assistant", "content": answer})


def _local(engine: EngineArgs, args: ChatArgs) -> Speak:
    from quire.llm import LLM  # loads the engine: only needed without --url

    llm = LLM(**vars(engine))
    changes: dict[str, Any] = {"max_tokens": args.max_tokens, "output_kind": RequestOutputKind.DELTA}
    if args.temperature is not None:
        changes["temperature"] = args.temperature
    params = llm.get_default_sampling_params().clone(**changes)

    def speak(messages: list[dict[str, str]]) -> Iterator[str]:
        for output in llm.chat(messages, params, stream=True, use_tqdm=False):
            yield output.outputs[0].text

    return speak


def _remote(args: ChatArgs) -> Speak:
    server = Server.at(args.url or "", args.api_key)
    model = args.model_name or server.first_model()

    def speak(messages: list[dict[str, str]]) -> Iterator[str]:
        body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": args.max_tokens}
        if args.temperature is not None:
            body["temperature"] = args.temperature
        for event in server.stream("/chat/completions", body):
            if event["choices"]:
                yield event["choices"][0]["delta"].get("content") or ""

    return speak
