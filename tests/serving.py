"""A server in a process of its own, for the tests, and a small model that holds conversations."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import httpx

import llorch

SMALL = llorch.CausalLM.from_pretrained("shakespeare-1m")
TEMPLATE = (
    "{% for message in messages %}{{ message.role | upper }}:\n{{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
)


def chat_model(folder):
    """The small model with a chat template."""
    shutil.copytree(SMALL.path, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def command(*arguments):
    return [sys.executable, "-P", "-m", "llorch", *map(str, arguments)]


@contextmanager
def serving(*arguments, **environment):
    """`llorch serve`: yields its process and its address."""
    env = {name: value for name, value in os.environ.items() if name != "LLORCH_API_KEY"} | environment
    given = command("serve", "--port", 0, *arguments)
    process = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        line = process.stdout.readline()
        assert line.startswith("http://"), process.stderr.read()
        yield process, line.split()[0]
    finally:
        process.kill()
        process.communicate()


def client(address, **more):
    return httpx.Client(base_url=address, timeout=20, trust_env=False, **more)
