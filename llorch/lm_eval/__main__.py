"""lm_eval's own command, which knows llorch's model, too."""

from lm_eval.__main__ import cli_evaluate

import llorch.lm_eval  # noqa: F401  registers it

if __name__ == "__main__":
    cli_evaluate()
