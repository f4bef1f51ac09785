"""What the benchmarks compare engines by: a model of any family, from a GGUF file back into Hugging Face's folder."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from families import CASES, write_file
from helpers import assert_same_bits, rng, same_bits

import llorch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "model_files.py"
IDS = rng(26).integers(0, 67, 12).tolist()
MARKS = {"gpt_neox": "by_head", "gemma2": "unit", "gemma3": "unit"}


@pytest.fixture(scope="module")
def model_files():
    pytest.importorskip("gguf")
    spec = importlib.util.spec_from_file_location("model_files", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CASES)
def test_a_folder_has_the_files_bits(model_files, name, tmp_path, monkeypatch):
    file = write_file(tmp_path / "model.gguf", name)
    wanted = file.forward(IDS)
    folder = model_files.write_folder(file.path, tmp_path / "folder")
    assert_same_bits(llorch.CausalLM.from_pretrained(folder).forward(IDS), wanted)
    if mark := MARKS.get(name):  # negative control: as it lies in GGUF
        parameters = [(*names, dataclasses.replace(one, **{mark: False})) for *names, one in all_of(file)]
        monkeypatch.setattr(type(file.graph), "all_parameters", lambda graph: parameters)
        model_files.write_folder(file.path, tmp_path / "folder")
        monkeypatch.undo()
        assert not same_bits(llorch.CausalLM.from_pretrained(tmp_path / "folder").forward(IDS), wanted)


def all_of(file):
    return list(file.graph.all_parameters())


@pytest.mark.parametrize("name", ["gpt_neox", "gemma2"])
def test_transformers_reads_it(model_files, name, tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    file = write_file(tmp_path / "model.gguf", name)
    folder = model_files.write_folder(file.path, tmp_path / "folder")
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(file.forward(IDS) - wanted).max() <= 2e-5 * wanted.std()
