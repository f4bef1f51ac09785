"""Weights of two models, tensor by tensor: `llorch compare-weights`."""
