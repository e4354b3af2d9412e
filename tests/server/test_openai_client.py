"""The official client against a real server with a real (tiny, random) model."""

import asyncio
import math

import httpx
import openai
import pytest
from servers import Server
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def server(tmp_path_factory, model):
    log = tmp_path_factory.mktemp("sdk") / "log"
    with Server(log, model, served_model_name=["Qwen2.5:0.5B"], api_key=["EMPTY"], max_num_seqs=16) as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0) as made:
        yield made


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "Qwen2.5:0.5B"
    assert client.models.retrieve("Qwen2.5:0.5B").id == model.id
    assert model.max_model_len == 512


def test_chat_with_everything_that_tutorials_send(client):
    answer = client.chat.completions.create(
        model="qwen2.5", messages=MESSAGES, temperature=0.7, top_p=0.8, max_tokens=12, seed=42, n=2, stop=["###", "\n\n"],
        presence_penalty=0.1, frequency_penalty=0.2, user="me", logit_bias={"5": -100},
        extra_body={"repetition_penalty": 1.05, "top_k": 40, "min_p": 0.02, "stop_token_ids": [3], "ignore_eos": True,
                    "skip_special_tokens": False, "min_tokens": 2, "chat_template_kwargs": {"enable_thinking": False}},
    )  # fmt: skip
    assert len(answer.choices) == 2 and answer.model == "Qwen2.5:0.5B"
    for choice in answer.choices:
        assert choice.message.role == "assistant" and choice.message.content is not None
        assert choice.finish_reason in ("stop", "length") and choice.message.tool_calls is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_streams_what_it_answers(client):
    fields = {"model": "m", "messages": MESSAGES, "max_completion_tokens": 30, "seed": 7, "temperature": 1.0}
    whole = client.chat.completions.create(**fields).choices[0]
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.message.content
    assert chunks[-1].usage.completion_tokens == 30 and chunks[-1].choices == []
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == whole.finish_reason
    with client.chat.completions.stream(**fields) as stream:
        assert "".join(e.delta for e in stream if e.type == "content.delta") == whole.message.content


def test_async_client_with_many_streams(server):
    async def one(client, seed: int) -> bool:
        fields = {"model": "m", "messages": MESSAGES, "max_tokens": 20, "seed": seed, "temperature": 1.0}
        text = ""
        async for chunk in await client.chat.completions.create(**fields, stream=True):
            text += chunk.choices[0].delta.content or ""
        return text == (await client.chat.completions.create(**fields)).choices[0].message.content

    async def main() -> list[bool]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(24)))

    assert all(asyncio.run(main()))


def test_seeds_repeat_and_differ(client):
    def ask(seed):
        answer = client.completions.create(model="m", prompt="hello", max_tokens=20, seed=seed, temperature=1.0)
        return answer.choices[0].text

    assert ask(1) == ask(1) != ask(2)
    assert ask(None) != ask(None)


def test_completions(client):
    answer = client.completions.create(model="m", prompt=["a", "b"], max_tokens=5, n=2, temperature=1.0, echo=True)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [c.text[0] for c in answer.choices] == ["a", "a", "b", "b"]
    text = "".join(
        c.choices[0].text
        for c in client.completions.create(model="m", prompt="a", max_tokens=9, temperature=0, stream=True)
    )
    assert text == client.completions.create(model="m", prompt="a", max_tokens=9, temperature=0).choices[0].text


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for position in content:
        assert len(position.top_logprobs) == 3
        values = [top.logprob for top in position.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert (position.token, position.logprob, position.bytes) == (
            position.top_logprobs[0].token, position.top_logprobs[0].logprob, position.top_logprobs[0].bytes,
        )  # fmt: skip
        assert bytes(position.bytes).decode("utf-8", "replace") == position.token
    chunks = client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3, stream=True
    )
    streamed = [p for c in chunks if c.choices[0].logprobs for p in c.choices[0].logprobs.content]
    assert streamed == content


def test_completion_logprobs_as_lm_eval_asks_for_them(client):
    """The log-likelihood of a continuation: prompt as token ids, echoed, with one token made and not used."""
    prompts = [[70, 80, 90, 100, 110], [70, 80, 91]]
    answer = client.completions.create(
        model="m", prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    for choice, ids in zip(answer.choices, prompts, strict=True):
        got = choice.logprobs
        assert (
            len(got.tokens) == len(got.token_logprobs) == len(got.top_logprobs) == len(got.text_offset) == len(ids) + 1
        )
        assert got.token_logprobs[0] is None and got.top_logprobs[0] is None
        assert all(-50 < value <= 0 for value in got.token_logprobs[1:])
        for token, value, top in list(zip(got.tokens, got.token_logprobs, got.top_logprobs, strict=True))[1:]:
            assert math.isclose(max(top.values()), max(max(top.values()), value)) and len(top) in (1, 2)
            assert token in top
        assert got.text_offset == sorted(got.text_offset) and got.text_offset[0] == 0
    first, second = (choice.logprobs for choice in answer.choices)
    assert first.token_logprobs[1] == second.token_logprobs[1]  # the same two tokens begin both
    chunks = list(
        client.completions.create(
            model="m", prompt=prompts[0], echo=True, logprobs=1, max_tokens=3, temperature=0, stream=True
        )
    )
    whole = client.completions.create(model="m", prompt=prompts[0], echo=True, logprobs=1, max_tokens=3, temperature=0)
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        streamed = [x for c in chunks if c.choices[0].logprobs for x in getattr(c.choices[0].logprobs, name)]
        assert streamed == getattr(whole.choices[0].logprobs, name), name


def test_prompt_logprobs_and_token_ids(client):
    answer = client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=3, temperature=0,
        extra_body={"prompt_logprobs": 1, "return_token_ids": True, "return_tokens_as_token_ids": True}, logprobs=True,
    )  # fmt: skip
    ids = answer.prompt_token_ids
    assert len(ids) == answer.usage.prompt_tokens == len(answer.prompt_logprobs)
    assert answer.prompt_logprobs[0] is None
    assert all(str(i) in entry for i, entry in zip(ids[1:], answer.prompt_logprobs[1:], strict=True))
    tokens = [position.token for position in answer.choices[0].logprobs.content]
    assert tokens == [f"token_id:{i}" for i in answer.choices[0].token_ids]


def test_errors_have_their_types(client, server):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="m", messages=MESSAGES, temperature=3)
    assert (error.value.param, error.value.type) == ("temperature", "invalid_request_error")
    assert "temperature" in str(error.value) and error.value.request_id
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="m", prompt=[1] * 600)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nothing")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError, match="The model does not support Embeddings API"):
        client.embeddings.create(model="m", input="a")


def test_headers(client):
    raw = client.chat.completions.with_raw_response.create(
        model="m",
        messages=MESSAGES,
        max_tokens=1,
        extra_body={"unheard_of": 1},
        extra_headers={"X-Request-Id": "label"},
    )
    assert raw.headers["x-quire-ignored"] == "unheard_of" and raw.headers["x-request-id"] == "label"


def test_continuing_a_message(client):
    messages = [*MESSAGES, {"role": "assistant", "content": "The answer"}]
    body = {"continue_final_message": True, "return_token_ids": True}
    answer = client.chat.completions.create(model="m", messages=messages, max_tokens=2, extra_body=body)
    fresh = client.chat.completions.create(
        model="m", messages=messages, max_tokens=2, extra_body={"return_token_ids": True}
    )
    assert len(answer.prompt_token_ids) < len(fresh.prompt_token_ids)


def test_bad_words_allowed_tokens_and_min_tokens_hold(client):
    ids = client.completions.create(
        model="m", prompt="a", max_tokens=30, temperature=1.0,
        extra_body={"allowed_token_ids": [70, 71, 72], "return_token_ids": True, "ignore_eos": True},
    ).choices[0].token_ids  # fmt: skip
    assert set(ids) <= {70, 71, 72} and len(ids) == 30


def test_metrics_count_what_was_asked(client, server):
    before = server.metric("generation_tokens_total")
    client.completions.create(model="m", prompt="a", max_tokens=9, extra_body={"ignore_eos": True})
    assert server.metric("generation_tokens_total") == before + 9
    assert server.metric("iteration_tokens_total_sum") > 0
    assert httpx.get(server.url + "/health", timeout=60).status_code == 200


def test_torch_is_in_the_engine_process_alone(server):
    def maps(pid):
        with open(f"/proc/{pid}/maps") as file:
            return file.read()

    assert "libtorch" in maps(server.engine_pid())
    assert "libtorch" not in maps(server.pid("quire.server.process"))
    assert "libtorch" not in maps(server.process.pid)


def test_a_request_with_no_token_left_to_choose_is_the_clients_fault(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(
            model="m", prompt="a", max_tokens=4, extra_body={"allowed_token_ids": [VOCAB_SIZE - 4], "min_tokens": 2}
        )
    assert error.value.param == "allowed_token_ids"


def test_nothing_went_wrong_unseen(server):
    assert "Traceback" not in server.text()
