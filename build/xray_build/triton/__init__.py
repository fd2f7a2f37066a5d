"""NVIDIA's own tritonserver on this machine."""
