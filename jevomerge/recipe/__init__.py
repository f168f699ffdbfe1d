"""mergekit's YAML <-> which tensors are merged with which coefficients."""
