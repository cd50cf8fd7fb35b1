"""The fast engine of mmed/generate.py: fused weights, continuous batching, int8 decoding, option scoring."""
