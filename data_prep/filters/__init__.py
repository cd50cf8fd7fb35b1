"""What the filtering commands are made of: keyword matcher, MinHash, personal data, the check of a language
file.
"""
