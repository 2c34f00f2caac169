"""The method as pure functions on tensors and arrays: numpy and torch, nothing else."""
