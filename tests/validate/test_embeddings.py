"""The end of an encoder's ladder: pooling, and the embedding of a text; and texts that were dumped with padding."""

import numpy as np
import pytest
from click.testing import CliRunner
from sentence_models import MODULES, POOLING, save, write_dense, write_modules

import llorch
from llorch.cli import main
from llorch.validate.ladder import dumps, faults, plants, selftest, sources
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.network import Kernels
from llorch.validate.ladder.run import run_ladder

TEXT = "hello sun shines"


def folder_of(folder, pooling=None, dense=False):
    save(folder)
    config = {**POOLING, **({} if pooling is None else {"pooling_mode_mean_tokens": False, pooling: True})}
    modules = {"Transformer": MODULES["Transformer"], "Pooling": ("1_Pooling", config)}
    if dense:
        write_dense(folder / "2_Dense")
        modules |= {"Dense": ("2_Dense", None)}
    return write_modules(folder, {**modules, "Normalize": ("3_Normalize", None)})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model, and what llorch dumps of it."""
    model = sources.Model(folder_of(tmp_path_factory.mktemp("plain") / "model"))
    trace = sources.trace_engine(model, model.ids(TEXT))
    return model, Dump(trace, dumps.metadata(model, TEXT, trace), "ours")


@pytest.mark.parametrize("pooling", [None, "pooling_mode_cls_token", "pooling_mode_lasttoken"])
@pytest.mark.parametrize("dense", [False, True])
def test_the_ladder_ends_with_the_embedding(tmp_path, pooling, dense):
    folder = folder_of(tmp_path / "model", pooling, dense)
    found = run_ladder(folder, TEXT, peer=False)
    assert found.holds
    names = [result.tensor.name for result in found.tensors]
    assert names[-4:] == (["pooled", "dense.0", "dense.0.act", "sentence_embedding"] if dense else
                          ["h.1.mlp.sum", "h.1", "pooled", "sentence_embedding"])  # fmt: skip
    model = sources.Model(folder)
    trace = sources.trace_engine(model, model.ids(TEXT))
    encoded = llorch.TextEncoder.from_pretrained(folder).encode(TEXT)
    assert (trace["sentence_embedding"].view(np.uint32) == encoded.view(np.uint32)).all()


def test_a_dump_knows_its_end(plain, tmp_path):
    model, ours = plain
    dumps.write(tmp_path / "ours.safetensors", ours.arrays, ours.metadata)
    read = dumps.read(tmp_path / "ours.safetensors")
    assert read.graph == model.graph and read.tensors[-1].name == "sentence_embedding"
    wrong = Dump(ours.arrays, ours.metadata | {"embedding": '{"pooling": "max", "after": []}'}, "ours")
    with pytest.raises(ValueError, match="ours has an entry embedding in its metadata that isn't llorch's"):
        compare_dumps(Dump({"pooled": ours.arrays["pooled"]}, {}, "theirs"), wrong)


def with_padding(model, ids, tokens, attended=False):
    """What an engine dumps of a text with padding behind it: all positions."""
    network = model.network.copy()
    network.padding = tokens
    for block in network.blocks:
        block.padded = attended
    found = {"ids": np.array([*ids, *[model.network.padding_id] * tokens])[None]}
    for place, (steps, t) in enumerate(network.with_padding(ids, Kernels()), -1):
        prefix = f"h.{place}" if 0 <= place < len(network.blocks) else ""
        found |= {f"{prefix}.{s.name}".strip("."): t[s.name][None] for s in steps if s.rung}
    return Dump(found, {}, "theirs")


@pytest.mark.parametrize("tokens", [1, 6])
def test_a_text_with_padding_is_read_without_it(plain, tokens):
    model, ours = plain
    found = compare_dumps(with_padding(model, ours.ids, tokens), ours)
    assert found.holds and found.compared == len(ours.tensors)
    wanted = f"the first {len(ours.ids)} of {len(ours.ids) + tokens} positions: the others are padding"
    assert {row.note for row in found.rows} == {wanted, ""}


@pytest.mark.parametrize("kept", [None, "attn.c_proj", "h.0"])
def test_attention_to_padding_is_named(plain, kept):
    """Also where only what comes behind the context was dumped."""
    model, ours = plain
    theirs = with_padding(model, ours.ids, 6, attended=True)
    if kept:
        theirs.arrays = {name: a for name, a in theirs.arrays.items() if name == "ids" or name.endswith(kept)}
    found = compare_dumps(theirs, ours, model.network)
    assert found.first.tensor.name == ("h.0" if kept == "h.0" else f"h.0.{kept or 'attn.context'}")
    assert found.diagnosis.says == "padding is attended to: 6 tokens behind the prompt"


def test_the_number_of_tokens_of_padding_is_found_where_they_were_cut_off(plain):
    model, ours = plain
    for key in ("padding-attended", "pool-padding", "pool-divisor"):
        (one,) = [one for one in faults.solvable(model.network) if one.key == key]
        fault = one.of(11)
        theirs = Dump(selftest.dump_of(fault.inject(model.network, 0), ours, (0,)), {}, "theirs")
        diagnosis = compare_dumps(theirs, ours, model.network, further=False).diagnosis
        assert (diagnosis.key, diagnosis.value) == (key, 11), key


def test_a_right_embedding_alone_agrees_and_a_wrong_one_doesn_t(plain):
    model, ours = plain
    right = ours.arrays["sentence_embedding"]
    assert compare_dumps(Dump({"sentence_embedding": right[None]}, {}, "theirs"), ours).holds
    other = Dump({"text_embedding": ours.arrays["pooled"]}, {}, "theirs")
    found = compare_dumps(other, ours, model.network)
    assert found.first.tensor.name == "sentence_embedding"
    assert found.diagnosis.key == "sentence_embedding-not-normalised"


@pytest.mark.parametrize("key,shows,named", [
    (None, None, None), ("pooling", "pooled", "pool-cls"), ("padding", "h.0.attn.context", "padding-attended"),
    ("not-normalised", "sentence_embedding", "sentence_embedding-not-normalised"),
])  # fmt: skip
def test_transformers_has_the_embedding_too(plain, key, shows, named):
    pytest.importorskip("transformers")
    from llorch.validate.ladder.peer import trace_transformers

    model, ours = plain
    plant = None if key is None else lambda peer: plants.plant(peer, key)
    theirs = trace_transformers(model, ours.ids, plant)
    assert {"pooled", "sentence_embedding"} <= {*theirs}
    found = compare_dumps(Dump(theirs, {}, "theirs"), ours, model.network)
    assert (found.first and found.first.tensor.name) == shows
    assert (found.diagnosis and found.diagnosis.key) == named


def test_the_transformer_may_lie_in_a_folder_of_its_own(tmp_path):
    folder = tmp_path / "model"
    save(folder / "0_Transformer")
    modules = {"Transformer": ("0_Transformer", None), "Pooling": MODULES["Pooling"]}
    write_modules(folder, modules)
    result = CliRunner().invoke(main, ["validate", "--model", str(folder), "--prompt", TEXT, "--no-peer"])
    assert result.exit_code == 0, result.output
    assert "pooled" in result.output and "sentence_embedding" not in result.output
