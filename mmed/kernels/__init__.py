"""CPU kernels: the only place that may use private torch operators."""
