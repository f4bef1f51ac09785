"""`llorch validate`: it passes here, fails when a kernel is wrong, and says what it did."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import llorch
import llorch.reference
from llorch.cli import main
from llorch.testing import bits
from llorch.validation import Check, Step, checkpoint_01, determinism, models, mutations, peers, report, run, sha256

GROUPS = [step.group for step in checkpoint_01.steps()]


def validate(*arguments):
    return CliRunner().invoke(main, ["validate", *map(str, arguments)])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run with every library that is installed: (result, JSON, Markdown)."""
    folder = tmp_path_factory.mktemp("validate")
    result = validate("--json", folder / "out.json", "--report", folder / "out.md")
    return result, json.loads((folder / "out.json").read_text()), (folder / "out.md").read_text()


def test_everything_holds(done):
    result, content, _ = done
    failed = [check for check in content["checks"] if check["status"] == "fail"]
    assert failed == []
    assert result.exit_code == 0, result.output
    assert content["holds"] is True
    assert "failed" not in result.output


def test_table_is_plain_text_of_100_columns(done):
    output = done[0].output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 100
    assert all(group in output for group in GROUPS)


def test_json_has_what_a_second_person_needs(done):
    content = done[1]
    assert content["hashes"]["SHA-256 of the output"] == checkpoint_01.output_hash()
    assert content["summary"]["pass"] == sum(check["status"] == "pass" for check in content["checks"])
    assert content["machine"]["isa"] == llorch.isa()
    assert {"cpu", "numpy", "python", "llorch", "compiler", "os"} <= content["machine"].keys()
    assert content["input"] == checkpoint_01.INPUT
    assert list(dict.fromkeys(check["group"] for check in content["checks"])) == GROUPS


def test_report_has_what_a_second_person_needs(done):
    text = done[2]
    wanted = [checkpoint_01.INPUT, checkpoint_01.output_hash(), report.COMMAND, np.__version__, llorch.isa(), *GROUPS]
    assert [item for item in wanted if item not in text] == []


def test_every_installed_library_ran(done):
    statuses = {check["name"]: check["status"] for check in done[1]["checks"]}
    for peer in peers.PEERS:
        mine = [status for name, status in statuses.items() if name.startswith(peer.name)]
        assert set(mine) - {"info"} == {"pass" if peer.installed() else "skip"}, peer.name


def test_the_stored_hash_is_the_oracles():
    stored = checkpoint_01.load("expected.json")["checkpoint_01_layer_norm"]
    assert stored["input_sha256"] == sha256(checkpoint_01.inputs()[0])
    assert stored["output_sha256"] == sha256(
        llorch.reference.layer_norm(*checkpoint_01.inputs(), eps=checkpoint_01.EPS)
    )


def test_exact_results_agree():
    wide = checkpoint_01.long_double_result()
    if wide is None:
        pytest.skip("long double is no wider than float64")
    assert np.array_equal(np.array(checkpoint_01.exact_result(), np.float32), wide.astype(np.float32))


# ---- it can fail ---------------------------------------------------------------------------------------------

REAL = llorch.layer_norm


def one_ulp_up(x, weight=None, bias=None, *, eps=1e-5, out=None):
    y = REAL(x, weight, bias, eps=eps, out=out)
    y.reshape(-1).view(np.uint32)[0] += 1
    return y


def only_nan(x, weight=None, bias=None, *, eps=1e-5, out=None):
    y = REAL(x, weight, bias, eps=eps, out=out)
    y[...] = np.nan
    return y


def order_by_batch(x, weight=None, bias=None, *, eps=1e-5, out=None):
    return mutations.ordinary_kernel(x, weight, bias, eps=eps)


def raises(x, weight=None, bias=None, *, eps=1e-5, out=None):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    "kernel, failing",
    [
        (one_ulp_up, ["checkpoint input", "SHA-256 of the output", "8 fresh processes"]),
        (order_by_batch, ["checkpoint input", "SHA-256 of the output", "alone, batches of 2, 3, 7, 64, 513"]),
        (only_nan, ["checkpoint input", "40 decimal digits", "candle, 10 values", "statistics of both rows"]),
        (raises, ["against the oracle", "against the exact result", "determinism"]),
    ],
)
def test_a_broken_kernel_fails_by_name(monkeypatch, tmp_path, kernel, failing):
    monkeypatch.setattr(llorch, "layer_norm", kernel)
    result = validate("--peer", "none", "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    failed = [c["name"] for c in json.loads((tmp_path / "out.json").read_text())["checks"] if c["status"] == "fail"]
    assert set(failing) <= set(failed)
    assert all(f"FAIL  {name}" in result.output for name in failing)


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: m.name)
def test_each_mutation_in_place_of_the_kernel_fails(monkeypatch, mutation):
    def mutated(x, weight, bias, *, eps, out=None):
        return mutation.kernel(x, weight, bias, eps=eps)

    monkeypatch.setattr(llorch, "layer_norm", mutated)
    statuses = {check.name: check.status for check in checkpoint_01.oracle_checks()}
    assert statuses["weight, bias, odd length"] == "fail"


def test_mutable_kernel_without_mutation_is_the_oracle():
    arrays = mutations.mutation_input(checkpoint_01.inputs()[0])
    got, want = (f(*arrays, eps=1e-5) for f in (mutations.layer_norm, llorch.reference.layer_norm))
    assert np.array_equal(bits(got), bits(want))


def test_a_step_that_raises_is_a_failed_check():
    def broken():
        yield Check("group", "first", "pass", "", "")
        raise ValueError("second")

    checks = list(run([Step("group", "title", broken)]))
    assert [(check.name, check.status) for check in checks] == [("first", "pass"), ("title", "fail")]
    assert "ValueError: second" in checks[1].measured


# ---- libraries -----------------------------------------------------------------------------------------------


def peer_checks():
    x, weight, bias = checkpoint_01.inputs()
    exact = np.array(checkpoint_01.exact_result(), np.float64)
    return list(peers.checks(x, weight, bias, checkpoint_01.EPS, exact))


def with_peer(monkeypatch, **changes):
    peer = peers.Peer(**{**vars(peers.PEERS[0]), **changes})
    monkeypatch.setattr(peers, "PEERS", (peer,))


def test_missing_library_shows_how_to_install_it(monkeypatch):
    with_peer(monkeypatch, module="a_module_that_is_not_there")
    result = validate()
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
    monkeypatch.setattr(peers, "TIMEOUT", 2)
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
    model = onnx.load_from_string(models.onnx_model(operator, inputs, (2, outputs), attributes))
    onnx.checker.check_model(model, full_check=True)


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_unwritable_file_is_a_usage_error(monkeypatch, tmp_path, option):
    monkeypatch.setattr(checkpoint_01, "steps", lambda *a: pytest.fail("the work was started"))
    result = validate(option, tmp_path / "missing" / "file")
    assert result.exit_code == 2
    assert option in result.output and "No such file or directory" in result.output


def test_the_write_check_leaves_files_alone(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("kept")
    result = validate("--json", old, "--report", tmp_path, "--peer", "none")  # the report's path is a folder
    assert result.exit_code == 2
    assert old.read_text() == "kept"


def test_quiet(monkeypatch):
    monkeypatch.setattr(checkpoint_01, "steps", lambda *a: [Step("group", "title", checkpoint_01.published_checks)])
    assert validate("--quiet").output.splitlines()[0].startswith("4 passed")


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
    assert missing in done.stderr and 'pip install "llorch[gpt2]"' in done.stderr
