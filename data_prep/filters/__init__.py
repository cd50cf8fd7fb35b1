"""Building blocks of the filtering commands: keywords, MinHash, personal data, language file checks."""
