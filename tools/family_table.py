#!/usr/bin/env python3
"""README's table of families and formats, from the registry: python tools/family_table.py [--write]."""

import sys
from pathlib import Path

from llorch.files.tensor import BLOCKS
from llorch.models.registry import families

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- families: tools/family_table.py -->", "<!-- end of families -->"


def code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "not"


KINDS = {"decoder": "decoder", "encoder": "encoder (embeddings, reranking)"}


def table() -> str:
    blocks = ", ".join(name for name, format in BLOCKS.items() if format.read)
    gguf, lines = f"GGUF in F32, F16, BF16, {blocks}: `architecture`", []
    for kind, title in KINDS.items():
        lines += [
            f"| {title} | safetensors in F32, F16, BF16: `model_type` | {gguf} |",
            "| --- | --- | --- |",
        ]
        for family in sorted(families(), key=lambda family: family.name.lower()):
            if family.kind == kind:
                lines.append(f"| {family.name} | {code(family.model_types)} | {code(family.architectures)} |")
        lines.append("")
    return "\n".join(lines[:-1])


def readme(text: str) -> str:
    """README with the table in its place."""
    before, found, rest = text.partition(BEGIN + "\n")
    _, ends, after = rest.partition("\n" + END)
    if not (found and ends):
        raise ValueError(f"README.md must have the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    if "--write" in sys.argv:
        README.write_text(readme(README.read_text()))
    print(table())


if __name__ == "__main__":
    main()
