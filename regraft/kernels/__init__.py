"""Compiled kernels: C sources, how they are built and loaded, and typed wrappers over pointers. No torch, no policy."""
