"""Text from a model: tokenizer, sampling, generation, scores. Knows no family."""
