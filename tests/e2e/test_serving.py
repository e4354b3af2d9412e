"""A real server, many clients: nobody's request is lost, nobody gets another's tokens, whoever leaves and whatever dies.

Each answer is compared token by token with what LLM.generate gives for the same request alone in the same model. QUIRE_SOAK=1 is the
long version: 20 kills instead of 3.
"""

import asyncio
import dataclasses
import json
import os
import random
import signal
import time
from collections.abc import Callable

import httpx
import pytest
from servers import Server
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire import LLM, SamplingParams

SOAK = bool(os.environ.get("QUIRE_SOAK"))
NUM_REQUESTS = 1000
NUM_CLIENTS = 64
DISCONNECTING = 0.2
NUM_KILLS = 20 if SOAK else 3
STREAMS = 32
TEXT = "/v1/completions"


@dataclasses.dataclass
class Ask:
    """One request, its tokens when nothing disturbs it, and after how many of them its client leaves (None: it stays)."""

    prompt: list[int]
    params: dict
    tokens: list[int] = dataclasses.field(default_factory=list)
    leaves_after: int | None = None
    got: list[int] | None = None

    @property
    def body(self) -> dict:
        return {"prompt": self.prompt, **self.params, "return_token_ids": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("model") / "tiny")


def asks(count: int, rng: random.Random, longest: int) -> list[Ask]:
    """Requests of mixed lengths, some greedy, some drawn, some with a common beginning."""
    common = [rng.randrange(VOCAB_SIZE - 4) for _ in range(40)]
    made = []
    for number in range(count):
        prompt = [rng.randrange(VOCAB_SIZE - 4) for _ in range(rng.randint(1, 60))]
        params = {
            "max_tokens": rng.randint(1, longest),
            "temperature": rng.choice([0.0, 0.8, 1.0]),
            "seed": number,
            "ignore_eos": True,
        }
        made.append(Ask(common + prompt if number % 3 == 0 else prompt, params))
    return made


def fill_in_tokens(made: list[Ask], model) -> None:
    """What each is to get, from the engine in this process."""
    with LLM(str(model), max_num_seqs=32, seed=0) as llm:
        params = [SamplingParams(**ask.params) for ask in made]
        outputs = llm.generate([{"prompt_token_ids": ask.prompt} for ask in made], params, use_tqdm=False)
    for ask, output in zip(made, outputs, strict=True):
        ask.tokens = output.outputs[0].token_ids


async def stream(client: httpx.AsyncClient, ask: Ask) -> None:
    """Streams one request; leaves in the middle if it is one of those."""
    got: list[int] = []
    async with client.stream("POST", TEXT, json={**ask.body, "stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                got += event["choices"][0]["token_ids"]
                if ask.leaves_after is not None and len(got) >= ask.leaves_after:
                    break
    ask.got = got


async def whole(client: httpx.AsyncClient, ask: Ask) -> None:
    """Asks without streaming; leaves after a moment if it is one of those."""
    if ask.leaves_after is None:
        ask.got = (await client.post(TEXT, json=ask.body)).json()["choices"][0]["token_ids"]
        return
    try:
        ask.got = (await client.post(TEXT, json=ask.body, timeout=0.002 * ask.leaves_after)).json()["choices"][0][
            "token_ids"
        ]
    except httpx.TimeoutException:
        ask.got = []


async def run_all(url: str, made: list[Ask], num_clients: int, beside: Callable | None = None) -> None:
    """Runs the requests, so many at once, each as a stream or not; `beside` runs along with them."""
    seats = asyncio.Semaphore(num_clients)
    limits = httpx.Limits(max_connections=num_clients + 8)

    async def one(client: httpx.AsyncClient, number: int, ask: Ask) -> None:
        async with seats:
            await (stream if number % 3 else whole)(client, ask)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        tasks = [one(client, number, ask) for number, ask in enumerate(made)]
        await asyncio.gather(*tasks, *([beside()] if beside else []))


def check(made: list[Ask]) -> None:
    for ask in made:
        assert ask.got is not None, "lost"
        if ask.leaves_after is None:
            assert ask.got == ask.tokens
        else:
            assert ask.got == ask.tokens[: len(ask.got)]


def wait_until_idle(server: Server, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while any(server.metric(n) for n in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")):
        assert time.monotonic() < deadline, "blocks or requests stay behind"
        time.sleep(0.1)


def test_a_thousand_requests_of_which_a_fifth_leave(tmp_path, model):
    rng = random.Random(1)
    made = asks(NUM_REQUESTS, rng, longest=48)
    fill_in_tokens(made, model)
    for ask in made:
        if rng.random() < DISCONNECTING:
            ask.leaves_after = rng.randint(1, 40)
    with Server(tmp_path / "log", model, max_num_seqs=32, num_gpu_blocks_override=400) as server:
        began = time.monotonic()
        asyncio.run(run_all(server.url, made, NUM_CLIENTS))
        print(f"{NUM_REQUESTS} requests in {time.monotonic() - began:.1f} s")
        wait_until_idle(server)
        assert server.health() == 200
        assert server.metric("num_preemptions_total") >= 0
        assert "Traceback" not in server.text()
    check(made)
    stayed = [ask for ask in made if ask.leaves_after is None]
    assert 700 < len(stayed) < 900


def test_kills_at_any_moment_under_32_streams(tmp_path, model):
    """Each round: 32 requests, one kill at a random moment; all get exactly their tokens, and a new engine serves."""
    rng = random.Random(2)
    rounds = [asks(STREAMS, rng, longest=300) for _ in range(NUM_KILLS)]
    fill_in_tokens([ask for made in rounds for ask in made], model)
    with Server(tmp_path / "log", model, max_num_seqs=32, max_engine_deaths=10_000) as server:
        for number, made in enumerate(rounds, 1):

            async def kill() -> None:
                await asyncio.sleep(rng.uniform(0.0, 1.0))
                os.kill(server.engine_pid(), signal.SIGKILL)

            asyncio.run(run_all(server.url, made, STREAMS, kill))
            check(made)
            server.wait_for(lambda: server.metric("engine_deaths_total") == number)  # noqa: B023
            server.wait_ready()
        wait_until_idle(server)
        assert "Traceback" not in server.text()


def test_an_engine_is_left_with_no_request_when_the_api_process_dies(tmp_path, model):
    with Server(tmp_path / "log", model, max_num_seqs=8) as server:
        engine, api = server.engine_pid(), server.pid("quire.server.process")
        with httpx.stream(
            "POST", server.url + TEXT, json={"prompt": [5], "max_tokens": 400, "stream": True, "ignore_eos": True}
        ) as response:
            lines = response.iter_lines()  # kept: when it is dropped, httpx closes the connection
            next(lines)
            os.kill(api, signal.SIGKILL)
        server.wait_for(lambda: server.pid("quire.server.process") != api)
        server.wait_ready()
        assert server.engine_pid() == engine
        wait_until_idle(server)
        answer = httpx.post(server.url + TEXT, json={"prompt": [5], "max_tokens": 4}, timeout=60).json()
        assert answer["usage"]["completion_tokens"] <= 4
