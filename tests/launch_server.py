"""Starts a server for tests: argv[1] is JSON {"engine_args": {...}, "server_args": {...}, "fake": bool}. Exit code as `quire serve`."""

import json
import os
import sys
from pathlib import Path

from quire.config import EngineArgs
from quire.engine.lifeline import die_with_parent
from quire.errors import SetupError
from quire.log import configure
from quire.server.options import ServerArgs
from quire.server.supervisor import ENGINE_COMMAND, Supervisor


def main() -> int:
    die_with_parent(os.getppid())  # a test run that is killed leaves no server behind
    options = json.loads(sys.argv[1])
    command = (sys.executable, str(Path(__file__).parent / "fake_engine.py")) if options.get("fake") else ENGINE_COMMAND
    server_args = ServerArgs(**options["server_args"])
    configure(server_args.log_format)
    supervisor = Supervisor(EngineArgs(**options["engine_args"]), server_args, engine_command=command)
    try:
        return supervisor.run()
    except SetupError as error:
        print(f"quire serve: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
