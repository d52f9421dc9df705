"""A model file in NVIDIA's Triton Inference Server."""
