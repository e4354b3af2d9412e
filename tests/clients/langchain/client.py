"""LangChain's ChatOpenAI and OpenAIEmbeddings against a server: python client.py URL."""

from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import BadRequestError
from pydantic import BaseModel
from report import MODEL, QUESTION, URL, run

ADDRESS = {"model": MODEL, "base_url": URL + "/v1", "api_key": "EMPTY", "max_retries": 0}
llm = ChatOpenAI(**ADDRESS, temperature=0)


class Capital(BaseModel):
    """A country's capital."""

    city: str
    country: str


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"{city}: sunny"


def chat() -> None:
    answer = llm.invoke(QUESTION)
    assert "Paris" in answer.content and answer.usage_metadata["output_tokens"] > 0
    assert "Paris" in OpenAI(**ADDRESS, temperature=0, max_tokens=8).invoke("The capital of France is")
    assert len(llm.batch([QUESTION] * 4)) == 4


def stream() -> None:
    parts = list(llm.stream(QUESTION, stream_usage=True))
    assert "".join(part.content for part in parts) == llm.invoke(QUESTION).content
    assert any(part.usage_metadata for part in parts)


def tools() -> None:
    for choice in ("any", "get_weather"):
        answer = llm.bind_tools([get_weather], tool_choice=choice).invoke(QUESTION, max_tokens=64)
        (call,) = answer.tool_calls
        assert call["name"] == "get_weather" and isinstance(call["args"]["city"], str)
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    turns = [("user", QUESTION), answer, result]
    assert llm.bind_tools([get_weather]).invoke(turns, max_tokens=16).response_metadata["finish_reason"]


def parse() -> None:
    for method in ("json_schema", "function_calling"):
        found = llm.with_structured_output(Capital, method=method).invoke(QUESTION, max_tokens=96)
        assert isinstance(found, Capital), method
    assert isinstance(llm.with_structured_output(None, method="json_mode").invoke(QUESTION, max_tokens=64), dict)


def logprobs() -> None:
    answer = llm.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    content = answer.response_metadata["logprobs"]["content"]
    assert len(content) == answer.usage_metadata["output_tokens"]


def errors() -> None:
    """Without check_embedding_ctx_length=False it would look for a tokenizer of OpenAI on the network first."""
    try:
        OpenAIEmbeddings(**ADDRESS, check_embedding_ctx_length=False).embed_query("hello")
    except BadRequestError as error:
        assert "does not support Embeddings API" in str(error)
    else:
        raise SystemExit("embeddings were not refused")


run(chat, stream, tools, parse, logprobs, errors)
