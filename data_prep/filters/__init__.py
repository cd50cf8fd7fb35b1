"""What the filtering commands are made of: keywords, MinHash, personal data, the check of a language file."""
