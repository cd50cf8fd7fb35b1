"""What mmed/tokenizer.py is made of: tokenizer files, byte-pair encoding, sentencepiece models, chat templates."""
