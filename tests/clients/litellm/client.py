"""LiteLLM against a server, through its providers openai and hosted_vllm: python client.py URL."""

import json

import litellm
from pydantic import BaseModel
from report import MESSAGES, MODEL, URL, WEATHER, is_weather, run

litellm.telemetry = False
PROVIDERS = ("openai", "hosted_vllm")
ADDRESS = {"api_base": URL + "/v1", "api_key": "EMPTY", "num_retries": 0}


class Capital(BaseModel):
    """A country's capital."""

    city: str
    country: str


def ask(provider: str, **fields):
    return litellm.completion(model=f"{provider}/{MODEL}", messages=MESSAGES, temperature=0, **ADDRESS, **fields)


def chat() -> None:
    for provider in PROVIDERS:
        answer = ask(provider)
        assert "Paris" in answer.choices[0].message.content and answer.usage.completion_tokens > 0


def stream() -> None:
    for provider in PROVIDERS:
        parts = list(ask(provider, stream=True, stream_options={"include_usage": True}))
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == ask(provider).choices[0].message.content
        assert litellm.stream_chunk_builder(parts, messages=MESSAGES).choices[0].message.content == text


def tools() -> None:
    for provider in PROVIDERS:
        answer = ask(provider, tools=[WEATHER], tool_choice="required", max_tokens=128).choices[0]
        arguments = json.loads(answer.message.tool_calls[0].function.arguments)
        # hosted_vllm takes additionalProperties out of the schema before it is sent, so there may be more.
        assert is_weather({name: arguments[name] for name in ("city", "unit")})
        assert provider == "hosted_vllm" or is_weather(arguments)


def parse() -> None:
    for provider in PROVIDERS:
        answer = ask(provider, response_format=Capital, max_tokens=96)
        Capital.model_validate_json(answer.choices[0].message.content)


def logprobs() -> None:
    for provider in PROVIDERS:
        answer = ask(provider, logprobs=True, top_logprobs=2)
        assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens


def errors() -> None:
    refused = "does not support"
    for call in (
        lambda: litellm.embedding(model=f"openai/{MODEL}", input=["hello"], **ADDRESS),
        lambda: litellm.embedding(model=f"hosted_vllm/{MODEL}", input=["hello"], **ADDRESS),
        lambda: litellm.rerank(model=f"hosted_vllm/{MODEL}", query="a", documents=["b"], api_base=URL, api_key="EMPTY"),
    ):
        try:
            call()
        except Exception as error:  # LiteLLM has a class of its own for each provider
            assert refused in str(error), repr(error)
        else:
            raise SystemExit("not refused")


run(chat, stream, tools, parse, logprobs, errors)
