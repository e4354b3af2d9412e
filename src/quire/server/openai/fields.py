"""Request fields: those of HTTP beside SamplingParams' (core/bounds.py), those refused when they ask for something, and those without
effect here.

To build a feature, take its field out of REFUSED and give it a place here and in schemas.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.core.bounds import BOOLEAN, INTEGER, LARGEST, LIST, OBJECT, OFFLINE_ONLY, SAMPLING, STRING, Field
from quire.errors import InvalidRequest

MAX_TOOLS = 128
_LEGACY_GUIDED = "an earlier name of structured_outputs."
_EFFORTS = "none, minimal, low, medium, high or xhigh"
_NO_EFFECT = "no effect here"

GENERATE: dict[str, Field] = {
    "model": Field(STRING, "name of the model; any name is served unless --strict-model-name", default="the model"),
    "stream": Field(BOOLEAN, "answer in server-sent events, as it comes", default="false"),
    "stream_options": Field(OBJECT, "include_usage: a last event with token counts; continuous_usage_stats: in every event"),
    **{name: field for name, field in SAMPLING.items() if name not in OFFLINE_ONLY},
    "prompt_logprobs": Field(INTEGER, "log-probabilities of so many likeliest tokens at each position of the prompt; not in a stream", 0, LARGEST),
    "thinking_budget": Field(INTEGER, "another name of thinking_token_budget", 0, LARGEST),
    "truncate_prompt_tokens": Field(INTEGER, "cut the prompt to so many tokens; -1 = to what the model length leaves beside max_tokens", -1, LARGEST),
    "truncation_side": Field(STRING, "left or right: where it is cut", default="left"),
    "add_special_tokens": Field(BOOLEAN, "put bos and eos where the tokenizer does", default="true; of chats false, as templates write them"),
    "return_token_ids": Field(BOOLEAN, "token ids beside texts", default="false"),
    "return_tokens_as_token_ids": Field(BOOLEAN, "log-probabilities name tokens token_id:ID", default="false"),
    "priority": Field(INTEGER, "lower goes first; needs --scheduling-policy priority", -LARGEST, LARGEST, default="0"),
    "cache_salt": Field(STRING, "only requests with the same one share prefix-cache blocks; at most 256 bytes"),
    "response_format": Field(OBJECT, "OpenAI's way to say what the answer looks like: type text, json_object or json_schema"),
    "guided_json": Field(OBJECT, _LEGACY_GUIDED + "json"),
    "guided_regex": Field(STRING, _LEGACY_GUIDED + "regex"),
    "guided_choice": Field(LIST, _LEGACY_GUIDED + "choice"),
    "guided_grammar": Field(STRING, _LEGACY_GUIDED + "grammar"),
    "guided_whitespace_pattern": Field(STRING, _LEGACY_GUIDED + "whitespace_pattern; needs guided_json"),
}  # fmt: skip

CHAT: dict[str, Field] = {
    "messages": Field(LIST, "the chat so far", 1, 16_384),
    "max_completion_tokens": Field(INTEGER, "OpenAI's newer name of max_tokens", 1, LARGEST),
    "logprobs": Field(BOOLEAN, "log-probabilities of the answer's tokens", default="false"),
    "top_logprobs": Field(INTEGER, "of so many likeliest tokens at each position; needs logprobs; --max-logprobs bounds it", 0, LARGEST, default="0"),
    "echo": Field(BOOLEAN, "with continue_final_message: the answer begins with the message that it goes on with", default="false"),
    "add_generation_prompt": Field(BOOLEAN, "end the prompt with the opening of the assistant's turn", default="true"),
    "continue_final_message": Field(BOOLEAN, "go on with the last message in place of answering it", default="false"),
    "chat_template_kwargs": Field(OBJECT, "variables for the chat template, such as enable_thinking"),
    "documents": Field(LIST, "documents for the chat template, if it reads them"),
    "tools": Field(LIST, "functions that the model may call; strict is kept where a call is forced", 0, MAX_TOOLS),
    "tool_choice": Field(STRING, "none, auto, required, or the one function to call", default="auto"),
    "parallel_tool_calls": Field(BOOLEAN, "false: at most one call", default="true"),
    "functions": Field(LIST, "the earlier form of tools; answered with function_call", 0, MAX_TOOLS),
    "function_call": Field(STRING, "the earlier form of tool_choice: none, auto, or {name}"),
    "include_reasoning": Field(BOOLEAN, "false: leave the reasoning out of the answer", default="true"),
    "reasoning_effort": Field(STRING, f"{_EFFORTS}; for templates that read it; none also turns enable_thinking off", default="the template's"),
}  # fmt: skip

COMPLETION: dict[str, Field] = {
    "prompt": Field(LIST, "a text, a list of texts, token ids, or a list of lists of token ids; 256 prompts at most"),
    "max_tokens": Field(INTEGER, "longest continuation; 0 with echo: none", 0, LARGEST, default="16"),
    "logprobs": Field(INTEGER, "log-probabilities of so many likeliest tokens at each position; --max-logprobs bounds it", 0, LARGEST),
    "echo": Field(BOOLEAN, "the text begins with the prompt", default="false"),
}  # fmt: skip


# What is known inside fields that are objects. include_obfuscation is OpenAI's padding of streams, of which there is none here.
PARTS: dict[str, Sequence[str]] = {
    "stream_options": ("include_usage", "continuous_usage_stats", "include_obfuscation"),
    "response_format": ("type", "json_schema"),
    "response_format.json_schema": ("name", "description", "strict", "schema", "json_schema"),
}


@dataclass(frozen=True)
class Refused:
    """neutral: values that ask for nothing (null never does). why: the rest of the sentence "FIELD ..."."""

    why: str
    neutral: tuple[Any, ...] = ()


_TEXT_ONLY = "is not supported: models here read and write text alone"
_NO_TEMPLATES = "is not accepted in requests; the server's operator chooses the template with --chat-template"

REFUSED: dict[str, Refused] = {
    "best_of": Refused("above n is not supported: ask for n answers and choose", (0, 1)),
    "use_beam_search": Refused("is not supported over HTTP; LLM.beam_search does it offline", (False,)),
    "length_penalty": Refused("has a meaning for beam search alone, which is not supported over HTTP", (1, 1.0)),
    "suffix": Refused("is not supported: no model here fills in the middle", ("",)),
    "prompt_embeds": Refused("is not supported: send text or token ids"),
    "chat_template": Refused(_NO_TEMPLATES),
    "logprob_token_ids": Refused("is not implemented yet; use top_logprobs", ([],)),
    "return_prompt_text": Refused("is not implemented yet; use echo of /v1/completions", (False,)),
    "logits_processors": Refused("is not accepted: a request cannot bring code; use logit_bias", ([],)),
    "modalities": Refused(_TEXT_ONLY, (["text"],)),
    "audio": Refused(_TEXT_ONLY),
    "media_io_kwargs": Refused(_TEXT_ONLY, ({},)),
    "mm_processor_kwargs": Refused(_TEXT_ONLY, ({},)),
    "web_search_options": Refused("is not supported: there is no web search here"),
    "kv_transfer_params": Refused("is not supported: KV blocks stay in this server", ({},)),
    "vllm_xargs": Refused("is not supported", ({},)),
    "repetition_detection": Refused("is not implemented yet; use repetition_penalty or stop"),
    "stream_interval": Refused("is not implemented yet: tokens are sent as they come", (1,)),
    "watermarking": Refused("is not implemented", (False, {})),
}

# Known to OpenAI's or vLLM's API, without effect on what is generated here.
NO_EFFECT: dict[str, str] = {
    "store": "of chats: nothing is kept",
    "metadata": _NO_EFFECT,
    "service_tier": "there is one tier",
    "user": _NO_EFFECT,
    "safety_identifier": _NO_EFFECT,
    "prompt_cache_key": "the prefix cache finds equal beginnings by itself",
    "prompt_cache_retention": "the same",
    "prompt_cache_options": "the same",
    "verbosity": "say it in the prompt",
    "prediction": "nothing is predicted for speed",
    "guided_decoding_backend": "llguidance constrains every output",
    "session_id": _NO_EFFECT,
    "request_id": "the header X-Request-Id names a request",
}


def check_unhonoured(extra: dict[str, Any], n: Any = None, refused: Mapping[str, Refused] = REFUSED) -> list[str]:
    """Looks at the fields that a request's schema does not have. Returns those that nobody knows.

    n        answers asked for; best_of equal to it asks for nothing more
    refused  the route's own table
    Raises InvalidRequest for a known one whose value cannot be honoured.
    """
    unknown = []
    for name, value in extra.items():
        if name in refused and not (name == "best_of" and value == n):
            _check(name, value, refused[name])
        elif name not in NO_EFFECT and name not in refused:
            unknown.append(name)
    return unknown


def unknown_parts(body: Mapping[str, Any], known: Mapping[str, Sequence[str]]) -> list[str]:
    """Names that nobody knows inside fields of a body, as "text.format.x"; known: those that are known in each place."""
    unknown = []
    for place, names in known.items():
        inner: Any = body
        for step in place.split("."):
            inner = inner.get(step) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            unknown += [f"{place}.{name}" for name, value in inner.items() if value is not None and name not in names]
    return unknown


def check_bounds(table: Mapping[str, Field], given: Iterable[tuple[str, Any]]) -> None:
    """Raises InvalidRequest for the first value that is out of its field's range. null is left to whoever reads the field."""
    for name, value in given:
        field = table.get(name)
        if value is not None and field is not None and field.kind != BOOLEAN:
            field.check(name, value)


def _check(name: str, value: Any, refused: Refused) -> None:
    if value is None or any(type(value) is type(neutral) and value == neutral for neutral in refused.neutral):
        return
    raise InvalidRequest(f"{name} {refused.why}", name)
