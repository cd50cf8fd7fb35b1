"""Building blocks of mmed/tokenizer.py: a backend per file format, special tokens, chat templates."""
