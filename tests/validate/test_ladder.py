"""The ladder: its tensors from every source, their bits, and `llorch validate`."""

import json
import os
import re
from pathlib import Path

import encoders
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from click.testing import CliRunner
from gpt2_models import tensors_of
from helpers import assert_same_bits
from ladders import embedded, llama, tiny

import llorch
from llorch import reference, validate
from llorch.cli import main
from llorch.validate.kernels import suites
from llorch.validate.kernels.common import Check, Part
from llorch.validate.ladder import dumps, peer, rungs, sources
from llorch.validate.ladder import run as running
from llorch.validate.ladder.endings import Ending
from llorch.validate.ladder.network import Float64, Kernels, Specified
from llorch.validate.ladder.sources import trace_engine, trace_oracle

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


# ---- the ladder and its sources ------------------------------------------------------------------------------


def test_twelve_rungs_in_the_order_of_computing():
    tensors = rungs.tensors(embedded(), 4)
    numbers = [rung.number for rung in rungs.RUNGS]
    assert sorted({*numbers}) == list(range(13)) and len(numbers) == 15  # an encoder has others in two places
    assert {tensor.rung.number for tensor in tensors} == set(range(13))
    places = [(0 if t.rung.number == 0 else 99 if t.layer is None else 1 + t.layer, t.rung.number) for t in tensors]
    assert places == sorted(places)
    assert len({tensor.name for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize("source", ["engine", "oracle", "float64", "transformers"])
def test_every_source_has_every_tensor_in_its_shape_and_type(source):
    if source == "transformers":
        pytest.importorskip("transformers")
    found = getattr(peer if source == "transformers" else sources, f"trace_{source}")(embedded(), [40, 409, 79])
    for tensor in rungs.tensors(embedded(), 3):
        assert found[tensor.name].shape == tensor.shape, tensor.name
        kind = "float64" if source == "float64" and tensor.dtype == "float32" else tensor.dtype
        assert found[tensor.name].dtype == kind, tensor.name


def test_the_traced_oracle_is_the_oracle(tmp_path):
    """The network of settings has the bits of llorch.reference.GPT2, whose attention is another function."""
    model = tiny(tmp_path / "m", {"scale_attn_by_inverse_layer_idx": True})
    ids = [1, 5, 60, 2, 2]
    wanted = reference.GPT2(model.config, tensors_of(model.engine)).forward(ids)
    traced = model.network.run(ids, Specified())
    assert_same_bits(traced["logits"], wanted)
    for name, values in model.network.run(ids, Kernels()).items():
        assert_same_bits(values, traced[name], name)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu", "silu", "tanh"])
def test_the_engine_has_the_oracles_bits_in_every_tensor(tmp_path, activation):
    model = tiny(tmp_path / "m", {"activation_function": activation}, untied=activation == "gelu")
    ids = [3, 1, 4, 1, 59, 26]
    ours = trace_engine(model, ids)
    for name, wanted in trace_oracle(model, ids).items():
        assert_same_bits(ours[name], wanted, name)


@hypothesis.settings(max_examples=8)
@hypothesis.given(ids=st.lists(st.integers(0, 1023), min_size=1, max_size=9))
def test_any_prompt_has_the_oracles_bits(ids):
    ours = trace_engine(embedded(), ids)
    for name, wanted in trace_oracle(embedded(), ids, ours["generated"]).items():
        assert_same_bits(ours[name], wanted, name)


def test_a_trace_changes_no_bit_and_is_asked_in_order():
    model, ids, names = embedded().engine, [40, 409, 79], []
    assert_same_bits(model.forward(ids, trace=lambda name, values: names.append(name)), model.forward(ids))
    order = [t.name for t in rungs.tensors(embedded(), 3) if t.layer is not None or t.name in ("embed", "ln_f")]
    assert [name for name in names if name in order] == [n for n in order if not n.endswith("attn.scores")]
    with pytest.raises(KeyError):
        model.forward(ids, trace=lambda name, values: {}[name])


def test_the_oracle_goes_on_by_itself_where_the_guess_is_wrong():
    ids = [40, 409, 79]
    wanted = trace_oracle(embedded(), ids)["generated"]
    for place in (0, 8, 9):
        guess = wanted.copy()
        guess[place] = (guess[place] + 1) % 1024
        assert trace_oracle(embedded(), ids, guess)["generated"].tolist() == wanted.tolist()


def test_the_prompt_at_the_end_of_the_context(tmp_path):
    model = tiny(tmp_path / "m", {"n_positions": 7})
    for T, count in ((7, 0), (6, 1), (1, 6)):
        result = validate.run_ladder(model, ids=[1] * T, peer=False)
        assert result.holds
        assert len(result.generated) == count
    with pytest.raises(ValueError, match="8 tokens, it must have at least 1 and at most 7"):
        validate.run_ladder(model, ids=[1] * 8)
    with pytest.raises(ValueError, match="0 tokens"):
        validate.run_ladder(model, ids=[])


def test_float64_is_a_second_opinion():
    """float32's noise is there, and no more than noise."""
    ids = [40, 409, 79, 14]
    exact, ours = embedded().network.run(ids, Float64()), embedded().network.run(ids, Specified())
    assert 0 < np.abs(exact["logits"] - ours["logits"]).max() < 1e-4


# ---- run_ladder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    result = run("validate", "--json", folder / "v.json", "--report", folder / "v.html", "--layers", "all")
    return result, json.loads((folder / "v.json").read_text()), (folder / "v.html").read_text()


def test_validate_holds_on_the_embedded_model(done):
    result, content, _ = done
    assert result.exit_code == 0, result.output
    assert content["holds"] and content["first_divergence"] is None
    assert [tensor["name"] for tensor in content["tensors"] if tensor["bits_differing_from_oracle"]] == []
    assert [t.name for t in rungs.tensors(embedded(), 4)] == [t["name"] for t in content["tensors"]]


def test_transformers_was_compared_if_it_is_there(done):
    if running.missing_peer(embedded()):
        pytest.skip("transformers is not installed")
    rows = [tensor["transformers"] for tensor in done[1]["tensors"]]
    assert {row["status"] for row in rows} == {"ok"}
    assert max(row["max_abs"] for row in rows) > 0  # another implementation indeed


def test_table_is_plain_and_shows_every_tensor(done):
    output = done[0].output
    assert "\x1b" not in output and max(map(len, output.splitlines())) <= 100
    assert all(re.search(rf"^ +\d+  {re.escape(t['name'])} ", output, re.MULTILINE) for t in done[1]["tensors"])


def test_page_is_self_contained_and_says_everything(done):
    page, content = done[2], done[1]
    assert not re.search(r"https?://|<script|<link|src=|@import", page)
    assert page.count("<svg") == 1 and "noise floor" in page
    assert content["model_sha256"] in page and llorch.__version__ in page
    assert all(f">{tensor['name']}<" in page for tensor in content["tensors"])


def test_the_kernels_run_too_unless_a_model_is_named(done, tmp_path):
    result, content, page = done
    titles = [suite["title"] for suite in content["kernels"]["suites"]]
    assert titles == ["LayerNorm", "Q, K and V", "Attention", "Feed-forward"]
    published = [c for k in content["kernels"]["suites"] for c in k["checks"] if "published" in c["group"].lower()]
    assert published and {check["status"] for check in published} <= {"pass", "info"}
    for text in (result.output, page):
        assert re.search(r"[Kk]ernels, Attention: \d+ passed", text)
    named = run("validate", "--model", "shakespeare-1m", "--no-peer", "--json", tmp_path / "n.json")
    assert "ernels" not in named.output and "kernels" not in json.loads((tmp_path / "n.json").read_text())


def test_a_wrong_kernel_fails_the_whole_run(monkeypatch, tmp_path):
    """The negative control: the ladder holds, one check of the kernels doesn't."""
    monkeypatch.setattr(suites, "SUITES", {"wrong": wrong})
    result = run("validate", "--no-peer", "--json", tmp_path / "w.json", "--report", tmp_path / "w.html")
    assert result.exit_code == 1 and "FAIL  broken: 1 ULP" in result.output
    assert json.loads((tmp_path / "w.json").read_text())["holds"] is False
    assert "Kernels, Wrong: 1 failed" in (tmp_path / "w.html").read_text()


class wrong:
    TITLE, INPUT = "Wrong", "nothing"

    @staticmethod
    def parts(wanted):
        return [Part("group", "a step", lambda: [Check("group", "broken", "fail", "It is broken.", "1 ULP")])]


def test_without_transformers_the_rest_runs_and_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "missing_peer", lambda model: "transformers not installed")
    monkeypatch.setattr(running, "trace_transformers", lambda *a: pytest.fail("it was called"))
    result = run("validate", "--model", "shakespeare-1m", "--report", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert (
        "transformers not installed" in result.output
        and "transformers not installed" in (tmp_path / "r.html").read_text()
    )


def test_one_wrong_bit_fails_and_is_named(monkeypatch):
    """The negative control: a kernel that is off by one ULP in one place."""
    right = trace_engine(embedded(), [40, 409, 79, 14])
    right["h.2.attn.v"][1, 2, 3] = np.nextafter(right["h.2.attn.v"][1, 2, 3], np.float32(9))
    monkeypatch.setattr(running, "trace_engine", lambda *a: right)
    result = run("validate", "--model", "shakespeare-1m", "--no-peer")
    assert result.exit_code == 1
    assert "67 of 68 tensors" in result.output and "DIFFER" in result.output
    assert validate.run_ladder(peer=False).first.name == "h.2.attn.v"


def test_an_engine_that_is_wrong_is_found_beside_transformers(monkeypatch):
    """llorch itself with a planted fault: transformers disagrees at the right place."""
    pytest.importorskip("transformers")
    config = embedded().config
    monkeypatch.setattr(type(config), "activation", property(lambda self: "gelu"))
    model = sources.Model()
    result = validate.run_ladder(model)
    assert not result.holds
    assert result.first.name == "h.0.mlp.act"
    assert result.peer.first.tensor.name == "h.0.mlp.act"


def test_a_folder_without_a_tokenizer_needs_ids(tmp_path):
    tiny(tmp_path / "m")
    assert run("validate", "--model", tmp_path / "m", "--ids", "1,2,3", "--no-peer").exit_code == 0
    result = run("validate", "--model", tmp_path / "m", "--no-peer")
    assert result.exit_code == 1 and "tokenizer" in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--ids", "1,x"), "must be token ids"),
        (("--layers", "0-"), 'must be blocks, such as 0,3-5, or "all"'),
        (("--model", "m", "--shape", "tiny"), "can't be given both"),
        (("--self-test", "--kernels"), "--self-test is of the ladder"),
        (("--self-test", "--report", "x.html"), "--self-test has no report"),
        (("--report", "/nowhere/x.html"), "can't write"),
    ],
)
def test_usage_errors(arguments, message):
    result = run("validate", *arguments)
    assert result.exit_code == 2 and message in result.output


def test_random_weights_of_a_shape():
    result = run("validate", "--shape", "tiny", "--ids", "5,6,7", "--no-peer", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("random-tiny")


# ---- dump ----------------------------------------------------------------------------------------------------


def test_dump_has_every_tensor_and_says_what_it_is(tmp_path):
    path = tmp_path / "ours.safetensors"
    result = run("dump", "--prompt", "Hello.", "-o", path)
    assert result.exit_code == 0, result.output
    found = dumps.read(path)
    want = trace_engine(embedded(), found.ids)
    assert found.arrays.keys() == want.keys()
    for tensor in rungs.tensors(embedded(), 4):
        assert_same_bits(found.arrays[tensor.name], want[tensor.name], tensor.name)
    assert found.metadata["model_sha256"] == embedded().sha256
    assert found.metadata["prompt"] == "Hello." and found.metadata["llorch"] == llorch.__version__
    assert found.metadata["generated_text"] == embedded().text(want["generated"])
    assert found.config == embedded().config


def test_a_dump_from_transformers_says_what_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "absent_packages", lambda model: ["torch", "transformers"])
    result = CliRunner().invoke(main, ["dump", "--from", "transformers", "-o", str(tmp_path / "theirs.safetensors")])
    assert result.exit_code == 1 and "install what it needs: pip install torch transformers" in result.output
    assert not list(tmp_path.iterdir())


def test_a_dump_is_written_over_only_where_that_is_meant(tmp_path):
    """Its permissions are those that new files have here, and an old file's stay."""
    path = tmp_path / "ours.safetensors"
    before = os.umask(0o027)
    try:
        assert run("dump", "--ids=5", "-o", path).exit_code == 0
        assert path.stat().st_mode & 0o777 == 0o640
        first = path.read_bytes()
        result = CliRunner().invoke(main, ["dump", "--ids=6", "-o", str(path)])
        assert result.exit_code == 1 and "is there already: name another file, or give --force" in result.output
        assert path.read_bytes() == first
        path.chmod(0o600)
        assert run("dump", "--ids=6", "--force", "-o", path).exit_code == 0
        assert path.read_bytes() != first and path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Exception, match="surrogates"):
            dumps.write(tmp_path / "new.safetensors", {"a": np.zeros(1, np.float32)}, {"\udcff": "a"})
        assert not (tmp_path / "new.safetensors").exists()
    finally:
        os.umask(before)


def test_the_docs_table_is_the_ladder():
    text = (ROOT / "docs" / "validator.md").read_text()
    found = re.findall(r"^\| (\d+ \| `.*) \|$", text, re.MULTILINE)
    family, config, _ = encoders.made("bert")
    encoder = Ending("mean", (None,)).behind(family.graph(config))
    graphs = (embedded().graph, llama().graph, encoder)
    assert found == [row(kind) for graph in graphs for kind in rungs.kinds(graph)]


def row(kind):
    """Of the tables in docs/validator.md."""
    name = f"h.{{i}}.{kind.name}".rstrip(".") if kind.part == "block" else kind.name
    shape = ", ".join(kind.axes.replace("S", "T"))
    tolerance = "exact" if kind.tolerance == rungs.EXACT else f"{kind.tolerance:.0e}".replace("e-0", "e-")
    return f"{kind.rung.number} | `{name}` | ({shape}) | {kind.dtype} | {tolerance} | {kind.what}"


@pytest.mark.parametrize("ids", ["-1", "1024", "5,99999999999999999999", "-99999999999999999999"])
def test_ids_outside_the_vocabulary_are_said(tmp_path, ids):
    result = CliRunner().invoke(main, ["dump", f"--ids={ids}", "-o", str(tmp_path / "x.safetensors")])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"ids has {ids.split(',')[-1]}, token ids must be in [0, 1024)" in " ".join(result.output.split())
