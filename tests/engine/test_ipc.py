"""The wire between API and engine process: what is said arrives, what is not in the schema harms nobody."""

import math
import os
import random
import socket
import threading

import msgspec
import pytest
from fake_engine import CONFIG, FakeEngine

from quire.core.batch import LogprobColumns, TokenLogprobs
from quire.core.outputs import EngineOutput
from quire.core.params import MAX_SEED, SamplingParams
from quire.core.request import Request
from quire.engine import ipc
from quire.engine.process import EngineProcess
from quire.errors import ContextLengthExceeded, ServerError

PARAMS = SamplingParams(
    n=2, seed=MAX_SEED, stop=["a", "\n"], stop_token_ids=[1], logit_bias={5: -100.0}, allowed_token_ids=[5, 6], logprobs=3,
    max_tokens=7, bad_words=["x"], min_tokens=1,
)  # fmt: skip
REQUEST = Request("id", [1, 2, 3], PARAMS, (0,), ((4, 5),), -3, "salt", ((1, 2), ()))
ENTRIES = [TokenLogprobs([3, 4], [-0.5, -math.inf], 1)]
OUTPUT = EngineOutput("id", 1, [3], LogprobColumns.of(ENTRIES), ENTRIES, "stop", "x", 2, "no")
MESSAGES = [
    (ipc.Hello("t", 1), ipc.from_engine),
    (ipc.Ready(CONFIG, 5, 0.5), ipc.from_engine),
    (ipc.Started(["a"]), ipc.from_engine),
    (ipc.Outputs([OUTPUT], ipc.Stats(1, 2, 3, 0.5, 4, 5, 6, 7)), ipc.from_engine),
    (ipc.Refused("a", "QueueFull", "m", None), ipc.from_engine),
    (ipc.Heartbeat(ipc.Stats(), True), ipc.from_engine),
    (ipc.Start({"model": "m", "max_model_len": "16k"}, CONFIG), ipc.to_engine),
    (ipc.Submit(REQUEST), ipc.to_engine),
    (ipc.Abort([("a", None), ("b", 1)]), ipc.to_engine),
    (ipc.Shutdown(), ipc.to_engine),
]


@pytest.mark.parametrize(("message", "decoder"), MESSAGES, ids=lambda v: type(v).__name__)
def test_a_message_arrives_as_it_was(message, decoder):
    frame = ipc.encode(message)
    assert len(frame) == 4 + int.from_bytes(frame[:4], "big")
    assert ipc.decode(frame[4:], decoder) == message


def test_random_and_mutated_frames_are_bad_frames_and_nothing_else():
    rng = random.Random(0)
    bodies = [ipc.encode(message)[4:] for message, _ in MESSAGES]
    num_bad = 0
    for _ in range(10_000):
        body = mutated(rng.choice(bodies), rng)
        for decoder in (ipc.from_engine, ipc.to_engine):
            try:
                ipc.decode(body, decoder)
            except ipc.BadFrame:
                num_bad += 1
    assert num_bad > 10_000


@pytest.mark.parametrize(
    "body",
    [
        msgspec.msgpack.encode({"type": "submit"}),
        msgspec.msgpack.encode({"type": "unheard-of"}),
        msgspec.msgpack.encode({"type": "shutdown", "extra": 1}),
        msgspec.msgpack.encode({"type": "abort", "sequences": "abc"}),
        msgspec.msgpack.encode([]),
        b"\x91" * 100_000,
        b"",
    ],
)
def test_what_is_not_in_the_schema_is_refused(body):
    with pytest.raises(ipc.BadFrame):
        ipc.decode(body, ipc.to_engine)


@pytest.mark.parametrize("ids, logprobs, ranks", [(3, 8, 4), (8, 4, 4), (0, 0, 4), (8, 8, 0), (12, 12, 8), (6, 6, 6)])
def test_columns_that_do_not_belong_together_are_refused(ids, logprobs, ranks):
    columns = {"token_ids": b"x" * ids, "logprobs": b"x" * logprobs, "ranks": b"x" * ranks}
    output = {"request_id": "a", "index": 0, "token_ids": [5], "logprobs": columns}
    body = msgspec.msgpack.encode({"type": "outputs", "outputs": [output], "stats": {}})
    with pytest.raises(ipc.BadFrame, match="belong together"):
        ipc.decode(body, ipc.from_engine)


def test_params_out_of_bounds_do_not_pass():
    body = ipc.encode(ipc.Submit(REQUEST))[4:].replace(
        msgspec.msgpack.encode("top_p") + b"\xcb\x3f", msgspec.msgpack.encode("top_p") + b"\xcb\x7f"
    )
    with pytest.raises(ipc.BadFrame, match="top_p"):
        ipc.decode(body, ipc.to_engine)


def test_frames_have_a_largest_size(monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((ipc.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(ipc.BadFrame, match="limit"):
            ipc.receive(ours)
    monkeypatch.setattr(ipc, "MAX_FRAME_BYTES", 10)
    with pytest.raises(ipc.FrameTooLarge):
        ipc.encode(ipc.Started(["a" * 100]))


def test_a_peer_that_dies_in_the_middle_of_a_frame_is_just_gone():
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(ipc.encode(ipc.Shutdown())[:-1])
        assert ipc.receive(ours) is None


def test_errors_cross_by_name_from_a_closed_set():
    error = ipc.error_named("ContextLengthExceeded", "too long", "prompt")
    assert isinstance(error, ContextLengthExceeded) and error.param == "prompt" and str(error) == "too long"
    for name in ("SystemExit", "Exception", "__builtins__", ""):
        assert type(ipc.error_named(name, "m")) is ServerError


class Peer:
    """A hand-made API process for one engine process that runs in a thread."""

    def __init__(self, folder) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "s"))
        self.listener.listen()
        self.engine = FakeEngine(step_s=0)
        process = EngineProcess(str(folder / "s"), "token", lambda args, config: self.engine)
        self.thread = threading.Thread(target=process.run, daemon=True)
        self.thread.start()
        self.accept()

    def end(self) -> None:
        """The process is told to leave; a thread that went on would disturb other tests."""
        self.sock.close()
        if self.thread.is_alive():
            self.accept()
            self.send(ipc.Shutdown())
        self.thread.join(60)
        self.sock.close()
        self.listener.close()

    def accept(self) -> None:
        self.sock, _ = self.listener.accept()
        self.sock.settimeout(60)
        assert self.next() == ipc.Hello("token", os.getpid())

    def next(self):
        while True:
            body = ipc.receive(self.sock)
            if body is None:
                return None
            message = ipc.decode(body, ipc.from_engine)
            if not isinstance(message, ipc.Heartbeat):
                return message

    def start(self) -> None:
        self.send(ipc.Start({}))
        assert isinstance(self.next(), ipc.Ready)

    def send(self, message) -> None:
        self.sock.sendall(ipc.encode(message))


@pytest.fixture
def peer(tmp_path):
    made = Peer(tmp_path)
    yield made
    made.end()


def test_an_engine_process_outlives_bad_frames_and_the_peers_that_sent_them(peer):
    peer.start()
    rng = random.Random(1)
    bodies = [ipc.encode(m)[4:] for m, d in MESSAGES if d is ipc.to_engine and not isinstance(m, ipc.Shutdown)]
    for _ in range(1500):
        peer.sock.sendall(frame(mutated(rng.choice(bodies), rng)))
        peer.sock.shutdown(socket.SHUT_WR)
        while peer.next() is not None:
            pass
        peer.sock.close()
        peer.accept()
    peer.start()
    assert peer.thread.is_alive() and not peer.engine.live
    peer.send(ipc.Shutdown())
    peer.thread.join(60)
    assert not peer.thread.is_alive()


def test_requests_of_a_peer_that_left_are_aborted(peer):
    peer.start()
    peer.send(ipc.Submit(Request("a", [1], SamplingParams(max_tokens=10**6, seed=0))))
    assert peer.next() == ipc.Started(["a"])
    peer.sock.close()
    peer.accept()
    peer.start()
    assert peer.engine.aborted == ["a"]


def test_a_request_that_the_engine_cannot_take_harms_itself_alone(peer):
    peer.start()
    peer.send(ipc.Submit(Request("long", [1] * 5000, SamplingParams(seed=0))))
    assert peer.next() == ipc.Refused("long", "ContextLengthExceeded", "too long", "prompt")
    peer.engine.counts = None  # a fault of the engine's own, halfway through
    peer.send(ipc.Submit(Request("a", [1], SamplingParams(max_tokens=1, seed=0))))
    assert peer.next().kind == "ServerError"
    assert peer.thread.is_alive()


def test_heartbeats_come_while_a_step_takes_long(peer):
    peer.start()
    may_end, step = threading.Event(), peer.engine.step
    peer.engine.step = lambda: may_end.wait(60) and step()
    peer.send(ipc.Submit(Request("a", [1], SamplingParams(max_tokens=1, seed=0))))
    beats = []
    while sum(beat.working for beat in beats) < 2:
        beats.append(ipc.decode(ipc.receive(peer.sock), ipc.from_engine))
    assert all(isinstance(beat, ipc.Heartbeat) for beat in beats)
    may_end.set()


def test_an_output_too_large_for_a_frame_fails_alone(peer, monkeypatch):
    peer.start()
    monkeypatch.setattr(ipc, "MAX_FRAME_BYTES", 1000)
    monkeypatch.setattr(
        peer.engine,
        "step",
        lambda: (peer.engine.live.clear(), [EngineOutput("a", 0, [1] * 5000), EngineOutput("b", 0, [7])])[1],
    )
    peer.send(ipc.Submit(Request("a", [1], SamplingParams(seed=0))))
    first, second = peer.next().outputs[0], peer.next().outputs[0]
    assert (first.request_id, first.finish_reason, first.token_ids) == ("a", "error", [])
    assert second == EngineOutput("b", 0, [7])


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def mutated(body: bytes, rng: random.Random) -> bytes:
    """The body with some bytes changed, cut, doubled, or all random."""
    kind = rng.randrange(4)
    data = bytearray(body)
    if kind == 0:
        return rng.randbytes(rng.randint(1, 200))
    if kind == 1:
        return bytes(data[: rng.randrange(len(data))]) or b"\xc1"
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data) * (2 if kind == 2 else 1)
