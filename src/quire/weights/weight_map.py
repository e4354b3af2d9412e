"""WeightMap: how the tensor names of a checkpoint map to the parameters of a model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WeightMap:
    """Declared by a model file.

    fuse     module name -> the checkpoint's modules that are packed into it, in order
    rename   prefix in the checkpoint -> prefix in the model, for checkpoints saved under another name
    ignore   patterns of whole tensor names that may be there and are not needed
    """

    fuse: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)

    def sources(self, parameter: str) -> tuple[str, ...]:
        """Names of the checkpoint tensors that fill a parameter, one a shard: a.qkv_proj.weight -> a.q_proj.weight, ..."""
        module, _, kind = parameter.rpartition(".")
        parent, _, leaf = module.rpartition(".")
        prefix = f"{parent}." if parent else ""
        return tuple(f"{prefix}{member}.{kind}" for member in self.fuse.get(leaf, (leaf,)))

    def canonical(self, name: str) -> str:
        """A checkpoint's tensor name under the prefixes that the model uses."""
        for old, new in self.rename.items():
            if name.startswith(old):
                return new + name[len(old) :]
        return name

    def ignored(self, name: str) -> bool:
        """Whether a checkpoint tensor without a place in the model is known to be harmless."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignore)


QKV_GATE_UP: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
