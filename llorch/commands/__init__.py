"""The commands of `llorch`, one module each, whose `command` llorch/cli.py imports when it is asked for."""
