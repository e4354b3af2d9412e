"""The official Python client, versions 2 and 3, against a server: python openai_python.py URL."""

import asyncio
import json
from typing import Literal

import openai
from pydantic import BaseModel
from report import MESSAGES, MODEL, QUESTION, URL, WEATHER, is_weather, run

client = openai.OpenAI(base_url=URL + "/v1", api_key="EMPTY", max_retries=0)
NAMED = {"type": "function", "function": {"name": "get_weather"}}


class Capital(BaseModel):
    """What the parse helpers ask for."""

    city: str
    continent: Literal["Europe", "Asia"]


def ask(**fields):
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, **fields)


def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).max_model_len > 0


def chat() -> None:
    answer = ask()
    assert "Paris" in answer.choices[0].message.content and answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 0
    assert answer._request_id


def stream() -> None:
    whole = ask().choices[0].message.content
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, temperature=0) as events:
        assert "".join(event.delta for event in events if event.type == "content.delta") == whole


def tools() -> None:
    for choice in ("required", NAMED):
        call = ask(tools=[WEATHER], tool_choice=choice).choices[0].message.tool_calls[0]
        assert call.id and call.function.name == "get_weather" and is_weather(json.loads(call.function.arguments))
    fields = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "tools": [WEATHER], "tool_choice": "required"}
    with client.chat.completions.stream(**fields) as events:
        for _ in events:
            pass
        final = events.get_final_completion().choices[0]
    assert (
        is_weather(json.loads(final.message.tool_calls[0].function.arguments)) and final.finish_reason == "tool_calls"
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}, result]
    after = client.chat.completions.create(model=MODEL, messages=turns, tools=[WEATHER], temperature=0, max_tokens=16)
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


def parse() -> None:
    fields = {"model": MODEL, "messages": MESSAGES, "response_format": Capital, "max_tokens": 64}
    found = client.chat.completions.parse(**fields).choices[0].message.parsed
    assert isinstance(found, Capital)
    with client.chat.completions.stream(**fields) as events:
        for _ in events:
            pass
        assert isinstance(events.get_final_completion().choices[0].message.parsed, Capital)
    assert isinstance(
        json.loads(ask(response_format={"type": "json_object"}, max_tokens=64).choices[0].message.content), dict
    )


def logprobs() -> None:
    answer = ask(logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens and all(
        len(position.top_logprobs) == 3 for position in content
    )
    plain = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, logprobs=2, echo=True
    )
    assert plain.choices[0].logprobs.token_logprobs[0] is None and plain.choices[0].text.startswith("The capital")


def responses() -> None:
    fields = {"model": MODEL, "input": QUESTION, "temperature": 0}
    whole = client.responses.create(**fields)
    assert "Paris" in whole.output_text and client.responses.retrieve(whole.id).output_text == whole.output_text
    with client.responses.stream(**fields) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    parsed = client.responses.parse(model=MODEL, input=QUESTION, text_format=Capital, max_output_tokens=64)
    assert isinstance(parsed.output_parsed, Capital)
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    called = client.responses.create(**fields, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    assert is_weather(json.loads(called.output[-1].arguments))
    after = client.responses.create(model=MODEL, input="And of Italy?", previous_response_id=whole.id, temperature=0)
    assert "Rome" in after.output_text


def errors() -> None:
    for kind, call in (
        (openai.BadRequestError, lambda: ask(max_tokens=-1)),
        (openai.BadRequestError, lambda: client.embeddings.create(model=MODEL, input="hello")),
        (openai.NotFoundError, lambda: client.files.list()),
    ):
        try:
            call()
            raise SystemExit(f"no {kind.__name__}")
        except kind as error:
            assert error.body["message"] and error.request_id


def concurrent() -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="EMPTY", max_retries=0) as several:
            asked = (several.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0) for _ in range(16))
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert len(set(asyncio.run(main()))) == 1


run(models, chat, stream, tools, parse, logprobs, responses, errors, concurrent)
