"""What mmed/tokenizer.py is made of: a backend per kind of tokenizer file, special tokens, chat templates."""
