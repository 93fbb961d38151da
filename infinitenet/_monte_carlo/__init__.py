"""Kernels of finite random networks, averaged over draws of their weights."""
