"""Logging of a process: one line a message, on stderr, as text or as JSON. The standard library's loggers, so that other packages'
lines join in. Prompts and answers are not logged."""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

FORMAT = "%(levelname)-8s %(asctime)s [%(name)s] %(message)s"
DATE_FORMAT = "%m-%d %H:%M:%S"


class OneLine(logging.Formatter):
    """Escapes control characters in messages: what a client sends cannot forge a line. Tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class JsonLine(logging.Formatter):
    """A JSON object a line: time (UTC), level, logger, message; client, method, path and status of an access line; exception."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {"time": at, "level": record.levelname, "logger": record.name}
        entry["message"] = record.getMessage()
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, _, status = record.args
            entry |= {"client": client, "method": method, "path": path, "status": status}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def configure(kind: str = "text", level: int = logging.INFO) -> None:
    """Sends quire's and uvicorn's lines to stderr. For programs of ours; a library's user configures logging alone.

    kind  "text" or "json"
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine() if kind == "json" else OneLine(FORMAT, DATE_FORMAT))
    for name in ("quire", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)
