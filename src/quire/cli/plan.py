"""`quire plan MODEL`: where a device's memory would go, from config.json and the headers of the weights alone. Needs no GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quire.cli.args import Parser, parse
from quire.config import BUILTIN_MODEL, Decision, EngineArgs, EngineConfig, MachineFacts, option
from quire.errors import ConfigError
from quire.hf_config import HfConfig
from quire.hub import model_folder
from quire.resolve import parse_size, resolve

HELP = "show where memory would go, without loading the model"
MIB = 2**20
GIB = 2**30
# Memory of a card as its driver reports it, MiB.
CARDS_MIB = {
    "b200": 183_359, "h200": 143_771, "h100": 81_559, "h20": 97_871, "a100": 81_920, "a100-40gb": 40_960, "l40s": 46_068,
    "a6000": 49_140, "a10": 23_028, "l4": 23_034, "t4": 15_360, "rtx5090": 32_607, "rtx4090": 24_564, "rtx3090": 24_576,
}  # fmt: skip
CONTEXT_BYTES = 560 * MIB  # of the driver and the libraries in a process that has done nothing yet (H200, CUDA 13)
DRIVER_SHARE = 0.0045  # of a card's memory, which a process is not told of


@dataclass
class PlanArgs:
    """Options of `quire plan`, beside the engine's."""

    gpu_memory: str | None = option(
        None, "memory of the GPU to plan for, 80GiB or a card: h200, h100, a100, l4, rtx4090"
    )
    serving: bool = option(False, "as `quire serve` would: smaller steps than for offline use")


def main(argv: Sequence[str]) -> int:
    """Prints the plan. Raises SetupError types; MemoryPlanError says by how much it does not fit."""
    (engine, args), _ = parse(Parser(prog="quire plan", description=HELP), argv, [EngineArgs, PlanArgs])
    # Imported here because it brings torch, which other commands must not wait for.
    from quire.runner.dry_plan import dry_plan

    folder = model_folder(engine, load_format=None if _is_local(engine.model) else "dummy")
    hf = HfConfig.from_dir(folder, engine.hf_overrides)
    facts = _facts(engine, args)
    config, decisions = resolve(engine, hf, facts, model_dir=str(folder), serving=args.serving)
    if not _is_local(engine.model):
        config = replace(config, load_format="dummy")  # config.json tells the sizes; the weights stay where they are
    plan = dry_plan(config, facts)
    print(heading(config, facts, decisions))
    print(plan.table(config.max_model_len))
    return 0


def heading(config: EngineConfig, facts: MachineFacts, decisions: list[Decision]) -> str:
    """What the plan is for, and what was chosen for the user."""
    chosen = {decision.name: decision.why for decision in decisions}
    names = ("dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size")
    used = (facts.total_memory_bytes - facts.free_memory_bytes) / GIB
    share = "" if config.device == "cpu" else f", of which {config.gpu_memory_utilization:g} may be used"
    lines = [f"{config.model_name} on {facts.name}: {facts.total_memory_bytes / GIB:.2f} GiB, {used:.2f} in use{share}"]
    for name in names:
        why = f"   ({chosen[name]})" if name in chosen else ""
        lines.append(f"  {name} = {getattr(config, name)}{why}")
    return "\n".join(lines)


def _facts(engine: EngineArgs, args: PlanArgs) -> MachineFacts:
    """The GPU that is asked for, else the device of this machine."""
    if args.gpu_memory is None:
        from quire.platform import select_platform  # brings torch

        return select_platform(engine.device).facts()
    if engine.device == "cpu":
        raise ConfigError("--gpu-memory is the memory of a GPU; leave it out with --device cpu")
    name = args.gpu_memory.lower().replace("nvidia", "").replace(" ", "")
    if name in CARDS_MIB:
        total = int(CARDS_MIB[name] * MIB * (1 - DRIVER_SHARE))
        return MachineFacts("cuda", name.upper(), total, total - CONTEXT_BYTES)
    if not name[:1].isdigit():
        raise ConfigError(f"--gpu-memory {args.gpu_memory!r}: known cards are {', '.join(CARDS_MIB)}; or give 80GiB")
    total = parse_size(f"{name}gib" if name.replace(".", "").isdigit() else name, "gpu_memory") or 0
    return MachineFacts("cuda", f"a GPU of {total / GIB:.4g} GiB", total, max(0, total - CONTEXT_BYTES))


def _is_local(model: str | None) -> bool:
    name = model or BUILTIN_MODEL
    return name.startswith("builtin:") or Path(name).expanduser().is_dir()
