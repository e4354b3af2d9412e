"""What the API process and the engine process say to each other: a closed schema, framed over a UNIX stream socket.

    frame = length (4 bytes, big-endian) | msgpack of one tagged message
                      API process                                engine process
      hello           <--------------------------------------------  who I am (token of this server, my pid)
      start           -------------------------------------------->  what to load
      ready           <--------------------------------------------  it serves, with these facts
      submit, abort   -------------------------------------------->
      started         <--------------------------------------------  these requests are about to be computed
      outputs, refused, heartbeat  <-------------------------------
      shutdown        -------------------------------------------->  leave, nothing is wanted any more

Nothing else can be said: an unknown tag, field or type, or a frame over MAX_FRAME_BYTES, is a BadFrame, which closes that
connection and nothing more. No object graphs, no code.
"""

import asyncio
import socket
import struct
from typing import Any, TypeVar

import msgspec

from quire import errors
from quire.config import EngineConfig
from quire.core.outputs import EngineOutput
from quire.core.request import Request

MAX_FRAME_BYTES = 64 * 2**20
LENGTH = struct.Struct(">I")


class BadFrame(Exception):
    """The peer sent something outside the schema; its connection is to be closed."""


class FrameTooLarge(Exception):
    """A message of ours does not fit into a frame."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Root of all messages."""


class Hello(Message, tag="hello", frozen=True):
    """First words of an engine. `token` proves that it belongs to this server."""

    token: str
    pid: int


class Start(Message, tag="start", frozen=True):
    """What to load: the options as given, or, after an engine died, the config that its predecessor resolved."""

    args: dict[str, Any]
    config: EngineConfig | None = None


class Ready(Message, tag="ready", frozen=True):
    """The engine serves.

    num_blocks     KV blocks that sequences can have
    load_s         seconds from `start` until now
    """

    config: EngineConfig
    num_blocks: int
    load_s: float


class Submit(Message, tag="submit", frozen=True):
    """A new request, or an old one for a new engine."""

    request: Request


class Abort(Message, tag="abort", frozen=True):
    """Sequences that nobody waits for any more: (request id, index), index None = all of the request; unknown ones are ignored."""

    sequences: list[tuple[str, int | None]]


class Shutdown(Message, tag="shutdown", frozen=True):
    """Leave now."""


class Started(Message, tag="started", frozen=True):
    """Requests that left the queue; sent before the step that computes them first, so that a death can be laid at their door."""

    request_ids: list[str]


class Refused(Message, tag="refused", frozen=True):
    """The engine did not take a request; `kind` names the error's class in quire.errors."""

    request_id: str
    kind: str
    message: str
    param: str | None = None


class Stats(Message, frozen=True):
    """State of the engine. Counters count since it started; usage is a share, 0..1; num_step_tokens is of the latest step."""

    num_steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    num_step_tokens: int = 0


class Outputs(Message, tag="outputs", frozen=True):
    """What steps gave. step_tokens: how many tokens each of them computed."""

    outputs: list[EngineOutput]
    stats: Stats
    step_tokens: list[int] = []


class Heartbeat(Message, tag="heartbeat", frozen=True):
    """Sent every HEARTBEAT_S by a thread of its own, however long a step takes; `working`: the engine has work to do."""

    stats: Stats
    working: bool


HEARTBEAT_S = 0.5
FromEngine = Hello | Ready | Started | Outputs | Refused | Heartbeat
ToEngine = Start | Submit | Abort | Shutdown
from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_encoder = msgspec.msgpack.Encoder()
M = TypeVar("M")


def encode(message: Message) -> bytes:
    """The frame of a message. Raises FrameTooLarge."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"{type(message).__name__} of {len(body)} bytes; the limit is {MAX_FRAME_BYTES}")
    return LENGTH.pack(len(body)) + body


def decode(body: bytes, decoder: "msgspec.msgpack.Decoder[M]") -> M:
    """The message in a frame's body. Raises BadFrame, whatever the bytes are."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise BadFrame(f"{type(error).__name__}: {error}"[:200]) from None


async def read(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame's body; None when the peer is gone. Raises BadFrame."""
    try:
        return await reader.readexactly(_checked_length(await reader.readexactly(LENGTH.size)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive(sock: socket.socket) -> bytes | None:
    """The same for a blocking socket."""
    header = _receive_exactly(sock, LENGTH.size)
    return None if header is None else _receive_exactly(sock, _checked_length(header))


def error_named(kind: str, message: str, param: str | None = None) -> errors.QuireError:
    """The error of quire.errors that `kind` names; a plain ServerError when it names none."""
    cls = getattr(errors, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, errors.QuireError)):
        cls = errors.ServerError
    error: errors.QuireError = cls(message)
    error.param = param
    return error


def _checked_length(header: bytes) -> int:
    length: int = LENGTH.unpack(header)[0]
    if not 0 < length <= MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
    return length


def _receive_exactly(sock: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = sock.recv(min(count - len(parts), 2**18))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
