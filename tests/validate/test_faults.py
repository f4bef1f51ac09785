"""Every fault is found at its place and by its name; also bugs planted in another implementation, transformers."""

import importlib.util
import json
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import same_bits
from ladders import PROMPT, dump_with, embedded, network, right, tiny

from llorch import validate
from llorch.cli import main
from llorch.models import registry
from llorch.validate.ladder import faults, peer, rungs, selftest, specimens
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.layouts import align
from llorch.validate.ladder.network import Float64, Kernels

_SPEC = importlib.util.spec_from_file_location(
    "false_diagnoses", Path(__file__).parents[2] / "tools" / "false_diagnoses.py"
)
false_diagnoses = importlib.util.module_from_spec(_SPEC)
sys.modules["false_diagnoses"] = false_diagnoses
_SPEC.loader.exec_module(false_diagnoses)

FAULTS = faults.by_key(network())
N = 4
FAMILIES = {family.name: family for family in registry.families()}


def test_there_are_many_and_each_has_a_name():
    listed = faults.of(network())
    kinds = {kind.name for kind in rungs.kinds(network().graph)}
    assert {fault.shows for fault in listed} <= kinds
    assert {"attn-c_proj-transposed", "split-kqv", "heads-interleaved", "no-scale", "mask-plus-1", "mask-minus-1",
            "no-mask", "eps", "unbiased", "ln_1-no-weight", "ln_1-no-bias", "post-norm", "activation-gelu",
            "activation-relu", "activation-silu", "position-plus-1", "no-wpe", "cache-next-slot", "cache-no-last",
            "head-fresh", "head-not-transposed", "attn-qkv-no-bias", "residual-no-input", "output-no-residual",
            "ln_f-skipped", "weights-float16", "activations-bfloat16", "softmax-float16-unshifted",
            "blocks-exchanged", "heads-8", "inputs-q8_0", "mlp.c_proj-factor", "attn.q-order-of-heads",
            } <= FAULTS.keys()  # fmt: skip


@pytest.mark.parametrize(
    "family, keys",
    [
        ("Llama", "rope-pairs rope-base rope-offset rope-factor rope-frequencies-bfloat16 rope-no-scaling rows-paired "
                  "groups-tiled groups-next mlp-gate-mlp-up-exchanged activation-none activation-gelu unit layer-norm "
                  "eps eps-outside head-tied attn-k-attn-v-exchanged"),
        ("Qwen2", "attn-q-no-bias window-5 window-too"),
        ("Qwen3", "rope-before-norm attn.q_norm-no-weight"),
        ("SmolLM3", "rope-too"),
        ("Phi-3", "split-qvk mlp-gate-mlp-up-exchanged rope-width-8"),
        ("Gemma 2", "no-unit embed-not-scaled no-softcap softcap no-logits-softcap logits-softcap "
                    "attn.norm-ln_2-exchanged"),
        ("Gemma 3", "rope-table-of-full_attention rope-table-of-sliding_attention"),
        ("OLMo 2", "pre-norm"),
        ("GPT-NeoX", "heads-first rope-width-8"),
        ("Granite", "attn.scaled-not-scaled logits-not-scaled embed-not-scaled"),
        ("BERT", "no-token-types token-type-1 pre-norm mask-causal"),
        ("RoBERTa", "position-first"),
        ("MPNet", "no-position-bias"),
        ("ModernBERT", "window-3 rope-table-of-full_attention"),
    ],
)  # fmt: skip
def test_a_family_has_the_faults_that_it_can_meet(family, keys):
    assert set(keys.split()) <= faults.by_key(specimens.specimen(FAMILIES[family])).keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_faults_of_every_family_are_found(name):
    """A sample of what the self-test injects, another of each family."""
    network = specimens.specimen(FAMILIES[name])
    ours = selftest.right_dump(network, specimens.IDS)
    listed = selftest.jobs(network)
    for fault, layers in [listed[0], *listed[1 + len(name) :: 41]]:
        case = selftest.inject(network, ours, fault, layers)
        assert case.caught, case


def test_no_fault_is_in_the_list_twice():
    for family in FAMILIES.values():
        network = specimens.specimen(family)
        for listed in (faults.of(network), faults.solvable(network)):
            keys = [one.key for one in listed]
            assert len(keys) == len(set(keys)), family.name


def test_injecting_leaves_the_network_as_it_is():
    for name in ("GPT-2", "Gemma 3", "BERT"):
        network = specimens.specimen(FAMILIES[name])
        before = network.run(specimens.IDS[:3], Float64())
        for fault in faults.injected(network):
            fault.inject(network, *(fault.within(range(len(network.blocks))) if fault.in_block else ()))
        after = network.run(specimens.IDS[:3], Float64())
        assert all(same_bits(before[name], after[name]) for name in before)


@hypothesis.settings(max_examples=6)
@hypothesis.given(
    key=st.sampled_from(["no-scale", "mask-plus-1", "split-kvq", "activation-silu", "ln_2-no-bias", "cache-next-slot",
                         "attn-c_proj-transposed", "output-no-residual", "heads-interleaved", "unbiased"]),
    layer=st.integers(0, N - 1),
    ids=st.lists(st.integers(0, 1023), min_size=5, max_size=9),
)  # fmt: skip
def test_faults_are_found_in_any_block_and_prompt(key, layer, ids):
    ours = selftest.right_dump(network(), ids)
    case = selftest.inject(network(), ours, FAULTS[key], (layer,))
    assert case.caught, case


def test_the_self_test_passes_on_the_embedded_model(monkeypatch):
    """Every twentieth fault here, and the control; the command runs them all."""
    listed = faults.injected(network())[::20]
    monkeypatch.setattr(selftest.faults, "injected", lambda network: listed)
    cases = list(validate.self_test("shakespeare-1m"))
    assert [case for case in cases if not case.caught] == []
    assert cases[0].key == selftest.CONTROL and len(cases) > len(listed)


def test_the_self_test_of_every_family(monkeypatch, tmp_path):
    """A fault of each, by the command; in one process, which knows the shorter list."""
    monkeypatch.setattr(selftest.faults, "injected", lambda network: faults.of(network)[30:31])
    path = tmp_path / "s.json"
    result = CliRunner().invoke(main, ["validate", "--self-test", "--threads", "1", "--json", str(path)])
    assert result.exit_code == 0, result.output
    cases = json.loads(path.read_text())["cases"]
    assert {case["family"] for case in cases} == set(FAMILIES) and len(cases) >= 2 * len(FAMILIES)
    assert "20 controls, one a family" in " ".join(result.output.split())


def test_a_fault_that_slips_through_fails_the_self_test(monkeypatch, tmp_path):
    """The negative controls: a fault that changes nothing, one that is named wrongly, one that shows elsewhere."""
    nothing = faults.Fault("nothing", "nothing", "ln_1", lambda network, layer: None)
    known = FAULTS["no-scale"]
    elsewhere = faults.Fault("elsewhere", known.says, "attn.q", known.change)
    for listed, count in (([nothing], 2), ([elsewhere], 2), ([known], 0)):
        monkeypatch.setattr(selftest.faults, "injected", lambda network, listed=listed: listed)
        arguments = ["--model", "shakespeare-1m", "--json", str(tmp_path / "s.json"), "--quiet"]
        result = CliRunner().invoke(main, ["validate", "--self-test", *arguments])
        assert result.exit_code == (1 if count else 0), result.output
        assert f"{3 - count} of 3 found" in result.output
        assert result.output.count("MISS") + result.output.count("unseen") == count


def test_an_unknown_fault_is_not_caught(monkeypatch):
    """A fault that the trials don't know has no diagnosis: the self-test says so."""
    case_of = FAULTS["activation-relu"]
    known = [fault for fault in faults.of(network()) if fault.key != case_of.key]
    monkeypatch.setattr(faults, "of", lambda network: known)
    case = selftest.inject(network(), right(), case_of, (1,))
    assert (case.caught, case.found, case.diagnosis) == (False, "h.1.mlp.act", "")


def test_diagnoses_that_data_cannot_tell_apart_are_all_named():
    """With two tokens, a mask that is off by one is no mask."""
    ids = right().ids[:2]
    ours = selftest.right_dump(network(), ids)
    theirs = FAULTS["no-mask"].inject(network(), 0).run(ids, Kernels())
    found = compare_dumps(Dump(theirs, {}, "theirs"), ours, network()).diagnosis
    assert {found.key, *found.also_keys} >= {"no-mask", "mask-plus-1"}


def test_an_untied_head_is_known(tmp_path):
    model = tiny(tmp_path / "m", untied=True)
    ours = selftest.right_dump(model.network, [1, 5, 9, 2])
    theirs = faults.by_key(model.network)["head-tied"].inject(model.network).run(ours.ids, Kernels())
    result = compare_dumps(Dump(theirs, {}, "theirs"), ours, model.network)
    assert (result.first.tensor.name, result.diagnosis.key) == ("logits", "head-tied")
    assert "head-tied" not in FAULTS


def test_dumps_in_16_bits_are_named():
    """Right weights, but every tensor stored in float16."""
    theirs = {name: values.astype(np.float16) for name, values in right().arrays.items() if values.dtype.kind == "f"}
    result = compare_dumps(Dump(theirs, {}, "theirs"), right(), network())
    assert result.first.tensor.name == "embed" and result.diagnosis.key == "embed-float16"


# ---- bugs planted in transformers: an implementation that isn't the trials' own ----------------------------------


def plant(monkeypatch, change):
    """transformers' trace of the embedded model, changed after it was loaded."""
    transformers = pytest.importorskip("transformers")
    original = transformers.GPT2LMHeadModel.from_pretrained

    def load(*arguments, **options):
        model = original(*arguments, **options)
        change(model)
        return model

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", load)
    model = embedded()
    ids = model.ids(PROMPT)
    ours = selftest.right_dump(model.network, ids)
    theirs = Dump(peer.trace_transformers(model, ids), {}, "theirs")
    return compare_dumps(theirs, ours, model.network)


def transposed(model):
    weight = model.transformer.h[2].attn.c_proj.weight
    weight.data = weight.data.T.contiguous()


def erf(model):
    from transformers.activations import ACT2FN

    for block in model.transformer.h:
        block.mlp.act = ACT2FN["gelu"]


def eps(model):
    for block in model.transformer.h:
        block.ln_1.eps = block.ln_2.eps = 1e-3


def unscaled(model):
    for block in model.transformer.h:
        block.attn.scaling = 1.0


def position(model):
    weight = model.transformer.wpe.weight
    weight.data = weight.data.roll(-1, 0)


def no_bias(model):
    model.transformer.h[1].mlp.c_fc.bias.data.zero_()


def exchanged(model):
    h = model.transformer.h
    h[1].load_state_dict({k: v.clone() for k, v in h[2].state_dict().items()})


def thirds(model):
    conv = model.transformer.h[0].attn.c_attn
    for parameter in (conv.weight, conv.bias):
        q, k, v = parameter.data.split(128, dim=-1)
        parameter.data = __import__("torch").cat([k, q, v], dim=-1)


def untied(model):
    import torch

    torch.manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(1024, 128) * 0.02)


def no_ln_f(model):
    import torch

    model.transformer.ln_f.forward = torch.nn.Identity().forward


@pytest.mark.parametrize(
    "change, first, key, layers",
    [
        (lambda model: None, None, None, ()),
        (transposed, "h.2.attn.c_proj", "attn-c_proj-transposed", (2,)),
        (erf, "h.0.mlp.act", "activation-gelu", (0, 1, 2, 3)),
        (eps, "h.0.ln_1", "eps", (0, 1, 2, 3)),
        (unscaled, "h.0.attn.scores", "no-scale", (0, 1, 2, 3)),
        (position, "embed", "position-plus-1", ()),
        (no_bias, "h.1.mlp.c_fc", "mlp-c_fc-no-bias", (1,)),
        (exchanged, "h.1.ln_1", "blocks-exchanged", (1,)),
        (thirds, "h.0.attn.q", "split-kqv", (0,)),
        (untied, "logits", "head-fresh", ()),
        (no_ln_f, "ln_f", "ln_f-skipped", ()),
    ],
)
def test_bugs_planted_in_transformers(monkeypatch, change, first, key, layers):
    result = plant(monkeypatch, change)
    if first is None:
        assert result.holds
        return
    assert result.first.tensor.name == first
    assert result.diagnosis is not None and (result.diagnosis.key, result.diagnosis.layers) == (key, layers)


def test_lining_up_hides_no_fault():
    """Each fault's dump in another engine's layout diverges in the same tensor."""
    for key in ("heads-not-merged", "mask-reversed", "split-kqv", "heads-interleaved", "cache-exchanged"):
        theirs = dump_with(key, 1)
        plain = compare_dumps(theirs, right()).first.tensor.name
        moved = {f"transformer.{name}": values[None] for name, values in theirs.arrays.items() if values.ndim}
        assert compare_dumps(Dump(moved, {}, "theirs"), right()).first.tensor.name == plain
    assert align(right(), right())[1] == []


# ---- numbers, two at once, and what mustn't be named ---------------------------------------------------------------


def told(name, *done):
    """What is said of a small model of a family with faults in blocks, by their keys; of a solved one also a value."""
    network = specimens.specimen(FAMILIES[name])
    known, numbers = faults.by_key(network), {one.key: one for one in faults.solvable(network)}
    faulty = network
    for key, layers, *value in done:
        fault = numbers[key].of(*value) if value else known[key]
        faulty = fault.inject(faulty, *layers)
    ours = selftest.right_dump(network, specimens.IDS)
    return compare_dumps(Dump(faulty.run(specimens.IDS, Kernels()), {}, "theirs"), ours, network).diagnosis


@pytest.mark.parametrize(
    "name, key, value, says",
    [
        ("Llama", "eps", 0.00271, "eps is 0.00271, not 0.01"),
        ("Llama", "scale", 0.4321, "scores are multiplied by 0.4321, not 0.353553"),
        ("Llama", "rope-base", 54321.0, "the rotation's base is 54321, not 1000"),
        ("Llama", "rope-offset", -2.0, "positions of the rotation are 2 too low"),
        ("Gemma 2", "softcap", 2.75, "the softcap of scores is 2.75, not 2"),
        ("Gemma 2", "output-factor", 0.97, "the block's output is multiplied by 0.97"),
        ("Mistral", "window-5", 7, "the window has 7 positions, not 5"),
        ("BERT", "mlp.c_fc-offset", 0.0123, "0.0123 is added to mlp.c_fc"),
        ("GPT-2", "attn.v-order-of-heads", (0, 2, 1, 3, 4, 5),
         "heads of attn.v are in another order: 1 and 2 are exchanged"),
    ],
)  # fmt: skip
def test_a_number_or_an_order_is_solved_for_and_told(name, key, value, says):
    """Values that no list has."""
    found = told(name, (key, (1, 2), value))
    assert found.says == says
    assert found.layers == (1, 2) or name in ("Gemma 2", "Mistral")  # where layers differ
    assert found.distance < 1e-5 < found.healthy


def test_two_faults_are_both_named_and_what_each_explains():
    found = told("Llama", ("groups-tiled", (1,)), ("activation-gelu", (2,)))
    assert (found.key, found.layers) == ("groups-tiled", (1,))
    assert found.left_of == "logits" and 0 < found.left < 1 and "of the distance of logits" in found.rest
    assert (found.then.key, found.then.layers) == ("activation-gelu", (2,))


def test_two_faults_of_one_tensor_are_both_named():
    found = told("Qwen2", ("attn-q-no-bias", (1,)), ("attn.q-factor", (1,), 1.07))
    assert {found.key, found.then.key} == {"attn-q-no-bias", "attn.q-factor"} and found.left_of == "h.1.attn.q"
    assert told("Qwen2", ("attn-q-no-bias", (1,))).then is None


def test_what_was_not_done_is_not_named():
    """A sample of tools/false_diagnoses.py; docs/validator.md has what all of it found."""
    pairs = list(false_diagnoses.pairs(9, seed=7))
    engines = [case for _, case in false_diagnoses.engines(6, seed=7)]
    assert [case for case in (*pairs, *engines) if case.outcome == "wrong"] == []
    assert sum(case.outcome == "both named" for case in pairs) > 4


def test_a_false_diagnosis_would_be_seen():
    """The negative control: another fault than the one that is named was made."""
    network = specimens.specimen(FAMILIES["Llama"])
    known = faults.by_key(network)
    ours = selftest.right_dump(network, specimens.IDS)
    theirs = Dump(known["rope-pairs"].inject(network, 0).run(ours.ids, Kernels()), {}, "theirs")
    found = compare_dumps(theirs, ours, network)
    assert false_diagnoses.judged("Llama", [known["rope-pairs"]], found).outcome == "named"
    assert false_diagnoses.judged("Llama", [known["rope-none"]], found).outcome == "wrong"
