"""Request fields that are not honoured, in two tables: those refused when they ask for something, and those without effect here.

To build a feature, take its field out of REFUSED and give it a place in schemas.py.
"""

from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequest


@dataclass(frozen=True)
class Refused:
    """neutral: values that ask for nothing (null never does). why: the rest of the sentence "FIELD ..."."""

    why: str
    neutral: tuple[Any, ...] = ()


_TOOLS = "is the name of long ago; use tools and tool_choice"
_TEXT_ONLY = "is not supported: models here read and write text alone"
_NO_TEMPLATES = "is not accepted in requests; the server's operator chooses the template with --chat-template"

REFUSED: dict[str, Refused] = {
    "functions": Refused(_TOOLS, ([],)),
    "function_call": Refused(_TOOLS, ("none", "auto")),
    "thinking_token_budget": Refused("is not implemented yet: reasoning is bounded by max_tokens alone; leave it out"),
    "best_of": Refused("above n is not supported: ask for n answers and choose", (0, 1)),
    "use_beam_search": Refused("is not supported over HTTP; LLM.beam_search does it offline", (False,)),
    "length_penalty": Refused("has a meaning for beam search alone, which is not supported over HTTP", (1,)),
    "suffix": Refused("is not supported: no model here fills in the middle", ("",)),
    "prompt_embeds": Refused("is not supported: send text or token ids"),
    "documents": Refused("is not supported: put them into a message", ([],)),
    "chat_template": Refused(_NO_TEMPLATES),
    "truncate_prompt_tokens": Refused("is not implemented yet: send a shorter prompt"),
    "truncation_side": Refused("is not implemented yet: send a shorter prompt"),
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
NO_EFFECT = frozenset(
    "store metadata service_tier user safety_identifier prompt_cache_key prompt_cache_retention verbosity reasoning_effort "
    "prediction guided_decoding_backend session_id request_id".split()
)


def check_unhonoured(extra: dict[str, Any]) -> list[str]:
    """Looks at the fields that a request's schema does not have. Returns those that nobody knows.

    Raises InvalidRequest for a known one whose value cannot be honoured.
    """
    unknown = []
    for name, value in extra.items():
        if name in REFUSED:
            _check(name, value, REFUSED[name])
        elif name not in NO_EFFECT:
            unknown.append(name)
    return unknown


def _check(name: str, value: Any, refused: Refused) -> None:
    if value is None or any(type(value) is type(neutral) and value == neutral for neutral in refused.neutral):
        return
    raise InvalidRequest(f"{name} {refused.why}", name)
