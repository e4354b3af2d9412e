"""Keyword arguments of `LLM(...)`: EngineArgs fields, names of older and other versions mapped with a line that says so, the rest
refused with the way out. Nothing is accepted and ignored in silence."""

import dataclasses
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from quire.config import EngineArgs
from quire.errors import ConfigError

logger = logging.getLogger(__name__)
NO_EMBEDDINGS = "The model does not support Embeddings API"


@dataclass(frozen=True)
class Settled:
    """A name whose wish is met by the design, whatever its value: accepted with one warning line."""

    why: str


@dataclass(frozen=True)
class Unbuilt:
    """A name of a feature that is not there: only the values that ask for nothing are accepted."""

    neutral: tuple[Any, ...]
    advice: str


_NOT_YET = "it is not implemented yet; leave it out"
_LORA = "LoRA adapters are not implemented yet; merge the adapter into the checkpoint first"
_SPECULATION = "speculative decoding is not implemented yet; leave it out"
_MEDIA = "models take text alone; leave it out"
_POOLING = f"{NO_EMBEDDINGS}: pooling is not implemented yet; leave it out"

SETTLED: dict[str, Settled] = {
    "use_v2_block_manager": Settled("there is one block manager"),
    "max_seq_len_to_capture": Settled("CUDA graphs are captured by batch size and serve every length"),
    "max_context_len_to_capture": Settled("CUDA graphs are captured by batch size and serve every length"),
    "disable_async_output_proc": Settled("output is always processed in step with the engine"),
    "num_scheduler_steps": Settled("the scheduler decides before every step"),
    "multi_step_stream_outputs": Settled("the scheduler decides before every step"),
    "enable_return_routed_experts": Settled("no supported model has experts"),
    "disable_log_requests": Settled("requests are never logged"),
    "enable_log_requests": Settled("requests are never logged; their content is private"),
    "served_model_name": Settled("only a server has use for a name"),
    "max_logprobs": Settled("the number of logprobs is bounded by the vocabulary alone"),
    "max_parallel_loading_workers": Settled("one GPU loads with one worker"),
    "max_num_partial_prefills": Settled("the token budget of a step decides how many prompts it takes"),
    "async_scheduling": Settled("the loop is chosen by the engine"),
    "engine_use_ray": Settled("the engine runs in this process"),
    "worker_use_ray": Settled("one GPU needs no workers"),
    "guided_decoding_backend": Settled("llguidance constrains every output"),
    "preemption_mode": Settled("preempted sequences are recomputed"),
}
UNBUILT: dict[str, Unbuilt] = {
    "tokenizer_mode": Unbuilt(("auto",), "the checkpoint's own tokenizer is used; leave it out"),
    "config_format": Unbuilt(("auto", "hf"), "checkpoints are read in the transformers layout"),
    "kv_cache_dtype": Unbuilt(("auto",), "the KV cache has the model's dtype; leave it out"),
    "allowed_local_media_path": Unbuilt(("", None), _MEDIA),
    "allowed_media_domains": Unbuilt((None, []), _MEDIA),
    "limit_mm_per_prompt": Unbuilt((None, {}), _MEDIA),
    "mm_processor_kwargs": Unbuilt((None, {}), _MEDIA),
    "offload_group_size": Unbuilt((0,), "weights are not offloaded; leave it out"),
    "offload_num_in_group": Unbuilt((1,), "weights are not offloaded; leave it out"),
    "offload_prefetch_step": Unbuilt((1,), "weights are not offloaded; leave it out"),
    "offload_params": Unbuilt((None, []), "weights are not offloaded; leave it out"),
    "return_sampling_mask": Unbuilt((False,), _NOT_YET),
    "pooler_config": Unbuilt((None,), _POOLING),
    "override_pooler_config": Unbuilt((None,), _POOLING),
    "structured_outputs_config": Unbuilt((None,), "give each request its own options in StructuredOutputsParams"),
    "profiler_config": Unbuilt((None,), _NOT_YET),
    "attention_config": Unbuilt((None,), "kernels are chosen by the option backends"),
    "compilation_config": Unbuilt((None, 0, {}), "nothing is compiled; enforce_eager switches CUDA graphs off"),
    "quantization_config": Unbuilt((None,), "the checkpoint's config says how it is quantised; leave it out"),
    "logits_processors": Unbuilt((None, []), "use logit_bias, allowed_token_ids or bad_words of SamplingParams"),
    "spec_method": Unbuilt((None,), _SPECULATION),
    "spec_model": Unbuilt((None,), _SPECULATION),
    "spec_tokens": Unbuilt((None, 0), _SPECULATION),
    "speculative_config": Unbuilt((None,), _SPECULATION),
    "speculative_model": Unbuilt((None,), _SPECULATION),
    "num_speculative_tokens": Unbuilt((None, 0), _SPECULATION),
    "enable_lora": Unbuilt((False, None), _LORA),
    "max_loras": Unbuilt((None, 1), _LORA),
    "max_lora_rank": Unbuilt((None, 16), _LORA),
    "enable_expert_parallel": Unbuilt((False,), "no supported model has experts; leave it out"),
    "enable_sleep_mode": Unbuilt((False,), "close() frees all memory; leave it out"),
    "enable_prompt_embeds": Unbuilt((False,), _NOT_YET),
}


def engine_args(kwargs: dict[str, Any]) -> EngineArgs:
    """EngineArgs from the keyword arguments of `LLM` or `AsyncLLM`. Raises ConfigError naming the first that cannot be honoured."""
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    options: dict[str, Any] = {name: value for name, value in kwargs.items() if name in known}
    for name, value in kwargs.items():
        if name in known:
            continue
        if name in SETTLED:
            logger.warning("%s=%r has no effect: %s.", name, value, SETTLED[name].why)
        elif name in UNBUILT:
            _require_neutral(name, value)
        elif name in _MAPPED:
            _MAPPED[name](options, name, value)
        else:
            raise ConfigError(f"LLM has no argument {name!r}{_nearest(name, known)}")
    if options.get("seed", 0) is None:
        options["seed"] = secrets.randbits(63)
    _check_choices(options)
    return EngineArgs(**options)


def _require_neutral(name: str, value: Any) -> None:
    entry = UNBUILT[name]
    if not any(type(value) is type(neutral) and value == neutral for neutral in entry.neutral):
        raise ConfigError(f"{name}={value!r} cannot be honoured: {entry.advice}")


def _check_choices(options: dict[str, Any]) -> None:
    for field in dataclasses.fields(EngineArgs):
        choices = field.metadata.get("choices")
        value = options.get(field.name)
        if choices and value is not None and value not in choices:
            raise ConfigError(f"{field.name} is {value!r}; it must be one of {', '.join(choices)}")


def _task(options: dict[str, Any], name: str, value: Any) -> None:
    if value not in ("auto", "generate", None):
        raise ConfigError(f"{name}={value!r}: {NO_EMBEDDINGS}; pooling is not implemented yet")
    logger.warning("%s=%r is now called runner=%r.", name, value, value or "auto")
    options.setdefault("runner", value or "auto")


def _hf_key(options: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        logger.warning("%s=%r is taken as hf_overrides={%r: %r}.", name, value, name, value)
        options["hf_overrides"] = {**(options.get("hf_overrides") or {}), name: value}


def _renamed(new_name: str) -> Callable[[dict[str, Any], str, Any], None]:
    def apply(options: dict[str, Any], name: str, value: Any) -> None:
        logger.warning("%s is now called %s.", name, new_name)
        options.setdefault(new_name, value)

    return apply


_MAPPED: dict[str, Callable[[dict[str, Any], str, Any], None]] = {
    "task": _task,
    "rope_scaling": _hf_key,
    "rope_theta": _hf_key,
    "num_gpu_blocks": _renamed("num_gpu_blocks_override"),
    "token": _renamed("hf_token"),
    "use_auth_token": _renamed("hf_token"),
}


def _nearest(name: str, known: set[str]) -> str:
    near = get_close_matches(name, sorted({*known, *SETTLED, *UNBUILT, *_MAPPED}), n=1)
    return f"; did you mean {near[0]}?" if near else "; see the fields of EngineArgs"
