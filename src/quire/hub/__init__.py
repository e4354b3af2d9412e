"""Where a model's files are: a bundled model, a local folder, the Hugging Face hub, or ModelScope."""

from quire.hub.resolve import model_folder, resolve_model, resolve_tokenizer

__all__ = ["model_folder", "resolve_model", "resolve_tokenizer"]
