"""The ladder: every tensor of inference, dumps of any engine, the first that diverges, and the fault that gives it."""
