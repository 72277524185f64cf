"""Custom operations. One file each: what it means in plain PyTorch, the registered operator, the
Triton kernel, the function to call."""
