"""`llorch kernels`: it passes here, fails when a kernel is wrong, and says what it did."""

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

import llorch
import llorch.reference
from llorch.cli import main
from llorch.testing import bits
from llorch.validate.kernels import attention, determinism, feed_forward, layer_norm, peer_files, peers, qkv, suites
from llorch.validate.kernels.common import Check, Part, load, run, sha256

SUITES = tuple(suites.SUITES.values())
GROUPS = [[part.group for part in suite.parts()] for suite in SUITES]


def kernels(*arguments):
    return CliRunner().invoke(main, ["kernels", *map(str, arguments)])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run with every library that is installed: (result, JSON, Markdown). With fewer fresh processes than `llorch
    kernels` has, which .ci/run runs as it is."""
    folder = tmp_path_factory.mktemp("validate")
    with pytest.MonkeyPatch.context() as patch:
        for suite in SUITES:
            patch.setattr(suite, "PLAN", replace(suite.PLAN, processes=2))
        result = kernels("--json", folder / "out.json", "--report", folder / "out.md")
    return result, json.loads((folder / "out.json").read_text()), (folder / "out.md").read_text()


def test_everything_holds(done):
    result, content, _ = done
    checks = [check for part in content["suites"] for check in part["checks"]]
    assert [check for check in checks if check["status"] == "fail"] == []
    assert result.exit_code == 0, result.output
    assert content["holds"] is True
    assert "failed" not in result.output


def test_table_is_plain_text_of_100_columns(done):
    output = done[0].output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 100
    places = [output.index(f"\n{suite.INPUT[:40]}") for suite in SUITES]
    assert places == sorted(places)
    assert all(group in output for groups in GROUPS for group in groups)


def test_json_has_what_a_second_person_needs(done):
    content = done[1]
    assert {"cpu", "numpy", "python", "llorch", "compiler", "os"} <= content["machine"].keys()
    assert content["machine"]["isa"] == llorch.isa()
    statuses = [check["status"] for part in content["suites"] for check in part["checks"]]
    assert content["summary"] == {key: statuses.count(key) for key in ("pass", "fail", "skip", "info")}
    for part, suite, groups in zip(content["suites"], SUITES, GROUPS, strict=True):
        assert part["title"] == suite.TITLE
        assert part["input"] == suite.INPUT
        if suite in (layer_norm, qkv):
            assert part["hashes"]["SHA-256 of the output"] == suite.output_hash()
        assert part["summary"]["pass"] == sum(check["status"] == "pass" for check in part["checks"])
        assert list(dict.fromkeys(check["group"] for check in part["checks"])) == groups


def test_report_has_what_a_second_person_needs(done):
    wanted = [suites.COMMAND, np.__version__, llorch.isa()]
    for suite, groups in zip(SUITES, GROUPS, strict=True):
        wanted += [suite.TITLE, suite.INPUT, *groups]
    wanted += [layer_norm.output_hash(), qkv.output_hash(), sha256(llorch.attention(*attention.published()))]
    assert [item for item in wanted if item not in done[2]] == []


def test_every_installed_library_ran(done):
    for part, operations in zip(
        done[1]["suites"], ({"layer_norm"}, {"linear"}, {"attention"}, {"feed_forward"}), strict=True
    ):
        for peer in peers.PEERS:
            mine = {check["status"] for check in part["checks"] if check["name"].startswith(peer.name)}
            wanted = {"pass" if peer.installed() else "skip"} if operations & peer.operations.keys() else set()
            assert mine - {"info"} == wanted, peer.name


def test_the_stored_hash_is_the_oracles():
    stored = load("expected.json")["layer_norm"]
    assert stored["input_sha256"] == sha256(layer_norm.inputs()[0])
    assert stored["output_sha256"] == sha256(llorch.reference.layer_norm(*layer_norm.inputs(), eps=layer_norm.EPS))


def test_the_stored_hashes_of_qkv_and_attention_are_the_oracles():
    stored = load("expected.json")
    y = llorch.reference.linear(*qkv.linear_inputs())
    found = dict(zip(("input", "weight", "bias"), qkv.inputs(), strict=True)) | {"output": y}
    assert stored["qkv"] == {f"{name}_sha256": sha256(values) for name, values in found.items()}
    assert stored["attention"] == {"output_sha256": sha256(llorch.reference.attention(*qkv.heads(y)))}


def test_exact_sums_are_exact():
    x, weight, bias = qkv.inputs()
    for i, r in ((0, 0), (1, 1500), (0, 3071)):
        terms = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x[i], weight[r], strict=True)]
        assert qkv.exact_result()[i, r] == float(sum(terms, Fraction(float(bias[r]))))


def test_the_published_weight_can_not_show_a_transposition():
    """Why the mutations have an input of their own."""
    weight = qkv.linear_inputs()[1]
    assert np.array_equal(qkv.transposed(weight), weight)
    random = qkv.mutation_input()[1]
    assert not np.array_equal(qkv.transposed(random), random)


def test_exact_results_agree():
    wide = layer_norm.long_double_result()
    if wide is None:
        pytest.skip("long double is no wider than float64")
    assert np.array_equal(np.array(layer_norm.exact_result(), np.float32), wide.astype(np.float32))


# ---- it can fail ---------------------------------------------------------------------------------------------

# Each makes a broken kernel of the real one.


def one_ulp_up(real):
    def kernel(*arrays, **settings):
        y = real(*arrays, **settings)
        y.reshape(-1).view(np.uint32)[0] += 1
        return y

    return kernel


def only_nan(real):
    def kernel(*arrays, **settings):
        y = real(*arrays, **settings)
        y[...] = np.nan
        return y

    return kernel


def raises(real):
    def kernel(*arrays, **settings):
        raise RuntimeError("no such kernel")

    return kernel


def layer_norm_by_batch(real):
    return lambda x, weight, bias, *, eps, out=None: layer_norm.ordinary_layer_norm(x, weight, bias, eps=eps)


def linear_by_batch(real):
    """NumPy for a row alone."""

    def kernel(x, weight, bias, *, out=None):
        return qkv.numpy_linear(x, weight, bias) if len(x) == 1 else real(x, weight, bias, out=out)

    return kernel


def attention_by_chunk(real):
    """NumPy for a query alone."""

    def kernel(q, k, v, *, out=None):
        return attention.numpy_attention(q, k, v) if q.shape[-2] == 1 else real(q, k, v, out=out)

    return kernel


def erf(real):
    return lambda x, *, approximate="none", out=None: real(x, out=out)


def float16_whatever_is_asked(real):
    return lambda weight, bias=None, *, dtype="float32", transposed=False: real(
        weight, bias, dtype="float16", transposed=transposed
    )


@pytest.mark.parametrize(
    "suite, name, broken, failing",
    [
        ("layer_norm", "layer_norm", one_ulp_up, ["published input", "SHA-256 of the output", "2 fresh processes"]),
        (
            "layer_norm",
            "layer_norm",
            layer_norm_by_batch,
            ["published input", "SHA-256 of the output", "alone, batches of 2, 3, 7, 64, 513"],
        ),
        (
            "layer_norm",
            "layer_norm",
            only_nan,
            ["published input", "40 decimal digits", "candle, 10 values", "statistics of both rows"],
        ),
        (
            "layer_norm",
            "layer_norm",
            raises,
            ["LayerNorm against the oracle", "LayerNorm against the exact result", "determinism of LayerNorm"],
        ),
        ("qkv", "linear", one_ulp_up, ["linear, published input", "SHA-256 of the output", "2 fresh processes"]),
    ],
)
def test_a_broken_kernel_fails_by_name(monkeypatch, tmp_path, suite, name, broken, failing):
    monkeypatch.setattr(llorch, name, broken(getattr(llorch, name)))
    for one in (layer_norm, qkv):
        monkeypatch.setattr(one, "PLAN", replace(one.PLAN, runs=2, processes=2, threaded=4))
    result = kernels("--no-peer", "--suite", suite, "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    (part,) = json.loads((tmp_path / "out.json").read_text())["suites"]
    failed = [check["name"] for check in part["checks"] if check["status"] == "fail"]
    assert set(failing) <= set(failed)
    assert all(f"FAIL  {name}" in result.output for name in failing)


def attention_checks():
    return attention.oracle_checks(())


@pytest.mark.parametrize(
    "name, broken, checks, failing",
    [
        ("linear", only_nan, qkv.exact_checks, ["exact sums"]),
        (
            "linear",
            only_nan,
            qkv.published_checks,
            ["llorch-cpud, 3 x 100 values", "candle, 3 x 100 values", "mistralrs, 3 x 100 values"],
        ),
        ("linear", raises, qkv.oracle_checks, ["the part"]),
        (
            "linear",
            linear_by_batch,
            qkv.determinism_checks,
            ["alone, batches of 2, 3, 7, 64"],
        ),
        (
            "PackedLinear",
            float16_whatever_is_asked,
            qkv.oracle_checks,
            ["PackedLinear, float32", "PackedLinear, bfloat16", "PackedLinear, transposed"],
        ),
        (
            "PackedLinear",
            float16_whatever_is_asked,
            qkv.determinism_checks,
            ["PackedLinear, every ISA", "PackedLinear, batches"],
        ),
        ("attention", one_ulp_up, attention_checks, ["oracle, 150 positions", "SHA-256 of the output"]),
        ("attention", only_nan, attention_checks, ["float64, 300 positions", "float64, 1 against 1,000"]),
        ("attention", attention_by_chunk, attention_checks, ["oracle, 1 against 1,000"]),
        ("attention", attention_by_chunk, attention.determinism_checks, ["chunks of 1, 7, 64, 128, 150"]),
        (
            "gelu",
            erf,
            lambda: feed_forward.oracle_checks(()),
            ["oracle, small", "oracle, 4 rows", "float64, 4 rows"],
        ),
        ("linear", linear_by_batch, feed_forward.determinism_checks, ["alone, batches of 2, 3, 7"]),
    ],
)
def test_a_broken_kernel_fails_its_part_by_name(monkeypatch, name, broken, checks, failing):
    monkeypatch.setattr(llorch, name, broken(getattr(llorch, name)))
    monkeypatch.setattr(qkv, "PLAN", replace(qkv.PLAN, runs=2, processes=1, threaded=4))
    for suite in (attention, feed_forward):
        monkeypatch.setattr(suite, "PLAN", replace(suite.PLAN, runs=2, processes=1, threaded=4))
    found = list(run([Part("group", "the part", checks)]))
    assert set(failing) <= {check.name for check in found if check.status == "fail"}


def test_an_error_of_more_than_twice_the_librarys_fails(monkeypatch):
    case = peers.Input("name", "what", (np.ones(2, np.float32),))
    right = np.ones(2)
    near, far = right + 1e-7, right - 2.5e-7

    def rows(ours, theirs, **changes):
        monkeypatch.setattr(peers, "compute", lambda peer, calls: [theirs])
        monkeypatch.setattr(peers.Peer, "installed", lambda peer: True)
        found = peers.beside_float64("group", "attention", [replace(case, **changes)], [ours], [right], None)
        return [check.status for check in found if check.name.startswith("PyTorch")]

    assert rows(near, far) == ["pass"]
    assert rows(far, near) == ["fail"]
    assert rows(far, near, ratio=False) == ["pass"]
    assert rows(near, right + 1e-3) == ["fail"]


def test_an_ordinary_kernel_that_shows_no_difference_fails_the_control():
    assert determinism.control_check("group", ["a", "b"]).status == "pass"
    assert determinism.control_check("group", ["a", "a"]).status == "fail"
    assert determinism.control_check("group", ["a", "a"], "a library").status == "info"


@pytest.mark.parametrize("mutation", layer_norm.MUTATIONS, ids=lambda m: m.name)
def test_each_mutation_in_place_of_the_kernel_fails(monkeypatch, mutation):
    def mutated(x, weight, bias, *, eps, out=None):
        return mutation.kernel(x, weight, bias, eps=eps)

    monkeypatch.setattr(llorch, "layer_norm", mutated)
    statuses = {check.name: check.status for check in layer_norm.oracle_checks()}
    assert statuses["weight, bias, odd length"] == "fail"


def first(checks, name):
    return next(check.status for check in checks if check.name == name)


@pytest.mark.parametrize("mutation", qkv.MUTATIONS, ids=lambda m: m.name)
def test_each_mutation_in_place_of_linear_fails(monkeypatch, mutation):
    monkeypatch.setattr(llorch, "linear", mutation.kernel)
    assert first(qkv.oracle_checks(), "linear, random") == "fail"


@pytest.mark.parametrize("mutation", attention.MUTATIONS, ids=lambda m: m.name)
def test_each_mutation_in_place_of_attention_fails(monkeypatch, mutation):
    monkeypatch.setattr(llorch, "attention", mutation.kernel)
    assert first(attention_checks(), "oracle, 150 positions") == "fail"


@pytest.mark.parametrize("mutation", feed_forward.MUTATIONS, ids=lambda m: m.name)
def test_each_mutation_in_place_of_feed_forward_fails(monkeypatch, mutation):
    monkeypatch.setattr(feed_forward, "feed_forward", mutation.kernel)
    assert first(feed_forward.oracle_checks(()), "oracle, small") == "fail"


def test_mutable_kernel_without_mutation_is_the_oracle():
    arrays = layer_norm.mutation_input()
    got, want = (f(*arrays, eps=1e-5) for f in (layer_norm.mutable_layer_norm, llorch.reference.layer_norm))
    assert np.array_equal(bits(got), bits(want))


def test_a_part_that_raises_is_a_failed_check():
    def broken():
        yield Check("group", "first", "pass", "", "")
        raise ValueError("second")

    checks = list(run([Part("group", "title", broken)]))
    assert [(check.name, check.status) for check in checks] == [("first", "pass"), ("title", "fail")]
    assert "ValueError: second" in checks[1].measured


# ---- libraries -----------------------------------------------------------------------------------------------


def peer_checks():
    return list(layer_norm.library_checks())


def with_peer(monkeypatch, **changes):
    peer = peers.Peer(**{**vars(peers.PEERS[0]), **changes})
    monkeypatch.setattr(peers, "PEERS", (peer,))


def test_missing_library_shows_how_to_install_it(monkeypatch):
    with_peer(monkeypatch, module="a_module_that_is_not_there")
    result = kernels("--suite", "layer_norm")
    assert result.exit_code == 0
    assert "pip install torch" in result.output
    assert "1 skipped" in result.output


@pytest.mark.parametrize(
    "code, message",
    [
        ("raise ValueError('wrong version\\nsecond line')", "could not run: ValueError: wrong version"),
        ("import os; os._exit(3)", "could not run: exit status 3"),
        ("import os; os.abort()", "could not run: exit status -6"),
        ("import time; time.sleep(60)", "could not run: no answer in 2 seconds"),
    ],
)
def test_a_library_that_breaks_is_one_failed_row(monkeypatch, tmp_path, code, message):
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(peers, "TIMEOUT", 2 if "no answer" in message else 60)
    with_peer(monkeypatch)
    (check,) = peer_checks()
    assert (check.status, check.measured) == ("fail", message)


@pytest.mark.parametrize(
    "operator, weight, outputs, attributes",
    [
        ("LayerNormalization", (1024,), 1024, {"epsilon": 1e-5}),
        ("Gemm", (3072, 1024), 3072, {"transB": 1}),
    ],
)
def test_hand_made_onnx_model_is_valid(operator, weight, outputs, attributes):
    onnx = pytest.importorskip("onnx")
    inputs = {"x": (2, 1024), "weight": weight, "bias": (outputs,)}
    model = onnx.load_from_string(peer_files.onnx_model(operator, inputs, (2, outputs), attributes))
    onnx.checker.check_model(model, full_check=True)


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_unwritable_file_is_a_usage_error(monkeypatch, tmp_path, option):
    monkeypatch.setattr(layer_norm, "parts", lambda *a: pytest.fail("the work was started"))
    result = kernels(option, tmp_path / "missing" / "file")
    assert result.exit_code == 2
    assert option in result.output and "No such file or directory" in result.output


def test_the_write_check_leaves_files_alone(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("kept")
    result = kernels("--json", old, "--report", tmp_path, "--no-peer")  # the report's path is a folder
    assert result.exit_code == 2
    assert old.read_text() == "kept"


def test_quiet(monkeypatch):
    monkeypatch.setattr(layer_norm, "parts", lambda *a: [Part("group", "title", layer_norm.published_checks)])
    assert kernels("--quiet", "--suite", "layer_norm").output.splitlines()[0].startswith("4 passed")


def test_suites_are_chosen(monkeypatch):
    for key, suite in suites.SUITES.items():
        check = Check("group", f"check of {key}", "pass", "", "")
        monkeypatch.setattr(suite, "parts", lambda *a, check=check: [Part("group", "title", lambda: [check])])
    for chosen in ((), ("qkv",), ("layer_norm", "feed_forward")):
        output = kernels(*(word for key in chosen for word in ("--suite", key))).output
        assert f"{len(chosen) or len(SUITES)} passed" in output
        for key in suites.SUITES:
            assert (f"check of {key}" in output) == (not chosen or key in chosen)
    assert kernels("--suite", "rope").exit_code == 2
    assert kernels("--library", "candle", "--no-peer").exit_code == 2
    alias = CliRunner().invoke(main, ["validate", "--kernels"])
    assert alias.exit_code == 0 and f"{len(SUITES)} passed" in alias.output


def test_libraries_are_chosen():
    def states(wanted):
        checks = list(peers.each("linear", lambda peer: [Check("", peer.key, "pass", "", "")], wanted, ""))
        return [(check.name, check.measured) for check in checks if check.status == "pass" or "asked" in check.measured]

    assert states(()) == [("PyTorch", "not asked for"), ("ONNX Runtime", "not asked for"), ("Candle", "not asked for")]
    assert ("PyTorch", "not asked for") in states(("candle",))
    assert ("Candle", "not asked for") not in states(("candle",))


def test_config():
    result = CliRunner().invoke(main, ["config"])
    assert result.exit_code == 0
    assert llorch.isa() in result.output


def test_python_m_llorch():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "llorch", "--version"],
        env=determinism.child_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert llorch.__version__ in done.stdout


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_core_alone_says_what_to_install(missing):
    code = f"""
import runpy, sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent)
runpy.run_module("llorch", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=determinism.child_environment(), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr and 'pip install "llorch[models]"' in done.stderr
