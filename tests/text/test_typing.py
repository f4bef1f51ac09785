"""The types reach the user: text for a text, ids for ids, and no argument of another name or type."""

from pathlib import Path

import pytest

TYPED = Path(__file__).parent / "typed.py"
# Other libraries' own types are none of ours; following torch's alone takes ten times as long as all the rest.
OTHERS = "torch transformers sentence_transformers onnxruntime ray pyarrow lm_eval langchain_core llama_index"
SKIPPED = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in OTHERS.split())
CONFIG = f"[mypy]\nstrict = True\nfollow_imports = silent\n{SKIPPED}"


def test_the_types_that_a_user_sees(tmp_path):
    """With a negative control in the same run: a copy of the file with one wrong type."""
    api = pytest.importorskip("mypy.api")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(TYPED.read_text().replace('(model.generate("O", 3), str)', '(model.generate("O", 3), list[int])'))
    config = tmp_path / "mypy.ini"
    config.write_text(CONFIG)
    options = ["--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    found, _, _ = api.run([*options, str(TYPED), str(wrong)])
    assert 'wrong.py:20: error: Expression is of type "str", not "list[int]"' in found, found
    assert "Found 1 error in 1 file" in found, found
