"""Sprout: a neural network that keeps learning on a microcontroller. Host compiler and tools."""
