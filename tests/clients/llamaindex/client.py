"""LlamaIndex's OpenAILike against a server: python client.py URL."""

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from report import MODEL, QUESTION, URL, run

ADDRESS = {"model": MODEL, "api_base": URL + "/v1", "api_key": "EMPTY", "max_retries": 0, "context_window": 4096}
llm = OpenAILike(**ADDRESS, is_chat_model=True, is_function_calling_model=True, temperature=0, max_tokens=96)
plain = OpenAILike(**ADDRESS, is_chat_model=False, temperature=0, max_tokens=8)
MESSAGES = [ChatMessage(role="user", content=QUESTION)]


class Capital(BaseModel):
    """A country's capital."""

    city: str
    country: str


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"{city}: sunny"


def chat() -> None:
    assert "Paris" in llm.chat(MESSAGES).message.content
    assert "Paris" in llm.complete(QUESTION).text
    assert "Paris" in plain.complete("The capital of France is").text


def stream() -> None:
    whole = llm.chat(MESSAGES).message.content
    assert "".join(part.delta for part in llm.stream_chat(MESSAGES)) == whole
    assert "".join(part.delta for part in plain.stream_complete("The capital of France is"))


def tools() -> None:
    weather = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([weather], user_msg=QUESTION, tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather" and isinstance(call.tool_kwargs["city"], str)


def parse() -> None:
    assert isinstance(llm.as_structured_llm(Capital).complete(QUESTION).raw, Capital)


def logprobs() -> None:
    asking = OpenAILike(**ADDRESS, is_chat_model=True, temperature=0, logprobs=True, top_logprobs=2)
    answer = asking.chat(MESSAGES)
    assert len(answer.logprobs) > 3 and len(answer.logprobs[0]) == 2


run(chat, stream, tools, parse, logprobs)
