"""`llorch dump --from transformers`: what hooks see of every kind of model, and mistakes that are planted there."""

import encoders
import families
import pytest
from click.testing import CliRunner
from gpt2_models import random_model
from random_models import random_llama

from llorch.cli import main
from llorch.validate.ladder import dumps, plants, rungs, sources
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.sources import Model

IDS = [3, 7, 4, 8, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model of each, and llorch's dump."""
    peer = pytest.importorskip("transformers") and __import__("llorch.validate.ladder.peer", fromlist=["peer"])
    kept = {}

    def make(name):
        if name not in kept:
            folder = tmp_path_factory.mktemp(name) / "model"
            write = {"gpt2": random_model, "llama": random_llama}.get(name)
            if write is not None:
                write(folder)
            else:
                (encoders if name in encoders.CASES else families).write(folder, name)
            model = Model(folder)
            trace = sources.trace_engine(model, IDS)
            kept[name] = model, Dump(trace, dumps.metadata(model, "", trace), "ours")
        return kept[name]

    def dump(name, change=None):
        return Dump(peer.trace_transformers(make(name)[0], IDS, change), {}, "theirs")

    return make, dump


@pytest.mark.parametrize("name", ["nomic_bert", "modernbert", "bert", "gpt_neox"])
def test_hooks_see_what_modules_have_other_names_for(made, name):
    """Nomic BERT's modules aren't called as its files have them, and have queries, keys and values apart."""
    make, dump = made
    model, ours = make(name)
    theirs = dump(name)
    assert compare_dumps(theirs, ours).holds
    unseen = {tensor.kind for tensor in rungs.tensors(model, len(IDS)) if tensor.name not in theirs.arrays}
    assert unseen <= {"sum_0", "branches"}


SHOWN = {
    "gpt2": {"transposed", "keys-values", "heads", "no-bias", "eps", "activation", "no-scale", "bfloat16"},
    "llama": {"pairs", "keys-values", "gate-up", "heads", "no-norm-weight", "activation", "backwards"},
    "gemma3": {"pairs", "one-plus", "no-norm-weight", "no-embed-scale", "no-scale"},
    "olmo2": {"keys-values", "bfloat16"},
    "bert": {"transposed", "no-types", "eps", "padding"},
    "nomic_bert": {"transposed", "keys-values", "gate-up"},
}


@pytest.mark.parametrize("name,key", [(name, key) for name, keys in SHOWN.items() for key in sorted(keys)])
def test_a_planted_mistake_first_shows_where_it_says(made, name, key):
    make, dump = made
    layer = 1 if plants.PLANTS[key].in_block else None
    shows = []
    theirs = dump(name, lambda peer: shows.append(plants.plant(peer, key, layer)))
    first = compare_dumps(theirs, make(name)[1]).first
    assert first is not None and (first.tensor.kind, first.tensor.layer or 0) == (shows[0], layer or 0)


REFUSED = {
    ("gpt2", "pairs", 0): "has no rotation in block 0",
    ("gpt2", "gate-up", 0): "has no tensor mlp.gate",
    ("gemma3", "transposed", 0): "48 x 96: only a square matrix",
    ("llama", "no-bias", 0): "have no biases",
    ("llama", "no-types", None): "has no types of tokens",
    ("llama", "nothing", None): "there is no fault 'nothing' to plant, there are transposed, ",
    ("llama", "eps", 2): "can't be planted in block 2: there are 2",
    ("llama", "backwards", 0): "isn't in a block",
}


@pytest.mark.parametrize("name,key,layer", REFUSED)
def test_what_a_model_cant_have_is_refused(made, name, key, layer):
    with pytest.raises(ValueError, match=r".*") as error:
        made[1](name, lambda peer: plants.plant(peer, key, layer))
    assert REFUSED[name, key, layer] in str(error.value)


def test_the_command(made, tmp_path):
    folder = str(made[0]("gpt2")[0].path)
    run = CliRunner().invoke

    def dump(*arguments):
        return run(main, ["dump", *arguments, "--ids", "3,7,4,8", "--force"])

    theirs, ours = str(tmp_path / "theirs.safetensors"), str(tmp_path / "ours.safetensors")
    assert dump("--from", "transformers", folder, "-o", theirs).exit_code == 0
    assert dump(folder, "-o", ours).exit_code == 0
    assert run(main, ["compare", theirs, ours, "--model", folder]).exit_code == 0
    assert dump("--from", "transformers", folder, "-o", theirs, "--plant", "transposed:1").exit_code == 0
    assert dumps.read(theirs).metadata["planted"] == "transposed:1"
    found = run(main, ["compare", theirs, ours, "--model", folder])
    assert found.exit_code == 1 and "First divergence: h.1.attn.c_proj" in found.output
    assert "Diagnosis: attn.c_proj.weight is read as (out, in)" in found.output
    for arguments, status, words in (
        ((folder, "--model", folder), 2, "give one of them"),
        ((folder, "--plant", "eps"), 2, "needs --from transformers"),
        ((folder, "--from", "transformers", "--plant", "eps:x"), 1, "must be the number of a block"),
    ):
        found = dump(*arguments, "-o", theirs)
        assert found.exit_code == status and words in found.output, found.output
    listed = run(main, ["dump", "--list-plants"])
    assert listed.exit_code == 0 and listed.output.count("\n") == len(plants.PLANTS)
