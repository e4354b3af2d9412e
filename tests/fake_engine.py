"""An engine without a model: each token is a function of the prompt and its position, so that any replay can be checked.

Run as a program it is an engine process for the supervisor. Its prompts may hold orders (token ids that a real model has too):
    CRASH_AT  followed by k: the process dies when the sequence would get its k-th token
    SLEEP     the first step with this request takes for ever
"""

import hashlib
import os
import sys
import time
from dataclasses import dataclass, replace

from quire.config import EngineArgs, EngineConfig
from quire.core.batch import LogprobColumns, TokenLogprobs
from quire.core.outputs import EngineOutput
from quire.core.request import Request
from quire.engine.process import child_main
from quire.errors import ContextLengthExceeded

VOCAB = 256
CRASH_AT = 250
SLEEP = 251
MAX_RUNNING = 64
CONFIG = EngineConfig(
    model_dir="fake", model_name="fake", device="cpu", dtype="float32", max_model_len=4096, block_size=16,
    max_num_seqs=MAX_RUNNING, max_num_batched_tokens=512,
)  # fmt: skip


def token_at(prompt: list[int], seed: int, index: int, position: int) -> int:
    """What this engine says there."""
    key = f"{prompt}{seed}{index}{position}".encode()
    return hashlib.blake2b(key, digest_size=1).digest()[0] % VOCAB


def answer(request: Request) -> list[list[int]]:
    """All tokens of an undisturbed run."""
    p = request.params
    return [
        [token_at(request.prompt_token_ids, p.seed or 0, i, k) for k in range(p.max_tokens or 0)] for i in range(p.n)
    ]


def fake_logprobs(token: int, top: int) -> TokenLogprobs:
    ids = [token, *([token, *(i for i in range(top + 1) if i != token)][:top])]
    return TokenLogprobs(ids, [-0.5, *(-0.5 - i for i in range(top))], 1)


@dataclass
class FakeStats:
    running: int
    waiting: int
    kv_cache_usage: float = 0.0
    num_step_tokens: int = 0


class FakeEngine:
    def __init__(self, step_s: float = 0.002) -> None:
        self.config = CONFIG
        self.num_blocks = 64
        self.step_s = step_s
        self.on_admitted = lambda request_ids: None
        self.admitted: set[str] = set()
        self.live: dict[str, Request] = {}
        self.counts: dict[str, list[int]] = {}
        self.aborted: list[str] = []

    def add(self, request: Request) -> None:
        if len(request.prompt_token_ids) > CONFIG.max_model_len:
            raise ContextLengthExceeded("too long", "prompt")
        n = request.params.n
        self.live[request.id] = request
        self.counts[request.id] = [len(t) for t in request.emitted_token_ids] or [0] * n

    def abort(self, request_id: str, index: int | None = None) -> None:
        if index is not None and request_id in self.live:
            self.counts[request_id][index] = self.live[request_id].params.max_tokens or 0
            self.drop_ended(request_id)
        elif index is None and self.live.pop(request_id, None):
            self.aborted.append(request_id)

    def drop_ended(self, request_id: str) -> None:
        request = self.live[request_id]
        if all(c >= (request.params.max_tokens or 0) for c in self.counts[request_id]):
            del self.live[request_id]

    def has_work(self) -> bool:
        return bool(self.live)

    def running(self) -> list[str]:
        return list(self.live)[:MAX_RUNNING]

    def stats(self) -> FakeStats:
        return FakeStats(len(self.running()), max(0, len(self.live) - MAX_RUNNING))

    def step(self) -> list[EngineOutput]:
        time.sleep(self.step_s)
        running = self.running()
        new = [request_id for request_id in running if request_id not in self.admitted]
        if new:
            self.admitted.update(new)
            self.on_admitted(new)
        return [o for request_id in running for o in self.advance(self.live[request_id])]

    def advance(self, request: Request) -> list[EngineOutput]:
        prompt, p, counts = request.prompt_token_ids, request.params, self.counts[request.id]
        if SLEEP in prompt:
            time.sleep(3600)
        outputs = []
        for i in range(p.n):
            k = counts[i]
            if k >= (p.max_tokens or 0):
                continue
            if CRASH_AT in prompt and k >= prompt[prompt.index(CRASH_AT) + 1]:
                os.kill(os.getpid(), 9)
            counts[i] += 1
            last = counts[i] == p.max_tokens
            outputs.append(self.output(request, i, k, last))
        self.drop_ended(request.id)
        return outputs

    def output(self, request: Request, index: int, position: int, last: bool) -> EngineOutput:
        """Log-probabilities say that the token itself is the likeliest, and the ids from 0 on come next."""
        prompt, p = request.prompt_token_ids, request.params
        token = token_at(prompt, p.seed or 0, index, position)
        logprobs = prompt_logprobs = None
        if p.logprobs is not None:
            logprobs = LogprobColumns.of([fake_logprobs(token, p.logprobs)])
        if p.prompt_logprobs is not None and index == position == 0:
            prompt_logprobs = [fake_logprobs(token, p.prompt_logprobs) for token in prompt[1:]]
        return EngineOutput(request.id, index, [token], logprobs, prompt_logprobs, "length" if last else None)

    def close(self) -> None:
        self.live.clear()


def prepare():
    def make(args: EngineArgs, config: EngineConfig | None) -> FakeEngine:
        engine = FakeEngine()
        engine.config = config or replace(CONFIG, model_dir=args.model)
        return engine

    return make


if __name__ == "__main__":
    sys.exit(child_main(prepare))
