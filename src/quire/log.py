"""Logging of a process: one line a message, on stderr. The standard library's loggers, so that other packages' lines join in."""

import logging
import sys

FORMAT = "%(levelname)-8s %(asctime)s [%(name)s] %(message)s"
DATE_FORMAT = "%m-%d %H:%M:%S"


class OneLine(logging.Formatter):
    """Escapes control characters in messages: what a client sends cannot forge a line. Tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def configure(level: int = logging.INFO) -> None:
    """Sends quire's and uvicorn's lines to stderr. For programs of ours; a library's user configures logging alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(FORMAT, DATE_FORMAT))
    for name in ("quire", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)
