"""NVIDIA GPUs from compute capability 8.0 on: sparse layers as kernels of their own, which Triton compiles without a GPU."""
