"""The memory plan of a model that is not loaded: its layers on meta, the headers of its weights, and somebody's word for the device."""

from pathlib import Path

import torch

from quire.config import EngineConfig, MachineFacts
from quire.hf_config import HfConfig
from quire.layers.build import Build
from quire.models.registry import find_model
from quire.ops import registry
from quire.quant.none import refuse_quantized
from quire.runner.memory_plan import MemoryPlan, model_bytes, plan_memory
from quire.weights.loader import plan_weights


def dry_plan(config: EngineConfig, facts: MachineFacts) -> MemoryPlan:
    """What ModelRunner.load would plan on such a device; checks the weights' headers on the way and allocates nothing.

    Raises UnsupportedModel, CheckpointError, MemoryPlanError.
    """
    hf = HfConfig.from_dir(config.model_dir, config.hf_overrides)
    refuse_quantized(hf.get("quantization_config"), hf.source)
    module = find_model(hf)
    sizes = module.Config.from_hf(hf)
    ops, _ = registry.resolve(("torch",))
    with torch.device("meta"):
        model = module.Model(sizes, Build.plain(ops, getattr(torch, config.dtype), config.max_model_len))
    plan_weights(model, module.WEIGHTS, Path(config.model_dir), config.load_format, sizes.tied)
    graphs = facts.device == "cuda" and not config.enforce_eager
    return plan_memory(config, sizes, model_bytes(model), facts, graphs)
