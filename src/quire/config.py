"""What the user asks for (EngineArgs) and what it resolves to (EngineConfig).

EngineArgs is the one table of engine options: `LLM(**kwargs)`, `quire serve` flags and the reference page are all made from its
fields. `resolve` turns it, the checkpoint's config and the machine's facts into a frozen EngineConfig, with a reason a choice.
dtypes are strings here ("bfloat16"), so that this file needs no torch.
"""

from dataclasses import dataclass, field
from typing import Any

DTYPE_NAMES = ("bfloat16", "float16", "float32")
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
BUILTIN_PREFIX = "builtin:"
BUILTIN_MODEL = "builtin:tiny"


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), aliases: tuple[str, ...] = ()) -> Any:
    """A field of EngineArgs: its default, its help line, allowed values, and other flag spellings (such as -tp)."""
    return field(default=default, metadata={"help": help, "choices": choices, "aliases": aliases})


@dataclass
class EngineArgs:
    """Engine options as the user gives them. `None` means: choose for me. Names and defaults are those of vLLM."""

    model: str | None = option(None, "folder, hub name, or builtin:tiny; none = the bundled model")
    tokenizer: str | None = option(None, "tokenizer folder or hub name, when it is not the model's")
    skip_tokenizer_init: bool = option(False, "work on token ids alone; text prompts are refused")
    trust_remote_code: bool = option(
        False, "accepted for checkpoints that ask for it; quire never runs a checkpoint's code"
    )
    revision: str | None = option(None, "branch, tag or commit of the model on the hub")
    tokenizer_revision: str | None = option(None, "branch, tag or commit of the tokenizer on the hub")
    download_dir: str | None = option(None, "where downloads go; default: the hub's own cache")
    hf_token: str | None = option(None, "hub token; default: HF_TOKEN")
    load_format: str = option(
        "auto", "auto, safetensors, pt (pickle: only with this flag), dummy = random weights",
        choices=("auto", "safetensors", "pt", "dummy"),
    )  # fmt: skip
    dtype: str = option(
        "auto", "auto = the checkpoint's; half, bfloat16, float",
        choices=("auto", "half", "float16", "bfloat16", "float", "float32"),
    )  # fmt: skip
    quantization: str | None = option(None, "weight format; default: what the checkpoint says", aliases=("-q",))
    device: str = option("auto", "cuda when there is one, else cpu", choices=("auto", "cuda", "cpu"))
    backends: str | None = option(None, "comma-separated kernel backends in order of preference, such as triton,torch")
    seed: int = option(0, "seed of dummy weights; requests without a seed draw their own from it")
    max_model_len: int | None = option(None, "longest prompt plus output, in tokens; 16k and auto are understood")
    block_size: int = option(16, "tokens in one KV block", choices=())
    max_num_seqs: int | None = option(None, "sequences computed at once")
    max_num_batched_tokens: int | None = option(None, "tokens computed in one step")
    gpu_memory_utilization: float = option(0.9, "share of the device's total memory that the engine may use")
    kv_cache_memory_bytes: int | None = option(None, "exact size of the KV cache; 12GiB is understood")
    num_gpu_blocks_override: int | None = option(None, "exact number of KV blocks")
    swap_space: float = option(
        4, "GiB; accepted from older scripts: preempted sequences are recomputed, nothing is swapped"
    )
    cpu_offload_gb: float = option(0, "must be 0: weights are not offloaded")
    enable_prefix_caching: bool = option(True, "reuse the KV blocks of equal prompt beginnings")
    enable_chunked_prefill: bool = option(True, "split long prompts over steps")
    enforce_eager: bool = option(False, "no CUDA graphs")
    tensor_parallel_size: int = option(1, "GPUs that share each layer", aliases=("-tp",))
    pipeline_parallel_size: int = option(1, "GPUs that share the stack of layers", aliases=("-pp",))
    data_parallel_size: int = option(1, "engine copies", aliases=("-dp",))
    distributed_executor_backend: str | None = option(
        None, "mp, ray or uni; one GPU needs none", choices=("mp", "ray", "uni")
    )
    disable_custom_all_reduce: bool = option(False, "no effect on one GPU")
    generation_config: str = option("auto", "auto = the model's generation_config.json, vllm = none, or a folder")
    override_generation_config: dict[str, Any] | None = option(None, "JSON: sampling defaults that win over the file's")
    hf_overrides: dict[str, Any] | None = option(None, "JSON: keys that replace those of config.json")
    chat_template: str | None = option(None, "Jinja file or text used in place of the model's")
    scheduling_policy: str = option("fcfs", "fcfs or priority", choices=("fcfs", "priority"))
    max_num_queued_reqs: int | None = option(None, "requests that may wait; more are refused with 429")
    disable_log_stats: bool = option(False, "no line of rates every ten seconds")
    runner: str = option("auto", "auto or generate", choices=("auto", "generate", "pooling", "default"))
    convert: str = option("auto", "auto or none", choices=("auto", "none", "embed", "classify", "reward"))


@dataclass(frozen=True)
class Decision:
    """One choice that `resolve` made for the user, and why; `quire env` and the start-up log print them."""

    name: str
    value: Any
    why: str


@dataclass(frozen=True)
class MachineFacts:
    """What resolve needs to know of the machine; quire.platform fills it in.

    total_memory_bytes  of the device (CPU: of the machine); free_memory_bytes likewise, now
    """

    device: str
    name: str
    total_memory_bytes: int
    free_memory_bytes: int
    dtypes: tuple[str, ...] = DTYPE_NAMES


@dataclass(frozen=True)
class EngineConfig:
    """Everything the engine needs, with nothing left to choose but the number of KV blocks (counted once weights are planned).

    model_dir      local folder of the checkpoint
    model_name     what the user called it
    tokenizer_dir  local folder of the tokenizer; "" = the checkpoint's
    max_num_tokens_with_decoding  tokens computed in a step that decodes too
    """

    model_dir: str
    model_name: str
    device: str
    dtype: str
    max_model_len: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    enforce_eager: bool = False
    load_format: str = "auto"
    backends: tuple[str, ...] = ("torch",)
    seed: int = 0
    scheduling_policy: str = "fcfs"
    max_num_queued_reqs: int | None = None
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    tokenizer_dir: str = ""
    max_num_tokens_with_decoding: int = 2**31
