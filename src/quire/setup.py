"""From what the user typed to a resolved EngineConfig: find the checkpoint, read its config, look at the machine, resolve."""

from dataclasses import replace

from quire.config import Decision, EngineArgs, EngineConfig
from quire.hf_config import HfConfig
from quire.hub import model_folder, resolve_tokenizer
from quire.platform import select_platform
from quire.resolve import resolve


def load_config(args: EngineArgs, *, serving: bool = False) -> tuple[EngineConfig, list[Decision]]:
    """Resolves `args` on this machine; downloads the checkpoint if it has to.

    Raises SetupError types: HubError, CheckpointError, ConfigError, UnsupportedModel.
    """
    model_dir = model_folder(args)
    hf = HfConfig.from_dir(model_dir, args.hf_overrides)
    facts = select_platform(args.device).facts()
    config, decisions = resolve(args, hf, facts, model_dir=str(model_dir), serving=serving)
    return replace(config, tokenizer_dir=_tokenizer_dir(args)), decisions


def _tokenizer_dir(args: EngineArgs) -> str:
    """Local folder of the tokenizer, if it is another than the model's."""
    if args.tokenizer is None or args.tokenizer == args.model:
        return ""
    return str(resolve_tokenizer(args.tokenizer, args.tokenizer_revision or None, args.download_dir, args.hf_token))
