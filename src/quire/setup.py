"""From what the user typed to a resolved EngineConfig: find the checkpoint, read its config, look at the machine, resolve."""

from quire.config import BUILTIN_MODEL, Decision, EngineArgs, EngineConfig
from quire.hf_config import HfConfig
from quire.hub import resolve_model
from quire.platform import select_platform
from quire.resolve import resolve


def load_config(args: EngineArgs, *, serving: bool = False) -> tuple[EngineConfig, list[Decision]]:
    """Resolves `args` on this machine; downloads the checkpoint if it has to.

    Raises SetupError types: HubError, CheckpointError, ConfigError, UnsupportedModel.
    """
    model_dir = resolve_model(
        args.model or BUILTIN_MODEL,
        revision=args.revision,
        download_dir=args.download_dir,
        token=args.hf_token,
        load_format=args.load_format,
    )
    hf = HfConfig.from_dir(model_dir, args.hf_overrides)
    facts = select_platform(args.device).facts()
    return resolve(args, hf, facts, model_dir=str(model_dir), serving=serving)
