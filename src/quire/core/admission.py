"""Which requests can never be served by this configuration, and what to say then; how much of a prompt is computed at once."""

from quire.core.config import SchedulerConfig
from quire.core.request import Request
from quire.errors import ContextLengthExceeded, InvalidRequest


def check_request(request: Request, config: SchedulerConfig) -> None:
    """Raises ClientError when the request can never be computed, even alone on an empty engine."""
    num_prompt = len(request.prompt_token_ids)
    if num_prompt == 0:
        raise InvalidRequest("the prompt is empty: at least one token is needed", "prompt")
    if len(request.emitted_token_ids) > request.params.n:
        raise InvalidRequest(f"{len(request.emitted_token_ids)} sequences to replay, but n is {request.params.n}", "n")
    if num_prompt >= config.max_model_len:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens; with at least one more to generate that is over the model length of"
            f" {config.max_model_len} (--max-model-len)",
            "prompt",
        )
    if not config.enable_chunked_prefill and num_prompt > config.max_num_batched_tokens:
        raise InvalidRequest(
            f"the prompt has {num_prompt} tokens and must be computed in one step, which holds"
            f" {config.max_num_batched_tokens}; raise --max-num-batched-tokens or allow --enable-chunked-prefill",
            "prompt",
        )
    _check_blocks(request, config)


def first_chunk(num_left: int, budget: int, config: SchedulerConfig) -> int:
    """Tokens to compute at admission; 0 if a prompt that must not be split does not fit this step."""
    if num_left <= budget:
        return num_left
    # Without chunked prefill a prompt fits a step (check_request saw to it). A sequence that comes back may have outgrown it.
    whole = not config.enable_chunked_prefill and num_left <= config.max_num_batched_tokens
    return 0 if whole else budget


def _check_blocks(request: Request, config: SchedulerConfig) -> None:
    longest = config.max_model_len
    if request.params.max_tokens is not None:
        longest = min(longest, len(request.prompt_token_ids) + request.params.max_tokens)
    needed, usable = config.blocks_for(longest - 1), config.num_blocks - 1
    if needed > usable:
        raise ContextLengthExceeded(
            f"prompt and max_tokens come to {longest} tokens, for which {needed} KV blocks of {config.block_size} are"
            f" needed; the KV cache has {usable}. Ask for fewer tokens, or raise --gpu-memory-utilization,"
            " --kv-cache-memory-bytes or --num-gpu-blocks-override",
            "max_tokens",
        )
