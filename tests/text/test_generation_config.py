"""How tokens are chosen, by a model's own files: generation_config.json, and general.sampling of GGUF's metadata."""

import dataclasses
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import chat_templates as made
import numpy as np
import pytest
from helpers import rng
from random_models import llama_metadata, llama_tensors, write_gguf

import llorch
from llorch.models import llama
from llorch.text.generation_config import recommended
from llorch.text.sampling import SamplingParameters, next_token

TALK = [{"role": "user", "content": "Who goes there?"}]
QWEN = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1.3, "top_p": 0.95, "top_k": 20}
GREEDY = SamplingParameters()

FOLDERS = {
    "nothing": ({"eos_token_id": [1, 2], "pad_token_id": 0}, GREEDY, ()),
    "all": (QWEN, SamplingParameters(1.3, 20, 0.95, 1.05), ()),
    "no temperature": ({"do_sample": True, "top_k": 64}, SamplingParameters(1.0, 64), ()),
    "only drawn": ({"do_sample": True, "top_p": None}, SamplingParameters(1.0), ()),
    "not drawn": ({"temperature": 0.6, "top_p": 0.9}, SamplingParameters(0, None, 0.9), ()),
    "never drawn": ({"do_sample": False, "temperature": 0.6, "min_p": 0.1}, GREEDY, ()),
    "words for nothing": ({"do_sample": True, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1},
                          GREEDY, ()),
    "harmless": ({"num_beams": 1, "suppress_tokens": [], "min_p": 0, "typical_p": 1.0, "do_sample": True},
                 SamplingParameters(1.0), ()),
    "lacking": ({"do_sample": True, "min_p": 0.05, "num_beams": 4, "forced_bos_token_id": 0}, SamplingParameters(1.0),
                ("num_beams 4", "forced_bos_token_id 0", "min_p 0.05")),
}  # fmt: skip
FILES = {
    "nothing": ({}, GREEDY, ()),
    "all": ({"temp": 1.3, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1.05, "penalty_last_n": -1},
            SamplingParameters(1.3, 20, 0.95, 1.05), ()),
    "no temperature": ({"top_k": 64}, SamplingParameters(1.0, 64), ()),
    "words for nothing": ({"temp": -1.0, "top_k": -1, "top_p": 1.0, "penalty_repeat": 1.0, "penalty_last_n": 64},
                          GREEDY, ()),
    "no last tokens": ({"penalty_repeat": 1.5, "penalty_last_n": 0}, GREEDY, ()),
    "harmless": ({"min_p": 0.0, "mirostat": 0, "xtc_probability": 0.0, "xtc_threshold": 0.1}, GREEDY, ()),
    "lacking": ({"penalty_repeat": 1.5, "penalty_last_n": 64, "mirostat": 2, "sequence": "temperature;top_p"},
                SamplingParameters(repetition_penalty=1.5),
                ("sequence temperature;top_p", "mirostat 2", "penalty_last_n 64")),
}  # fmt: skip


def chat_model(folder, entries=None):
    """With what generation_config.json has."""
    model = made.random_model(folder)
    if entries is not None:
        (folder / "generation_config.json").write_text(json.dumps(entries))
    return model


def of_metadata(entries):
    metadata = {f"general.sampling.{name}": value for name, value in entries.items()}
    return recommended(SimpleNamespace(path=Path("m.gguf"), kind="gguf", config=metadata))


@pytest.mark.parametrize("name", FOLDERS)
def test_of_a_folder(name, tmp_path):
    entries, parameters, lacking = FOLDERS[name]
    (tmp_path / "generation_config.json").write_text(json.dumps(entries))
    found = recommended(tmp_path)
    assert (found.parameters, found.lacking) == (parameters, lacking)
    assert found.place == str(tmp_path / "generation_config.json")


@pytest.mark.parametrize("name", FILES)
def test_of_a_gguf_file(name):
    entries, parameters, lacking = FILES[name]
    found = of_metadata(entries)
    assert (found.parameters, found.lacking, found.place) == (parameters, lacking, "m.gguf")


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"do_sample": "yes"}, TypeError, "do_sample must be true or false, got yes"),
        ({"do_sample": True, "temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
        ({"do_sample": True, "temperature": -1}, ValueError, "temperature must be 0, or more than 0"),
        ({"top_k": 2.5}, TypeError, "top_k must be an integer, got 2.5"),
        ({"top_p": 0.0}, ValueError, "top_p must be more than 0"),
        ({"repetition_penalty": True}, TypeError, "repetition_penalty must be a number"),
    ],
)
def test_entries_that_cannot_be(entries, error, message, tmp_path):
    model = chat_model(tmp_path, entries)
    for _ in range(2):
        with pytest.raises(error, match=rf"generation_config\.json: {message}"):
            model.chat(TALK, 3)
    assert len(model.generate([5], 3)) <= 3, "what isn't chat doesn't look at them"


@pytest.mark.parametrize("name", ("all", "no temperature"))
def test_tokens_are_drawn_as_often_as_by_transformers(name, tmp_path):
    """Of the probabilities that its processors of logits leave, over the first 3000 seeds."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    process = pytest.importorskip("transformers.generation.logits_process", exc_type=ImportError)
    entries = FOLDERS[name][0]
    (tmp_path / "generation_config.json").write_text(json.dumps(entries))
    parameters, logits, seen = recommended(tmp_path).parameters, 2 * rng(27).standard_normal(80, np.float32), [3, 5, 5]
    theirs = process.LogitsProcessorList(
        make(entries[entry])
        for entry, make in (
            ("repetition_penalty", process.RepetitionPenaltyLogitsProcessor),
            ("temperature", process.TemperatureLogitsWarper),
            ("top_k", process.TopKLogitsWarper),
            ("top_p", process.TopPLogitsWarper),
        )
        if entry in entries
    )
    wanted = torch.softmax(theirs(torch.tensor([seen]), torch.tensor(logits[None])), -1)[0].numpy().astype(float)
    seeds = (dataclasses.replace(parameters, seed=seed) for seed in range(3000))
    often = np.bincount([next_token(logits, drawn, len(seen), seen) for drawn in seeds], minlength=80) / 3000
    bound = (wanted > 0) * (4 * np.sqrt(wanted * (1 - wanted) / 3000) + 3 / 3000)  # the unlikeliest come once or never
    assert (np.abs(often - wanted) <= bound).all()
    other = np.bincount(
        [next_token(logits, SamplingParameters(1.5, seed=s), 3, seen) for s in range(3000)], minlength=80
    )
    assert (np.abs(other / 3000 - wanted) > bound).any()  # negative control


def test_chat_follows_it_where_nothing_is_given(tmp_path):
    model, plain = chat_model(tmp_path / "model", QWEN), chat_model(tmp_path / "plain")
    qwen = {"temperature": 1.3, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "seed": 7}

    def say(model, **options):
        reply = model.chat(TALK, 20, **options)
        assert "".join(model.chat_stream(TALK, 20, **{**options, "seed": reply.seed})) == reply.text
        return reply.ids

    assert say(model, seed=7) == say(plain, **qwen) == say(model, **qwen)
    for name, value in {"temperature": 0.3, "top_k": None, "top_p": 0.2, "repetition_penalty": None}.items():
        assert say(model, seed=7, **{name: value}) == say(plain, **{**qwen, name: value})
    unlike = [say(plain, **{**qwen, name: None}) for name in ("top_k", "repetition_penalty")]
    unlike += [say(plain, **{**qwen, "temperature": 0.3}), say(plain, **{**qwen, "top_p": 0.2}), say(plain)]
    assert say(plain, **qwen) not in unlike  # negative control: each of them would be missed
    greedy = plain.chat(TALK, 20, repetition_penalty=1.05)
    assert say(model, temperature=0) == greedy.ids and plain.chat(TALK, 20).seed is None
    assert model.chat(TALK, 3).seed is not None, "a fresh one, that is told"
    ids = model.chat_prompt(TALK)
    assert model.generate(ids, 20) == plain.generate(ids, 20) != greedy.ids, "generate stays as it is documented"


def test_what_is_lacking_is_said_once(tmp_path):
    model = chat_model(tmp_path, {"do_sample": True, "min_p": 0.05, "top_k": 5})
    with pytest.warns(UserWarning, match=r"generation_config\.json asks for min_p 0\.05, which llorch hasn't"):
        model.chat(TALK, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.chat(TALK, 3)


def test_a_gguf_file_recommends_what_the_folder_does(tmp_path):
    """0.95 and 1.05 are other numbers in float32, as a GGUF file has them."""
    pytest.importorskip("gguf")
    folder = chat_model(tmp_path / "folder", QWEN)
    config, tensors = llama_tensors(json.loads((tmp_path / "folder" / "config.json").read_text()))
    metadata = llama_metadata(config) | made.gguf_metadata(made.library(), made.CHATML)
    names = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
    metadata |= {f"general.sampling.{names.get(k, k)}": v for k, v in QWEN.items() if k != "do_sample"}
    file = llorch.CausalLM.from_pretrained(
        write_gguf(tmp_path / "model.gguf", llama.FAMILY, config, tensors, "llama", metadata)
    )
    assert file.source.config["general.sampling.top_p"] != 0.95
    assert file.chat_sampling == folder.chat_sampling == SamplingParameters(1.3, 20, 0.95, 1.05)
    assert file.chat(TALK, 9, seed=3).ids == folder.chat(TALK, 9, seed=3).ids
