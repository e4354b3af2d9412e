"""DecoderConfig: the sizes that every decoder-only model has, and that the runner plans memory by."""

from dataclasses import dataclass
from typing import Any

from quire.errors import UnsupportedModel
from quire.hf_config import HfConfig

MAX_SIZE = 2**24


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder.

    inner_size    width of the feed-forward layer
    gated         the feed-forward layer has a gate beside it
    max_position  longest sequence the checkpoint was made for, in tokens
    tied          the head shares the embedding's weight
    """

    vocab_size: int
    hidden_size: int
    inner_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    tied: bool
    gated: bool = True

    def __post_init__(self) -> None:
        for field in ("vocab_size", "hidden_size", "inner_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
            if not 1 <= getattr(self, field) <= MAX_SIZE:
                raise UnsupportedModel(f"config.json: {field} is {getattr(self, field)}; it must be in [1, {MAX_SIZE}]")

    @staticmethod
    def sizes(hf: HfConfig, *, tied_default: bool, default_head_dim: int | None = None) -> dict[str, Any]:
        """The fields above, from the key names that Llama and its kin use. Refuses sizes that contradict each other.

        default_head_dim  of a config without head_dim; None = hidden_size / heads
        """
        hidden_size, num_heads = hf.int("hidden_size"), hf.int("num_attention_heads")
        num_kv_heads = hf.int("num_key_value_heads", num_heads)
        if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
            raise UnsupportedModel(f"{hf.source}: {num_heads} heads cannot share {num_kv_heads} key-value heads")
        head_dim = hf.int("head_dim", default_head_dim or hidden_size // num_heads)
        if "head_dim" not in hf and default_head_dim is None and hidden_size % num_heads:
            raise UnsupportedModel(f"{hf.source}: hidden_size {hidden_size} is not a multiple of {num_heads} heads")
        return {
            "vocab_size": hf.int("vocab_size"),
            "hidden_size": hidden_size,
            "inner_size": hf.int("intermediate_size"),
            "num_layers": hf.int("num_hidden_layers"),
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "max_position": hf.int("max_position_embeddings"),
            "tied": hf.bool("tie_word_embeddings", tied_default),
        }


def sliding_windows(hf: HfConfig) -> tuple[int, ...]:
    """Each layer's window in tokens, 0 = none, as Qwen2 and Qwen3 configs give it.

    `layer_types` says it where there is one (transformers 5); else the layers from max_window_layers on have a window. Either way
    only when use_sliding_window is true.
    """
    num_layers = hf.int("num_hidden_layers")
    window = hf.int("sliding_window", 0) if hf.bool("use_sliding_window", False) else 0
    if "layer_types" not in hf:
        first = hf.int("max_window_layers", num_layers)
        return tuple(window if i >= first else 0 for i in range(num_layers))
    kinds = hf.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise UnsupportedModel(f"{hf.source}: layer_types must list the kind of each of the {num_layers} layers")
    unknown = set(map(str, kinds)) - {"full_attention", "sliding_attention"}
    if unknown or ("sliding_attention" in kinds and not window):
        raise UnsupportedModel(f"{hf.source}: layer_types {sorted(set(map(str, kinds)))} with sliding_window {window}")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
