"""`compare` reads the text of llama.cpp's llama-eval-callback: what it shows is compared, and the sums of all."""

import numpy as np
import pytest
from helpers import rng
from ladders import IDS, llama, of_llama_cpp
from random_models import LLAMA, llama_metadata, llama_tensors, write_gguf

from llorch.models.llama import FAMILY
from llorch.validate.ladder import dumps, eval_callback, faults, selftest
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.faults.change import as_ggml
from llorch.validate.ladder.network import Float64, Kernels
from llorch.validate.ladder.sources import Model

OPS = {"Qcur": "MUL_MAT", "Qcur_rope": "ROPE", "Kcur": "ROPE", "kqv_out": "CONT", "l_out": "ADD"}


@pytest.fixture(scope="module")
def right():
    return selftest.right_dump(llama().network, IDS)


def printed(name, op, values, sum_=True, show=3, prefix="ggml_debug"):
    """A tensor as llama.cpp prints it: the first and last three of each axis, and the sum of all in float32."""
    values = np.asarray(values, np.float32)
    values = values.reshape((1,) * (4 - values.ndim) + values.shape)
    ne = ", ".join(map(str, values.shape[::-1]))
    lines = [f"{prefix}: {name:>24} = (f32) {op:>10}(a.weight{{8, 8, 1, 1}}, b{{8, 5, 1, 1}}}}) = {{{ne}}}"]

    def some(count):
        """Places of an axis, None where the middle is left out."""
        if count <= 2 * show:
            return range(count)
        return [*range(show), None, *range(count - show, count)]

    for i in range(len(values)):
        lines.append("    [")
        for j in some(values.shape[1]):
            lines.append("        [" if j is not None else "        ..., ")
            for k in some(values.shape[2]) if j is not None else ():
                row = (
                    [] if k is None else [values[i, j, k, x] if x is not None else None for x in some(values.shape[3])]
                )
                shown = ", ".join("..." if x is None else f"{x:12.4f}" for x in row)
                lines.append("            ..., " if k is None else f"            [{shown} ],")
            if j is not None:
                lines.append("        ],")
        lines.append("    ]")
    if sum_:
        total = np.float32(0)
        for x in values.reshape(-1):
            total += x
        lines.append(f"    sum = {total:f}")
    return "\n".join(lines) + "\n"


def text_of(arrays, **options):
    found = "llama_context: some line of the log\n"
    for name, values in arrays.items():
        kind, dash, _ = name.rpartition("-")
        op = OPS.get(kind, "MUL_MAT")
        own = name.replace("Qcur_rope", "Qcur")  # which has one name for both
        found += printed(own if dash else name, op, values, **options)
    return found


def read(tmp_path, text):
    path = tmp_path / "log.txt"
    path.write_text(text)
    return dumps.read(path)


def against(tmp_path, arrays, right, **options):
    return compare_dumps(read(tmp_path, text_of(arrays, **options)), right, llama().network)


@pytest.mark.parametrize("prefix", ["ggml_debug", "common_debug_cb_eval"])
def test_what_is_shown_agrees(tmp_path, right, prefix):
    arrays = of_llama_cpp(right.arrays, len(IDS))
    result = against(tmp_path, arrays, right, prefix=prefix)
    rows = {row.tensor.name: row for row in result.rows if row.status != "absent"}
    assert result.holds and {"h.0.attn.q", "h.1.attn.q_rope", "h.0.attn.scores", "h.1.mlp.product"} <= set(rows)
    assert rows["h.0.attn.q"].source == "Qcur-0" and rows["h.0.attn.q_rope"].source == "Qcur_rope-0"
    assert rows["h.0"].size == 6 * 6 and rows["h.0.attn.q"].size == 6 * 6 * 6
    assert any("the text shows" in note and "to four decimals" in note for note in result.notes)
    assert any("sums can't be compared" in note and "h.0.attn.scores" in note for note in result.notes)


def test_a_value_that_is_shown_and_wrong_is_found(tmp_path, right):
    arrays = of_llama_cpp(right.arrays, len(IDS))
    arrays["l_out-0"][..., 1, 2] += 0.01
    result = against(tmp_path, arrays, right)
    assert result.first.tensor.name == "h.0" and result.first.wrong == 1 and result.first.worst == (1, 2)


def test_a_value_that_is_left_out_shows_in_the_sum(tmp_path, right):
    arrays = of_llama_cpp(right.arrays, len(IDS))
    arrays["l_out-1"][..., 1, 20] += 5
    result = against(tmp_path, arrays, right)
    assert result.first.tensor.name == "h.1" and "the values shown agree, but all sum up to" in result.first.how
    assert against(tmp_path, arrays, right, sum_=False).holds  # the control: without the sum nobody can tell
    arrays["l_out-1"][..., 1, 20] -= 5 - 1e-5
    assert against(tmp_path, arrays, right).holds  # float32's own noise


def test_the_last_position_alone_and_the_prompt_among_other_evaluations(tmp_path, right):
    """A step before the prompt, a step after it, and logits of the last position."""
    a = right.arrays
    step = printed("embd", "GET_ROWS", np.ones((1, 48)))
    prompt = printed("embd", "GET_ROWS", a["embed"]) + printed("result_output", "MUL_MAT", a["logits"][-1:])
    dump = read(tmp_path, step + prompt + step)
    assert dump.shape("embd") == (1, 1, len(IDS), 48)
    result = compare_dumps(dump, right)
    assert result.holds and [row.tensor.name for row in result.rows if row.status == "ok"] == ["embed", "last_logits"]


def test_values_that_are_not_numbers_are_wrong(tmp_path, right):
    values = right.arrays["ln_f"].copy()
    values[0, 0] = np.nan
    result = compare_dumps(read(tmp_path, printed("result_norm", "MUL", values)), right)
    assert not result.holds and result.first.wrong == 1


def test_the_context_and_the_attentions_output_by_what_makes_them(tmp_path):
    values = np.ones((4, 8))
    merged, output = printed("kqv_out-0", "CONT", values), printed("kqv_out-1", "MUL_MAT", values)
    assert set(read(tmp_path, merged + output).arrays) == {"kqv_merged_cont-0", "attn_out-1"}


BROKEN = {
    "values alone": "[ 1.0, 2.0 ],\n",
    "no values": "ggml_debug: x = (f32) ADD(a{1}) = {2, 2, 1, 1}\n",
    "a huge shape": "ggml_debug: l_out-0 = (f32) ADD(a{1}) = {99999999999, 999999999, 1, 1}\n[[[ 1.0 ],],]\n",
    "brackets without an end": "ggml_debug: l_out-0 = (f32) ADD(a{1}) = {4, 1, 1, 1}\n" + "[" * 500 + "1.0\n",
    "more values than the shape has": "ggml_debug: l_out-0 = (f32) ADD(a{1}) = {1, 1, 1, 1}\n[[[ 1.0, 2.0, 3.0 ],],]\n",
    "no numbers": "hello\n",
    "an integer's": "ggml_debug: ids = (i32) ADD(a{1}) = {2, 2, 1, 1}\n[[[ 1, 2 ],],]\n",
}


@pytest.mark.parametrize("case", BROKEN)
def test_texts_that_are_odd(tmp_path, right, case):
    path = tmp_path / "log.txt"
    path.write_text(BROKEN[case])
    found = eval_callback.read(path)
    assert all(len(shown.at) <= 1 for shown in found.values())
    try:
        assert not compare_dumps(dumps.read(path), right).holds
    except ValueError as error:
        assert "no tensor whose name is known" in str(error) or "safetensors" in str(error)


# ---- the 8-bit activations that llama.cpp has ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1", "Q4_0", "Q8_0"])
def test_products_beside_quantised_weights_are_ggmls(kind):
    """Against ggml's own formula, block by block in whole numbers: scales, minima and sums by themselves."""
    gguf = pytest.importorskip("gguf")

    x = rng(1).standard_normal((3, 64)).astype(np.float32)
    w = rng(2).standard_normal((5, 64)).astype(np.float32)
    quant = gguf.GGMLQuantizationType[kind]
    w = gguf.quants.dequantize(gguf.quants.quantize(w, quant), quant)
    wide, blocks = w.T.astype(np.float64), x.reshape(3, 2, 32)
    scale = np.abs(blocks).max(-1) / np.float32(127)
    whole = np.round(blocks * (np.float32(127) / np.abs(blocks).max(-1))[..., None]).astype(np.int64)
    exact = scale.astype(np.float16).astype(np.float64)
    minimum = w.reshape(5, 2, 32).min(-1).astype(np.float64) * (kind in ("Q4_1", "Q5_1"))
    above = w.reshape(5, 2, 32) - minimum[..., None]
    sums = (whole.sum(-1) * scale).astype(np.float16).astype(np.float64)
    wanted = np.einsum("obk,tbk,tb->to", above, whole, exact) + sums @ minimum.T.reshape(2, 5)
    fewer, more = as_ggml(x.astype(np.float64), wide, kind)
    found = fewer @ wide + (0 if more is None else more)
    assert np.abs(found - wanted).max() < 1e-6 and (more is not None) == (kind in ("Q4_1", "Q5_1"))
    assert np.abs(x @ wide - wanted).max() > 1e-3  # the control


def test_blocks_of_256_beside_k_quants():
    x = rng(3).standard_normal((2, 512))
    fewer, more = as_ggml(x, np.zeros((512, 4)), "Q6_K")
    steps = fewer.reshape(2, 2, 256) / (np.abs(x.reshape(2, 2, 256)).max(-1, keepdims=True) / 127)
    assert more is None and np.abs(steps - np.round(steps)).max() < 1e-4
    assert np.abs(fewer - x).max() <= np.abs(x).max() / 127 * 0.51
    assert as_ggml(x[:, :96], np.zeros((96, 4)), "Q6_K")[0] is not None


def test_llama_cpps_activations_are_named(tmp_path):
    """A Llama in Q4_1 whose products are ggml's, in every block: by its name, and nothing of the kind beside floats."""
    gguf = pytest.importorskip("gguf")
    entries = LLAMA | {"hidden_size": 96, "intermediate_size": 64}
    config, tensors = llama_tensors(entries)
    quant = gguf.GGMLQuantizationType.Q4_1

    def quantise(name, values):
        return (gguf.quants.quantize(values, quant), quant) if values.ndim == 2 else (values, None)

    write_gguf(
        tmp_path / "m.gguf", FAMILY, config, tensors, "llama", llama_metadata(config), quantise=quantise
    )  # fmt: skip
    model = Model(tmp_path / "m.gguf")
    faulty = model.network.copy()
    for block in faulty.blocks:
        block.beside = as_ggml
    right = selftest.right_dump(model.network, IDS)
    wrong = faulty.run(IDS, Kernels())
    norms = {f"attn_norm-{i}": wrong[f"h.{i}.ln_1"] for i in (0, 1)}
    text = read(tmp_path, text_of(of_llama_cpp(wrong, len(IDS)) | norms))
    for theirs in (Dump(wrong, {}, "theirs"), text):
        result = compare_dumps(theirs, right, model.network)
        assert result.first.tensor.name == "h.0.attn.q" and result.diagnosis.key == "inputs-ggml-q8_0"
        assert "as llama.cpp has them" in result.diagnosis.says and "every" in result.diagnosis.where
    assert "inputs-ggml-q8_0" not in {fault.key for fault in faults.of(llama().network)}


def test_the_softmax_of_scores_is_compared(tmp_path, right):
    """kq_soft_max, with room for more positions: in whole arrays and in the text."""
    arrays = of_llama_cpp(right.arrays, len(IDS))
    scores = right.arrays["h.1.attn.scores"].astype(np.float64)
    weights = np.zeros((1, *scores.shape[:2], 32), np.float32)
    weights[0, ..., : len(IDS)] = Float64().softmax(scores)
    arrays["kq_soft_max-1"] = weights
    for result in (compare_dumps(Dump(arrays, {}, "theirs"), right), against(tmp_path, arrays, right)):
        (row,) = [row for row in result.rows if row.tensor.name == "h.1.attn.weights"]
        assert result.holds and row.source == "kq_soft_max-1" and row.note == f"the first {len(IDS)} of 32 positions"
    weights[0, 1, 3, 2] += 0.01
    wrong = compare_dumps(Dump(arrays, {}, "theirs"), right, llama().network)
    assert wrong.first.tensor.name == "h.1.attn.weights" and wrong.first.worst == (1, 3, 2) and wrong.diagnosis is None
    assert "nothing behind the attention weights diverges: no fault was tried" in wrong.notes
    faulty = faults.by_key(llama().network)["softmax-axis"].inject(llama().network, 1)
    made = dict(right.arrays) | selftest.dump_of(faulty, right, (1,))
    arrays = of_llama_cpp(made, len(IDS)) | {"kq_soft_max-1": weights}
    both = compare_dumps(Dump(arrays, {}, "theirs"), right, llama().network)
    assert both.first.tensor.name == "h.1.attn.weights" and both.diagnosis.key == "softmax-axis"
