"""Models: graphs, the engine that runs them, and one module a family."""
