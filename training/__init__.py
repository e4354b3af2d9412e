"""Makes quire's bundled demo model: text generator, tokenizer, trainer, evaluation, export. See README.md."""
