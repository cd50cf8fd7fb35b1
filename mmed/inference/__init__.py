"""The fast engine behind mmed/generate.py: fused weights, continuous batching, quantised decoding, option scoring."""
