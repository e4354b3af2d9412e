"""EngineArgs + the checkpoint's config + facts of the machine -> EngineConfig, with a reason for each choice. A pure function."""

from dataclasses import dataclass, field
from typing import Any

from quire.config import DTYPE_NAMES, Decision, EngineArgs, EngineConfig, MachineFacts
from quire.errors import ConfigError
from quire.hf_config import HfConfig

_DTYPE_ALIASES = {"half": "float16", "float": "float32"}
_SUFFIXES = {
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "kb": 1000,
    "mb": 1000**2,
}
_SUFFIXES["gb"] = 1000**3
_BINARY_LENGTHS = {"k": 1024}  # "16k" of tokens means 16,384, as users of max_model_len expect
# As efficient as larger steps, and streams wait a quarter as long; the largest that is captured as a graph (runner/graphs.py).
SERVING_TOKENS_WITH_DECODING = 2048
LARGE_GPU_BYTES = 70 * 1024**3
WITHOUT_EFFECT = {
    "trust_remote_code": "as a checkpoint's code is never run",
    "swap_space": "as preempted sequences are computed anew and nothing is swapped",
    "disable_custom_all_reduce": "as one GPU has nothing to reduce",
}


@dataclass
class _Chooser:
    """Collects decisions while resolving."""

    decisions: list[Decision] = field(default_factory=list)

    def choose(self, name: str, given: Any, default: Any, why: str) -> Any:
        """The given value, or the default with its reason noted."""
        if given is not None:
            return given
        self.decisions.append(Decision(name, default, why))
        return default


def resolve(
    args: EngineArgs, hf: HfConfig, facts: MachineFacts, *, model_dir: str, serving: bool = False
) -> tuple[EngineConfig, list[Decision]]:
    """Everything the engine needs, nothing left open.

    model_dir  local folder that `args.model` was resolved to
    serving    True for a server: smaller steps, so that no decode waits long behind a prompt
    Raises ConfigError naming the flag at fault.
    """
    _refuse_unbuilt(args, hf)
    chooser = _Chooser(_without_effect(args))
    large = facts.device == "cuda" and facts.total_memory_bytes >= LARGE_GPU_BYTES
    max_model_len = _max_model_len(args, hf, chooser)
    max_num_seqs = chooser.choose("max_num_seqs", args.max_num_seqs, *_default_num_seqs(facts, large))
    tokens = chooser.choose(
        "max_num_batched_tokens", args.max_num_batched_tokens, *_default_step_tokens(facts, large, serving)
    )
    _at_least_one(max_num_seqs=max_num_seqs, max_num_batched_tokens=tokens, block_size=args.block_size)
    if not args.enable_chunked_prefill and args.max_num_batched_tokens is None:
        tokens = max(tokens, max_model_len)
    if tokens < max_num_seqs:
        if args.max_num_seqs is None:
            max_num_seqs = tokens
        else:
            raise ConfigError(
                f"max_num_batched_tokens {tokens} is below max_num_seqs {max_num_seqs}: each running sequence needs a token "
                f"a step; raise --max-num-batched-tokens or lower --max-num-seqs"
            )
    if not 0.0 < args.gpu_memory_utilization <= 1.0:
        raise ConfigError(f"gpu_memory_utilization is {args.gpu_memory_utilization}; it must be in (0, 1]")
    config = EngineConfig(
        model_dir=model_dir,
        model_name=args.model or "builtin:tiny",
        device=facts.device,
        dtype=_dtype(args, hf, facts, chooser),
        max_model_len=max_model_len,
        block_size=args.block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=tokens,
        gpu_memory_utilization=args.gpu_memory_utilization,
        kv_cache_memory_bytes=parse_size(args.kv_cache_memory_bytes, "kv_cache_memory_bytes"),
        num_gpu_blocks_override=args.num_gpu_blocks_override,
        enable_prefix_caching=args.enable_prefix_caching,
        enable_chunked_prefill=args.enable_chunked_prefill,
        enforce_eager=args.enforce_eager,
        load_format=args.load_format,
        backends=_backends(args, facts),
        seed=args.seed,
        scheduling_policy=args.scheduling_policy,
        max_num_queued_reqs=args.max_num_queued_reqs,
        hf_overrides=args.hf_overrides or {},
        max_num_tokens_with_decoding=SERVING_TOKENS_WITH_DECODING if serving and large else tokens,
    )
    return config, chooser.decisions


def parse_size(value: int | str | None, name: str) -> int | None:
    """Bytes from 123, "12GiB" or "500M". Raises ConfigError naming the option."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        number = value
    else:
        number = _with_suffix(value, name, _SUFFIXES)
    if number is not None and number <= 0:
        raise ConfigError(f"{name} is {value!r}; it must be above 0")
    return number


def parse_length(value: int | str | None, name: str = "max_model_len") -> int | None:
    """Tokens from 8192, "16k" (16,384); None for "auto", -1 and None."""
    if value is None or value in ("auto", -1, "-1"):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        number = _with_suffix(value, name, {**_SUFFIXES, **_BINARY_LENGTHS})
    if number <= 0:
        raise ConfigError(f"{name} is {value!r}; it must be above 0, or auto")
    return number


def derived_max_model_len(hf: HfConfig) -> int:
    """Longest sequence the checkpoint was made for, rope scaling included."""
    length: int = 0
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "n_ctx"):
        if key in hf:
            length = hf.int(key)
            break
    if not length:
        raise ConfigError(f"{hf.source} does not say how long sequences may be; give --max-model-len")
    scaling = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else "default"
    if kind in ("linear", "dynamic", "yarn"):
        base = scaling.get("original_max_position_embeddings", length)
        length = int(base * float(scaling.get("factor", 1.0)))
    return length


def _with_suffix(value: Any, name: str, suffixes: dict[str, int]) -> int:
    text = str(value).strip().lower().replace("_", "").replace(",", "")
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    suffix = text[len(digits) :]
    try:
        return int(float(digits) * suffixes[suffix]) if suffix else int(digits)
    except (ValueError, KeyError):
        raise ConfigError(f"{name} is {value!r}; write a whole number, or one with k, M, GiB") from None


def _max_model_len(args: EngineArgs, hf: HfConfig, chooser: _Chooser) -> int:
    given = parse_length(args.max_model_len)
    longest = derived_max_model_len(hf) if given is None or _knows_length(hf) else given
    if given is None:
        return int(chooser.choose("max_model_len", None, longest, f"{hf.source} says so"))
    if given > longest:
        raise ConfigError(
            f"max_model_len {given} is above the {longest} tokens that {hf.source} allows; lower --max-model-len, or set "
            f"--hf-overrides '{{\"max_position_embeddings\": {given}}}' if you know that the model can"
        )
    return given


def _knows_length(hf: HfConfig) -> bool:
    return any(key in hf for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"))


def _default_num_seqs(facts: MachineFacts, large: bool) -> tuple[int, str]:
    if facts.device == "cpu":
        return 64, "more rows at once do not help a CPU"
    return (1024, "a device of 70 GB or more") if large else (256, "a device under 70 GB")


def _default_step_tokens(facts: MachineFacts, large: bool, serving: bool) -> tuple[int, str]:
    if facts.device == "cpu":
        return (512, "short steps keep streams even") if serving else (2048, "enough rows to keep a CPU busy")
    if large:
        return (8192, "serving, 70 GB or more") if serving else (16384, "offline, 70 GB or more")
    return (2048, "serving, under 70 GB") if serving else (8192, "offline, under 70 GB")


def _dtype(args: EngineArgs, hf: HfConfig, facts: MachineFacts, chooser: _Chooser) -> str:
    if args.dtype != "auto":
        dtype = _DTYPE_ALIASES.get(args.dtype, args.dtype)
        if dtype not in facts.dtypes:
            raise ConfigError(
                f"{facts.name} does not compute in {dtype}; it has {', '.join(facts.dtypes)}: use --dtype half"
            )
        return dtype
    saved = str(hf.get("torch_dtype", "float32")).replace("torch.", "")
    if saved not in DTYPE_NAMES:
        raise ConfigError(f"{hf.source} says dtype {saved!r}; give --dtype bfloat16, half or float")
    if facts.device == "cpu":
        dtype = "float32" if saved == "float16" else saved
        why = f"the checkpoint's is {saved}" + (", which a CPU computes in float32" if saved == "float16" else "")
    else:
        dtype = "bfloat16" if saved in ("bfloat16", "float32") else "float16"
        why = f"the checkpoint's is {saved}"
        if dtype not in facts.dtypes:
            dtype, why = "float16", f"the checkpoint's is {saved}, which {facts.name} does not compute in"
    return str(chooser.choose("dtype", None, dtype, why))


def _backends(args: EngineArgs, facts: MachineFacts) -> tuple[str, ...]:
    if args.backends:
        return tuple(name.strip() for name in args.backends.split(",") if name.strip())
    return ("cuda", "triton", "torch") if facts.device == "cuda" else ("cpu", "torch")


def _at_least_one(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _without_effect(args: EngineArgs) -> list[Decision]:
    """Options that older scripts give and that change nothing, where they ask for something."""
    given = ((name, getattr(args, name), why) for name, why in WITHOUT_EFFECT.items())
    return [
        Decision(name, value, f"no effect, {why}") for name, value, why in given if value != getattr(EngineArgs, name)
    ]


def _refuse_unbuilt(args: EngineArgs, hf: HfConfig) -> None:
    """Options whose feature this version does not have: refused, never ignored."""
    quantization = args.quantization or (hf.get("quantization_config") or {}).get("quant_method")
    if quantization:
        raise ConfigError(f"quantization {quantization!r} is not implemented yet; use the unquantised checkpoint")
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        value = getattr(args, name)
        if value != 1:
            raise ConfigError(f"{name} is {value}, but several GPUs are not implemented yet; use 1")
    if args.distributed_executor_backend in ("ray", "mp"):
        raise ConfigError(
            f"distributed_executor_backend {args.distributed_executor_backend!r} needs several GPUs, which are not "
            f"implemented yet; leave it out"
        )
    if args.cpu_offload_gb:
        raise ConfigError(f"cpu_offload_gb is {args.cpu_offload_gb}, but weights are not offloaded; use 0")
    if args.runner == "pooling" or args.convert in ("embed", "classify", "reward"):
        raise ConfigError(
            "The model does not support Embeddings API: pooling is not implemented yet; use --runner generate"
        )
