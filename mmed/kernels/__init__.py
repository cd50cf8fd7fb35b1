"""Parts of a model behind one call: fast attention on CPU and GPU (the only place that may use private torch
operators), RoPE stretched for long contexts, and activations."""
