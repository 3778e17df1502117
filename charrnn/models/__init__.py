"""Architectures: layers put together, and the parameters of a whole model."""
