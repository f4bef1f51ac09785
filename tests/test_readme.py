"""README's table of families is the registry."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_families_is_the_registrys():
    spec = importlib.util.spec_from_file_location("family_table", ROOT / "tools" / "family_table.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = (ROOT / "README.md").read_text()
    assert tool.readme(text) == text
    changed = text.replace("`gemma2`", "`gemma4`")  # the negative control
    assert tool.readme(changed) != changed
