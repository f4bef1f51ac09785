"""Receipts: a true one is equal wherever it is checked; whatever is changed in it, or in the model, is found."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gpt2_models import TINY, random_model, random_tensors, save
from helpers import num_threads
from random_models import LLAMA, llama_metadata, llama_tensors, random_llama, write_gguf
from random_models import save as save_llama
from safetensors.numpy import load_file, save_file

import llorch
from llorch import receipts
from llorch.cli import main
from llorch.models import llama
from llorch.receipts import digests
from llorch.receipts.record import PARTS, part, schema
from llorch.text.batch import Batch, Request, Sequence
from llorch.text.sampling import SamplingParameters

MODEL = llorch.CausalLM.from_pretrained("shakespeare-1m")
WAYS = SamplingParameters(0.9, top_k=60, top_p=0.95, repetition_penalty=1.1, seed=4, frequency_penalty=0.2)


def receipt_of(model=MODEL, prompt="ROMEO:", count=24, parameters=WAYS, beside=(), memory=None, **more):
    """Made in a batch with others."""
    sequence = Sequence(model, Request(prompt, count, parameters, links=True, **more))
    batch = Batch(model, 8, 40, memory)
    for request in beside:
        batch.add(request)
    batch.admit(sequence)
    while batch:
        batch.step()
    return receipts.make(model, sequence)


RECEIPT = receipt_of()


def forged(receipt, **changes):
    """With other fields, and the hashes of these: what somebody makes who knows how."""
    made = receipt | changes
    return made | {name: part(made, fields) for name, fields in PARTS.items() if not set(fields).isdisjoint(changes)}


# ---- true ones ------------------------------------------------------------------------------------------------


def test_a_receipt_is_equal_everywhere(isa):
    """Made as one of eight, cold and warm, by two threads on the best instruction set; checked by each, 1 thread."""
    beside = [Request([i + 3] * 30, 20, SamplingParameters(1.0, seed=i)) for i in range(7)]
    made = receipt_of(beside=beside, memory=20 * MODEL.cache_nbytes(1))
    assert made == RECEIPT
    with num_threads(1):
        assert receipts.verify(made, MODEL) == receipts.Verdict(
            0, "", None, "equal: 24 tokens, each drawn again from logits of the same bits"
        )


def test_the_receipt_that_other_machines_check():
    """What .ci/aarch64_receipt verifies: whoever changes what a receipt has writes `receipts.dumps(RECEIPT)` there."""
    kept = (Path(__file__).parent.parent / "data" / "receipt.json").read_text()
    assert kept == receipts.dumps(RECEIPT)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": [5, 6, 7]},
        {"prompt": [5, 6, 7], "as_text": True},
        {"parameters": SamplingParameters()},
        {"count": 0},
        {"count": 1, "prompt": "O"},
        {"stop": [" my", "\n\n"]},
        {"stop": [199, 12], "prompt": "KING"},
        {"prompt": [i % 90 + 5 for i in range(150)], "count": 106},
        {"schema": '{"type":"string","maxLength":9}', "parameters": SamplingParameters(1.0, seed=3)},
    ],
)
def test_all_ways_to_end(options):
    if "schema" in options:
        pytest.importorskip("llguidance")
    made = receipt_of(**options)
    assert receipts.verify(receipts.loads(receipts.dumps(made)), MODEL).status == 0
    assert len(made["chain"]) == len(made["output"]) + (made["end"] is not None)
    statement = receipts.statement(made)
    assert receipts.loads(json.dumps(statement)) == made


def test_the_chain_is_what_the_docs_say():
    logits = MODEL.forward([*RECEIPT["prompt"], *RECEIPT["output"]])
    link = b""
    for place, wanted in enumerate(RECEIPT["chain"]):
        row = logits[len(RECEIPT["prompt"]) - 1 + place]
        link = hashlib.sha256(link + row.astype("<f4").tobytes()).digest()
        assert link.hex() == wanted
    text = json.dumps({"prompt": RECEIPT["prompt"]}, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == RECEIPT["prompt_sha256"]


def test_the_schema_is_a_schema_and_has_every_field():
    assert list(schema()["properties"]) == list(RECEIPT) == schema()["required"]
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    checker = jsonschema.Draft202012Validator(schema())
    checker.validate(RECEIPT)
    for name, value in (("seed", -1), ("top_p", 1.5), ("chain", ["x"]), ("prompt", []), ("more", 1), ("end", 1.5),
                        ("continues", 1), ("finish_reason", "error"), ("model_graph", ""), ("stop", [1])):  # fmt: skip
        assert not checker.is_valid(RECEIPT | {name: value})
        with pytest.raises(receipts.Malformed, match=name):
            receipts.loads(json.dumps(RECEIPT | {name: value}))
    for name in RECEIPT:
        with pytest.raises(receipts.Malformed, match=f"{name} is missing"):
            receipts.loads(json.dumps({key: value for key, value in RECEIPT.items() if key != name}))
    for text in ("", "[]", "{", "[" * 9000, '{"_type":"https://in-toto.io/Statement/v1","predicateType":"x"}'):
        with pytest.raises(receipts.Malformed):
            receipts.loads(text)
    moved = receipts.statement(RECEIPT) | {"subject": [{"name": "output", "digest": {"sha256": "0" * 64}}]}
    with pytest.raises(receipts.Malformed, match="subject"):
        receipts.loads(json.dumps(moved))
    assert all(line.startswith((' "', "{", "}")) for line in receipts.dumps(RECEIPT).splitlines()), "a field a line"


# ---- what was changed -----------------------------------------------------------------------------------------

OTHER = {
    "max_new_tokens": 25,
    "temperature": 0.91,
    "top_k": 59,
    "top_p": 0.2,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.1,
    "frequency_penalty": None,
    "seed": 5,
    "stop": ["O"],
    "end_ids": [],
    "continues": False,
    "prompt": [859, 27],
    "output": [*RECEIPT["output"][:7], 3, *RECEIPT["output"][8:]],
    "end": 0,
    "finish_reason": "stop",
    "text": RECEIPT["text"] + " ",
}


@pytest.mark.parametrize("name", OTHER)
def test_a_changed_field_is_named(name):
    what = next(each.removesuffix("_sha256") for each, fields in PARTS.items() if name in fields)
    verdict = receipts.verify(RECEIPT | {name: OTHER[name]}, MODEL)
    assert (verdict.status, verdict.what) == (1, what)
    if name == "output":
        assert verdict.position == 7
    if name == "prompt":
        assert verdict.position == 0


@pytest.mark.parametrize("name", ["output", "prompt", "seed", "top_p", "finish_reason", "text", "repetition_penalty"])
def test_a_forgery_with_right_hashes_is_found(name):
    verdict = receipts.verify(forged(RECEIPT, **{name: OTHER[name]}), MODEL)
    wanted = {"output": ("output", 7), "prompt": ("bits", 0)}.get(name)
    assert verdict.status == 1
    if wanted:
        assert (verdict.what, verdict.position) == wanted
    elif name in ("seed", "top_p", "repetition_penalty"):
        assert verdict.what == "parameters" and verdict.position is not None
    else:
        assert verdict.what == "output"


@pytest.mark.parametrize("place", [0, 9, 23])
def test_a_changed_link_is_found(place):
    chain = list(RECEIPT["chain"])
    chain[place] = chain[place][:-1] + ("0" if chain[place][-1] != "0" else "1")
    verdict = receipts.verify(RECEIPT | {"chain": chain}, MODEL)
    assert (verdict.status, verdict.what, verdict.position) == (1, "bits", place)
    short = receipts.verify(RECEIPT | {"chain": chain[:-1]}, MODEL)
    assert (short.status, short.what, short.position) == (1, "bits", 23)


@pytest.mark.parametrize("name", PARTS)
def test_a_changed_hash_is_found(name):
    assert receipts.verify(RECEIPT | {name: "0" * 64}, MODEL).status == 1


@pytest.mark.parametrize("name", ["format", "contract", "compute", "model_tensors", "model_graph", "tokenizer"])
def test_of_another_model_it_can_not_be_told(name):
    verdict = receipts.verify(RECEIPT | {name: "0" * 64}, MODEL)
    assert (verdict.status, verdict.what) == (2, "model") and f"{name} is 000" in verdict.message


def test_what_no_model_makes():
    for changes in ({"prompt": [5000]}, {"output": [5000], "chain": RECEIPT["chain"][:1]}, {"max_new_tokens": 9999},
                    {"temperature": 0.5, "seed": None}):  # fmt: skip
        assert receipts.verify(forged(RECEIPT, **changes), MODEL).status == 1


@pytest.mark.parametrize("name", ["h.0.attn.c_attn.weight", "h.3.mlp.c_proj.bias", "ln_f.weight"])
def test_one_bit_of_one_weight_is_found(tmp_path, name):
    """As another model's; and, where somebody writes this model's hash into the receipt, by the logits' bits."""
    shutil.copytree(MODEL.path, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors, name = load_file(file), f"transformer.{name}"
    values = np.array(tensors[name])
    values.reshape(-1).view(np.uint16)[77] ^= 1
    save_file(tensors | {name: values}, file)
    other = llorch.CausalLM.from_pretrained(tmp_path / "m")
    verdict = receipts.verify(RECEIPT, other)
    assert (verdict.status, verdict.what) == (2, "model") and "model_tensors" in verdict.message
    verdict = receipts.verify(RECEIPT | {"model_tensors": digests.of_model(other)["model_tensors"]}, other)
    assert (verdict.status, verdict.what) == (1, "bits")


def test_a_receipt_needs_a_sequence_that_has_ended():
    sequence = Sequence(MODEL, Request("O", 3))
    with pytest.raises(ValueError, match="has ended by itself"):
        receipts.make(MODEL, sequence)


# ---- which model ----------------------------------------------------------------------------------------------


def test_the_hash_is_of_values_and_names(tmp_path):
    """In one file and in shards, with a tied head or a copy of it, in GGUF or safetensors, in a type that holds the
    same values: one hash. Another value, name or number of the configuration: another."""
    config, tensors = llama_tensors()
    plain = random_llama(tmp_path / "plain")
    wanted = digests.of_model(plain)
    copied = save_llama(tmp_path / "copied", LLAMA, tensors | {"lm_head.weight": tensors["embed_tokens.weight"]})
    shards = save_llama(tmp_path / "shards", LLAMA, tensors)
    whole = load_file(shards / "model.safetensors")
    (shards / "model.safetensors").unlink()
    index = {}
    for i, name in enumerate(sorted(whole)):
        file = f"model-{i % 3}.safetensors"
        index[name] = file
    for file in set(index.values()):
        save_file({name: whole[name] for name in whole if index[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    paths = [copied, shards]
    if pytest.importorskip("gguf"):
        paths.append(write_gguf(tmp_path / "m.gguf", llama.FAMILY, config, tensors, "llama", llama_metadata(config)))
    for path in paths:
        assert digests.of_model(llorch.CausalLM.from_pretrained(path)) == wanted, path
    narrow = random_llama(tmp_path / "narrow", dtype="bfloat16")
    assert digests.of_model(narrow) == digests.of_model(
        llorch.CausalLM.from_pretrained(tmp_path / "plain", dtype="bfloat16")
    )
    assert digests.of_model(narrow)["model_tensors"] != wanted["model_tensors"]
    for entries in ({"rms_norm_eps": 1e-5}, {"rope_theta": 9999.0}, {"num_key_value_heads": 6}):
        found = digests.of_model(random_llama(tmp_path / "other", entries))
        assert found["model_graph"] != wanted["model_graph"]
    assert wanted["tokenizer"] == ""


@pytest.mark.parametrize("compute", ["float32", "int16"])
def test_blocks_of_integers(tmp_path, compute):
    """Quantised when loaded or in the file: one hash. By integers it is another function, and the blocks count."""
    gguf = pytest.importorskip("gguf")
    entries = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    config, tensors = llama_tensors(entries)

    def quantise(name, values):
        if values.ndim < 2:
            return values, None
        return llorch.quantize(values, "Q8_0"), gguf.GGMLQuantizationType.Q8_0

    file = write_gguf(tmp_path / "m.gguf", llama.FAMILY, config, tensors, "llama", llama_metadata(config), quantise)
    folder = save_llama(tmp_path / "m", LLAMA | entries, tensors)
    ours = llorch.CausalLM.from_pretrained(folder, dtype="q8_0", compute=compute)
    theirs = llorch.CausalLM.from_pretrained(file, compute=compute)
    assert digests.of_model(ours) == digests.of_model(theirs)
    made = receipt_of(ours, [3, 4, 5], 8, SamplingParameters(1.0, seed=2))
    assert made["compute"] == compute and receipts.verify(made, theirs).status == 0
    other = llorch.CausalLM.from_pretrained(file, compute="int16" if compute == "float32" else "float32")
    assert receipts.verify(made, other).status == 2
    plain = llorch.CausalLM.from_pretrained(folder)
    wide = llorch.CausalLM.from_pretrained(file, dtype="float32")
    assert receipts.verify(made, plain).status == 2
    assert receipts.verify(made, wide).status == (0 if compute == "float32" else 2)
    small = random_model(tmp_path / "gpt2", {"n_embd": 96, "n_positions": 64})
    quantised = llorch.CausalLM.from_pretrained(small.path, dtype="q8_0", compute=compute)
    mine = receipt_of(quantised, [3, 4, 5], 8, SamplingParameters(1.0, seed=2))
    assert receipts.verify(mine, quantised).status == 0 and receipts.verify(mine, small).status == 2


def test_gpt2s_transposed_matrices_count_once(tmp_path):
    model = llorch.GPT2.from_pretrained(save(tmp_path / "m", TINY, random_tensors(TINY)))
    ids = receipt_of(model, [3, 4, 5], 5, SamplingParameters(1.0, seed=2))
    assert receipts.verify(ids, model).status == 0 and ids["text"] is None and ids["tokenizer"] == ""


def test_the_tokenizer_counts():
    found = MODEL.tokenizer
    other = found.library.from_str(found.library.to_str())
    assert digests.tokenizer(found) == RECEIPT["tokenizer"]
    other.add_tokens(["<another>"])

    class Other:
        library = other

    assert digests.tokenizer(Other) != RECEIPT["tokenizer"]


# ---- commands -------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="llorch")


def test_generate_and_verify(tmp_path):
    file = tmp_path / "r.json"
    options = ("-n", 12, "--temperature", 0.8, "--seed", 6)
    for more in ((), ("--in-toto",)):
        assert run("generate", "ROMEO:", *options, "--receipt", file, *more).exit_code == 0
        done = run("verify", file)
        assert done.exit_code == 0 and done.stdout.endswith(
            "equal: 12 tokens, each drawn again from logits of the same bits\n"
        )
    refused = run("generate", "ROMEO:", *options, "--in-toto")
    assert refused.exit_code == 2 and "--receipt FILE" in refused.stderr
    text = json.loads(file.read_text())["predicate"]["text"]
    assert text == MODEL.generate("ROMEO:", 12, temperature=0.8, seed=6)
    assert run("verify", file, "--dtype", "float16").exit_code == 2
    assert run("verify", tmp_path / "none").exit_code == 2
    file.write_text("{}")
    assert run("verify", file).exit_code == 2
    file.write_text(receipts.dumps(RECEIPT | {"seed": 5}))
    assert run("verify", file).exit_code == 1


def test_some_of_many(tmp_path):
    file = tmp_path / "all.jsonl"
    lines = [RECEIPT] * 20
    lines[13] = RECEIPT | {"seed": 5}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("verify", file)
    assert done.exit_code == 1 and done.stdout.count("equal") == 19 and "line 14: parameters" in done.stdout
    few = [run("verify", file, "--sample", 4, "--seed", seed) for seed in (1, 1, 2)]
    assert few[0].stdout == few[1].stdout != few[2].stdout and few[0].stdout.count("\n") == 4
    assert {run("verify", file, "--sample", 4, "--seed", seed).exit_code for seed in (0, 1)} == {0, 1}
