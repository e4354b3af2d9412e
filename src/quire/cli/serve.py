"""`quire serve [MODEL]`: the OpenAI-compatible server."""

from collections.abc import Sequence

from quire.cli.args import Parser, parse
from quire.config import EngineArgs
from quire.server.options import ServerArgs
from quire.server.supervisor import serve

HELP = "serve a model over an OpenAI-compatible HTTP API"


def main(argv: Sequence[str]) -> int:
    """Runs until SIGTERM or Ctrl-C."""
    (engine_args, server_args), _ = parse(Parser(prog="quire serve", description=HELP), argv, [EngineArgs, ServerArgs])
    return serve(engine_args, server_args)
