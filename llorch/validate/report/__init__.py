"""What the validator shows: the terminal, the page, Markdown and JSON."""
