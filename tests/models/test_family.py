"""A third family takes one table and one text (tests/toy.py) and no change elsewhere."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import toy
from helpers import assert_same_bits, rng, same_bits
from random_models import by_reference, random_tensors, save, tensors_of

import llorch
from llorch import validate
from llorch.models import registry
from llorch.models.graph import Graph, Step


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = toy.ToyConfig()
    folder = save(
        tmp_path_factory.mktemp("toy") / "model", {"model_type": "toy"}, random_tensors(toy.FAMILY, config), ""
    )
    with pytest.MonkeyPatch.context() as patch:  # other modules' registry is without it
        patch.setattr(registry, "_registered", list(registry._registered))
        registry.register(toy.FAMILY)
        yield llorch.CausalLM.from_pretrained(folder)


def ids_of(length, seed=0):
    return rng(4, seed, length).integers(0, 71, length)


def test_its_bits_are_its_text(model, isa):
    ids = ids_of(40)
    assert_same_bits(model.forward(ids), by_reference(model, ids))


def test_its_parts_tell(model):
    """Negative control: window, place of the norm and softcap all show in the logits."""
    ids = ids_of(40)
    config, tensors = model.config, tensors_of(model)
    wanted = model.forward(ids)
    assert np.abs(wanted).max() <= 3
    assert not same_bits(toy.Toy(replace(config, window=7), tensors).forward(ids), wanted)
    exchanged = tensors | {"blocks.0.norm_2.weight": tensors["blocks.1.norm_2.weight"]}
    assert not same_bits(toy.Toy(config, exchanged).forward(ids), wanted)


def test_its_cache_and_batch(model):
    ids = ids_of(50)
    at_once = model.forward(ids)
    cache = model.new_cache()
    assert_same_bits(np.concatenate([model.forward(ids[i : i + 3], cache) for i in range(0, 50, 3)]), at_once)
    caches = [model.new_cache() for _ in range(2)]
    assert_same_bits(model.step([ids[:9], ids], caches), at_once[[8, 49]])


def test_it_generates_and_scores(model):
    assert len(model.generate([1, 2, 3], 8)) == 8
    assert model.generate_batch([[1, 2, 3], [4]], 5) == [model.generate([1, 2, 3], 5), model.generate([4], 5)]
    assert model.score([1, 2, 3, 4]).perplexity > 1


def test_its_ladder_holds(model):
    found = validate.run_ladder(model.path, ids=[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], peer=False)
    assert found.holds
    names = {result.tensor.name for result in found.tensors}
    assert {"embed", "h.1.attn.norm", "h.0.attn.q_rope", "h.1.attn.scores", "h.1", "logits"} <= names


def test_a_graph_that_cant_be(model):
    with pytest.raises(ValueError, match="op 'linaer'"):
        Step("y", "linaer", ("x",), "TE")
    step = Step("y", "add", ("x", "z"), "TE")
    with pytest.raises(ValueError, match="'y' takes 'z', which no step before it makes"):
        Graph({"E": 4}, (), ((step,),), (), (), (), "h.")


@pytest.mark.parametrize("kind", ["model_types", "architectures"])
def test_a_name_is_one_familys(kind):
    """So it doesn't matter which module is looked at first."""
    names = [name for module in registry.MODULES for name in getattr(registry._family(module), kind)]
    assert len(names) == len(set(names))


def test_only_its_own_module_is_imported(tmp_path):
    """Each takes a millisecond or two, of every command that loads a model."""
    code = "import sys, llorch; llorch.CausalLM.from_pretrained('shakespeare-1m'); print(*sorted(sys.modules))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(made.stdout.split()) & set(registry.MODULES) == {"llorch.models.gpt2"}
