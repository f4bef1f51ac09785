"""llorch.ray on a cluster of two nodes of one CPU: the same bits in any split, and after a worker was killed."""

import datetime
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import sentence_models
from helpers import bits, num_threads

import llorch
from llorch import receipts

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pa = pytest.importorskip("pyarrow")

import llorch.ray as adapter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of what it has deprecated

WORDS = [
    "ROMEO:",
    "What light",
    "First Citizen:\n",
    "Is the day so young?",
    "O",
    "To be, or not to be",
    "KING",
    "Speak",
]
ROWS = [{"id": f"k{i}", "prompt": f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} {i}"} for i in range(192)]
OPTIONS = {"model": "shakespeare-1m", "key": "id"}
DRAWN = OPTIONS | {"max_new_tokens": 8, "temperature": 0.9, "seed": 5, "receipt": True}


def objects(values):
    """A column of NumPy, of values of any lengths."""
    values = list(values)
    made = np.empty(len(values), object)
    for i, value in enumerate(values):
        made[i] = value
    return made


def batch_of(rows):
    """As Ray gives it."""
    return {name: objects(row[name] for row in rows) for name in rows[0]}


@pytest.fixture(scope="module")
def model():
    return llorch.CausalLM.from_pretrained("shakespeare-1m")


# ---- rows ------------------------------------------------------------------------------------------------


def test_the_seed_of_a_row_is_a_function_of_its_key():
    # The documented bytes, written out here.
    text = b"llorch seed of a row 1\n" + b"i\1\0\0\0\0\0\0\0" + b"5" + b"s\3\0\0\0\0\0\0\0" + b"k17"
    wanted = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    assert adapter.seed_of(5, "k17") == wanted != adapter.seed_of(6, "k17")
    assert adapter.seed_of(5, 17) == adapter.seed_of(5, np.int32(17)) != adapter.seed_of(5, "17")
    for key in (None, True, 1.5, ["k"]):
        with pytest.raises(TypeError, match="must be an integer, a text or bytes"):
            adapter.seed_of(5, key)


def test_the_digest_is_that_of_its_documented_bytes():
    def framed(letter, payload):
        return letter + len(payload).to_bytes(8, "little") + payload

    def row(text, numbers):
        array = framed(b"a", b"f4 2 " + np.array(numbers, "<f4").tobytes())
        return hashlib.sha256(framed(b"s", b"e") + array + framed(b"s", b"t") + framed(b"s", text)).digest()

    keys = [framed(b"i", b"10"), framed(b"i", b"9")]  # in the order of their bytes: shorter first
    made = framed(b"i", b"9") + row(b"x", [1, -0.0]) + framed(b"i", b"10") + row("ü".encode(), [2, 3])
    assert sorted(keys) == [keys[1], keys[0]]
    wanted = hashlib.sha256(b"llorch digest of rows 1\n" + made).hexdigest()
    batch = {"id": [10, 9], "t": ["ü", "x"], "e": np.array([[2, 3], [1, -0.0]], np.float32)}
    assert adapter.digest([batch], key="id") == adapter.digest([batch], key="id", columns=["t", "e"]) == wanted
    table = pa.table({"id": pa.array([10, 9], pa.int8()), "t": ["ü", "x"], "e": pa.array(list(batch["e"]))})
    assert adapter.digest([table.slice(1), table.slice(0, 1)], key="id") == wanted


VALUES = {
    "float32": pa.array([1.5, None, -0.0], pa.float32()),
    "float64": pa.array([1.5, None, -0.0], pa.float64()),
    "zero": pa.array([1.5, None, 0.0], pa.float64()),
    "int": pa.array([1, None, 0], pa.int64()),
    "bool": pa.array([True, None, False]),
    "text": pa.array(["1", None, ""]),
    "bytes": pa.array([b"1", None, b""]),
    "time": pa.array([1, None, 0], pa.timestamp("us")),
    "list of float32": pa.array([[1.5], None, []], pa.list_(pa.float32())),
    "list of float64": pa.array([[1.5], None, []], pa.list_(pa.float64())),
    "list of ints": pa.array([[1], None, []], pa.list_(pa.int32())),
    "list with a null": pa.array([[None, 1], None, []], pa.list_(pa.int32())),
    "list of texts": pa.array([["1"], None, []], pa.list_(pa.string())),
    "time of day": pa.array([1, None, 0], pa.time32("s")),
    "time of day in ns": pa.array([1, None, 0], pa.time64("ns")),
    "mapping": pa.array([{"a": 1}, None, {"a": None}]),
    "mapping of float32": pa.array([{"tensor": 0.5}, None, {"tensor": 1.0}], pa.struct({"tensor": pa.float32()})),
    "mapping of float64": pa.array([{"tensor": 0.5}, None, {"tensor": 1.0}], pa.struct({"tensor": pa.float64()})),
    "pairs with float32": pa.array([[("a", 0.5)], None, []], pa.map_(pa.string(), pa.float32())),
    "pairs with float64": pa.array([[("a", 0.5)], None, []], pa.map_(pa.string(), pa.float64())),
    "list of lists": pa.array([[[1.5], []], None, []], pa.list_(pa.list_(pa.float32()))),
}


def test_values_count_by_their_bits():
    found = {name: adapter.digest([{"id": [1, 2, 3], "v": values}], key="id") for name, values in VALUES.items()}
    assert len(set(found.values())) == len(VALUES)
    for name, values in VALUES.items():  # cut into chunks, and in another order
        parts = [{"id": [2, 3], "v": values.slice(1)}, {"id": [1], "v": pa.chunked_array([values.slice(0, 1)])}]
        assert adapter.digest(parts, key="id") == found[name], name


def test_widths_of_integers_and_kinds_of_nan_dont_count():
    def digest(*values):
        return adapter.digest([{"id": range(len(values)), "v": list(values)}], key="id")

    nans = [np.float32(np.nan), -np.float32(np.nan), np.array([0x7FC00123], np.uint32).view(np.float32)[0]]
    assert len({digest(nan) for nan in nans}) == 1 != len({digest(np.float32(np.nan)), digest(np.float64(np.nan))})
    assert digest(3, [3]) == digest(np.uint8(3), np.array([3], np.int16)) != digest(4, [3])
    assert digest(np.array([2**63], np.uint64)) != digest(np.array([-(2**63)], np.int64))
    assert digest([1, 2]) == digest((np.int8(1), 2)) != digest([1.0, 2.0])
    assert digest([True]) != digest([1]) and digest([1, 1.5]) != digest([1.0, 1.5])
    assert digest(np.zeros((2, 3), np.float32)) != digest(np.zeros((3, 2), np.float32))
    assert digest(np.array(1, np.float32)) == digest(np.float32(1)) != digest(np.float64(1))
    assert digest([1, 2**63]) == digest(np.array([1, 2**63], np.uint64)) != digest([-1, 2**63])
    assert digest([np.int64(-1), np.uint64(2**63)]) == digest([-1, 2**63]) != digest([2**64 - 1, 2**63])


def test_the_same_values_have_the_same_bytes_in_any_column():
    """Of an Arrow column, of Ray's own arrays in one, and of Python's or NumPy's values."""

    def digest(values):
        return adapter.digest([{"id": range(len(values)), "v": values}], key="id")

    floats = [np.array([0.5, 2], np.float32), None, np.array([1.5], np.float32)]
    for made in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view):
        assert digest(pa.array([each if each is None else each.tolist() for each in floats], made(pa.float32()))) == (
            digest(floats)
        )
    block = ray.data.block.BlockAccessor.batch_to_arrow_block
    square = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    assert block({"v": square})["v"].type.extension_name.startswith("ray.data.")
    shaped = pa.FixedShapeTensorArray.from_numpy_ndarray(square)
    lists = pa.array(square.tolist(), pa.list_(pa.list_(pa.float32())))
    for column in (block({"v": square})["v"], shaped, lists, [list(each) for each in square]):
        assert digest(column) == digest(square) != digest(square.astype(np.float64))
    some = block({"v": square[:, 0]})["v"].chunk(0)
    some = pa.ExtensionArray.from_storage(some.type, pa.array([[0, 1], None], some.type.storage_type))
    assert digest(some) == digest([square[0, 0], None])
    assert digest(block({"v": objects([{"a": 1}, None])})["v"]) == digest([{"a": 1}, None])

    zone = datetime.timezone(datetime.timedelta(hours=2))
    moment, day = datetime.datetime(2024, 5, 6, 7, 8, 9, 10), datetime.date(2024, 5, 6)
    hour = datetime.time(7, 8, 9, 10)
    for value, kind in ((moment, pa.timestamp("us")), (day, pa.date32()), (hour, pa.time64("us"))):
        assert digest(pa.array([value, None], kind)) == digest([value, None])
    assert digest([moment.replace(tzinfo=zone)]) == digest([moment - datetime.timedelta(hours=2)]) != digest([moment])
    assert digest([hour]) == digest([datetime.datetime.combine(day, hour) - datetime.datetime(2024, 5, 6)])


def test_a_digest_says_what_is_wrong_with_rows():
    batch = {"id": ["a", "b"], "v": [1, 2]}
    with pytest.raises(ValueError, match="two rows have the key 'b': a digest needs keys that differ"):
        adapter.digest([batch, {"id": ["c", "b"], "v": [3, 4]}], key="id")
    with pytest.raises(TypeError, match="key must be an integer, a text or bytes, got None"):
        adapter.digest([{"id": ["a", None], "v": [1, 2]}], key="id")
    with pytest.raises(ValueError, match="no column 'w', they have 'id', 'v'"):
        adapter.digest([batch], key="id", columns=["w"])
    with pytest.raises(TypeError, match="row 'a', column 'v': a set has no bytes"):
        adapter.digest([{"id": ["a"], "v": [{1}]}], key="id")
    with pytest.raises(TypeError, match="a mapping's names must be texts, got 1"):
        adapter.digest([{"id": ["a"], "v": [{1: 2}]}], key="id")
    union = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([0.5])])
    same = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    for values, message in ((union, "have no bytes"), (same, "two fields of one name")):
        with pytest.raises(TypeError, match=f"column 'v': .*{message}"):
            adapter.digest([{"id": ["a"], "v": values}], key="id")
    with pytest.raises(TypeError, match="an Arrow table or a mapping of columns, got a DataFrame"):
        adapter.digest([pa.table(batch).to_pandas()], key="id")
    with pytest.raises(TypeError, match="columns must be several names"):
        adapter.digest([batch], key="id", columns="v")
    with pytest.raises(TypeError, match="rows must be a dataset, or batches"):
        adapter.digest(batch, key="id")


# ---- workers, called as Ray calls them ---------------------------------------------------------------------


def test_a_row_has_what_generate_gives_for_it_alone(model):
    with num_threads(2):
        made = adapter.Generate(**DRAWN, sequences=5)(batch_of(ROWS[:12]))
        assert llorch.get_num_threads() == 2  # outside an actor they stay
    for row, text, receipt in zip(ROWS, made["generated"], made["receipt"], strict=False):
        seed = adapter.seed_of(5, row["id"])
        assert text == model.generate(row["prompt"], 8, temperature=0.9, seed=seed)
        assert json.loads(receipt)["seed"] == seed
    assert receipts.verify(receipts.loads(made["receipt"][3]), model).message.startswith("equal: 8 tokens")
    ids = [model.tokenizer.prompt(row["prompt"]) for row in ROWS[:3]]
    by_ids = adapter.Generate("shakespeare-1m", 8)({"prompt": objects(map(np.array, ids))})
    assert [list(map(int, one)) for one in by_ids["generated"]] == [model.generate(one, 8) for one in ids]


BAD = [{"id": "good", "text": "What light"}, {"id": "null", "text": None}, {"id": "long", "text": "O " * 300}]


def test_a_bad_row_is_named_by_its_key_or_kept_beside_its_error(model, tmp_path):
    encoder = sentence_models.write_modules(sentence_models.save(tmp_path / "encoder"))
    workers = {
        "generated": lambda **o: adapter.Generate("shakespeare-1m", 3, prompt="text", **o),
        "log_likelihood": lambda **o: adapter.Score("shakespeare-1m", **o),
        "embedding": lambda **o: adapter.Embed(encoder, **o),
    }
    for output, made in workers.items():
        with pytest.raises(adapter.RowError, match=r"^row 'null': "):
            made(key="id")(batch_of(BAD))
        with pytest.raises(adapter.RowError, match=r"^row with text None: "):
            made()(batch_of(BAD))
        alone = made()(batch_of(BAD[:1]))[output]
        found = made(key="id", errors="column")(batch_of(BAD))
        assert found["error"][0] == "" and "null" in found["error"][1] and list(found["id"]) == ["good", "null", "long"]
        assert (found["error"][2] == "") == (output == "embedding")  # an encoder cuts long texts
        if output == "generated":
            assert found[output][0] == alone[0] and found[output][1] is found[output][2] is None
        else:
            assert (bits(found[output][:1]) == bits(alone)).all() and np.isnan(found[output][1]).all()
    with pytest.raises(adapter.RowError, match="row 'long': text has 301 tokens, the context only 256"):
        workers["generated"](key="id")(batch_of(BAD[2:]))


def test_arguments_that_are_wrong_for_all_rows_are_no_rows_fault():
    for wrong in ({"max_new_tokens": 256}, {"stop": ""}, {"temperature": -1.0}, {"seed": -1}, {"errors": "skip"}):
        with pytest.raises(ValueError):
            adapter.Generate("shakespeare-1m", **{"max_new_tokens": 3, "key": "id", "errors": "column"} | wrong)
    with pytest.raises(ValueError, match="key must be the name of a column"):
        adapter.Generate("shakespeare-1m", 3, temperature=1.0)
    with pytest.raises(ValueError, match="stride"):
        adapter.Score("shakespeare-1m", stride=256, errors="column")
    worker = adapter.Generate("shakespeare-1m", 3, key="id", errors="column")
    with pytest.raises(ValueError, match="no column 'prompt', they have 'id', 'text'"):
        worker(batch_of(BAD))
    with pytest.raises(ValueError, match="have a column 'generated' already"):
        worker(batch_of([{"id": 1, "prompt": "a", "generated": "b"}]))
    with pytest.raises(TypeError, match=r"columns of NumPy, got a DataFrame: let the batch_format .* be \"pyarrow\""):
        worker(pa.table({"id": [1], "prompt": ["a"]}).to_pandas())
    worker = adapter.Generate("shakespeare-1m", 3, stop="x", errors="column")
    for rows in ({"prompt": objects([[1, 2]])}, pa.table({"prompt": [[1, 2]]}), {"prompt": np.array([[1, 2]])}):
        with pytest.raises(TypeError, match="stop has a string, but prompt is ids"):
            worker(rows)


def test_a_broken_tokenizer_is_no_rows_fault(model, tmp_path):
    folder = shutil.copytree(model.path, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    worker = adapter.Score(folder, errors="column")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        worker({"text": objects(["What light"])})
    assert list(worker({"text": objects([[1, 2]])})["error"]) == [""]  # ids need none
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        adapter.Generate(folder, 3, errors="column")


def test_a_null_among_integers_changes_no_other_row():
    """In Ray's NumPy batches it makes floats of them all."""
    large, inside = 2**53 + 1, pa.struct({"a": pa.int64()})
    table = pa.table(
        {
            "id": pa.array([large, None, 3], pa.int64()),
            "prompt": WORDS[:3],
            "n": pa.array([None, large, 1], pa.int64()),
            "inside": pa.array([{"a": large}, {"a": None}, None], inside),
            "several": pa.array([[large, None], [2], []], pa.list_(pa.int64())),
            "name": ["a", "b", "c"],
        }
    )
    worker = adapter.Generate("shakespeare-1m", 2, key="id", temperature=1.0, errors="column")
    splits = [[worker(table)], [worker(table.slice(0, 1)), worker(table.slice(1))]]
    assert len({adapter.digest(split, key="name") for split in splits}) == 1
    made = splits[0][0]
    assert made.select(table.column_names) == table and made.column_names[6:] == ["generated", "error"]
    wrong = made["error"].to_pylist()
    assert wrong[0] == wrong[2] == "" and "must be an integer, a text or bytes, got None" in wrong[1]
    assert made.schema.field("generated").type == made.schema.field("error").type == pa.string()
    with pytest.raises(adapter.RowError, match=r"^row None: "):
        adapter.Generate("shakespeare-1m", 2, key="id", temperature=1.0)(table)

    # The negative control: as NumPy's columns.
    rows = [ray.data.block.BlockAccessor.for_block(part).to_numpy() for part in (table, table.slice(0, 1))]
    with pytest.raises(TypeError, match=r"id must be integers, texts or bytes, got 9007.*Ray's NumPy batches"):
        worker(rows[0])
    assert int(rows[0]["id"][0]) != large == int(worker(rows[1])["id"][0])


def test_an_arrow_table_gets_the_columns_that_numpys_rows_get(tmp_path):
    """As Ray would make them of NumPy's."""
    encoder = sentence_models.write_modules(sentence_models.save(tmp_path / "encoder"))
    for worker in (
        adapter.Embed(encoder, errors="column"),
        adapter.Score("shakespeare-1m", by_token="each", errors="column"),
        adapter.Generate("shakespeare-1m", 2, prompt="text", receipt=True, errors="column"),
    ):
        of_numpy = ray.data.block.BlockAccessor.batch_to_arrow_block(worker(batch_of(BAD)))
        of_arrow = worker(pa.Table.from_pylist(BAD))
        assert of_arrow.schema == of_numpy.schema
        assert adapter.digest([of_arrow], key="id") == adapter.digest([of_numpy], key="id")


# ---- two nodes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one CPU each, in processes, ports and folders of their own. It is gone after the tests."""
    from ray.cluster_utils import Cluster

    folder = Path(f"/tmp/llorch-ray-{os.getpid()}")  # sockets have short names
    (folder / "ray").mkdir(parents=True)
    paths = os.pathsep.join([str(Path(llorch.__file__).parents[1]), str(Path(sentence_models.__file__).parent)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")]))
        patch.chdir(folder)  # workers import from the job's folder first, and llorch's source tree isn't llorch
        node = {"num_cpus": 1, "object_store_memory": 80 << 20}
        patient = {"health_check_timeout_ms": 120_000, "health_check_failure_threshold": 20}  # a busy machine is slow
        made = Cluster(
            initialize_head=True, head_node_args=node | {"include_dashboard": False, "_system_config": patient}
        )
        try:
            made.add_node(**node)
            ray.init(made.address, log_to_driver=False, logging_level="error")
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def job(rows, blocks, worker, actors=1, batch_size=None, **options):
    made = ray.data.from_items(rows, override_num_blocks=blocks)
    whole = adapter.pool(leave=0) | {"compute": ray.data.ActorPoolStrategy(size=actors)}
    return made.map_batches(worker, fn_constructor_kwargs=options, batch_size=batch_size, **whole)


def killed_once(marker, after):
    """A worker whose process is killed in the middle of a block, once."""

    class Killed(adapter.Generate):
        done = 0

        def __call__(self, rows):
            if self.done == after and not os.path.exists(marker):
                open(marker, "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
            self.done += 1
            made = super().__call__(rows)
            threads, nodes = [llorch.get_num_threads()] * len(made), [_node()] * len(made)
            return made.append_column("threads", [threads]).append_column("node", [nodes])

    def _node():
        return ray.get_runtime_context().get_node_id()

    return Killed


def test_any_split_has_the_same_digest_also_after_a_kill(cluster, tmp_path):
    columns, marker = ["prompt", "generated", "receipt"], str(tmp_path / "killed")
    direct = adapter.Generate(**DRAWN)(batch_of(ROWS))
    wanted = adapter.digest([direct], key="id", columns=columns)

    # One actor, large batches, the rows backwards; the digest is computed where they are.
    out = job(ROWS[::-1], 3, adapter.Generate, batch_size=50, **DRAWN)
    assert adapter.digest(out, key="id", columns=columns) == wanted

    # Two actors of which one is killed, small batches, another order.
    rows = ROWS[::2] + ROWS[1::2]
    out = job(rows, 8, killed_once(marker, 2), actors=2, batch_size=7, **DRAWN).take_all()
    assert os.path.exists(marker)
    assert sorted(row["id"] for row in out) == sorted(row["id"] for row in ROWS)  # none lost, none twice
    assert adapter.digest([batch_of(out)], key="id", columns=columns) == wanted
    assert {row["threads"] for row in out} == {1}  # what Ray gave each, not what the machine has
    assert len({row["node"] for row in out}) == 2

    # The negative control: a row with another bit, a row that is missing.
    out[100]["generated"] += "!"
    assert adapter.digest([batch_of(out)], key="id", columns=columns) != wanted
    assert adapter.digest([batch_of(out[:100])], key="id", columns=columns) != wanted


def test_score_and_embed_in_one_job(cluster, model, tmp_path):
    """Both nodes' CPUs are taken by actors, and the digest's tasks run beside them."""
    folder = sentence_models.write_modules(sentence_models.save(tmp_path / "encoder"))
    rows = [*ROWS[:40], {"id": "bad", "prompt": "O " * 300}]
    scored = job(
        rows,
        4,
        adapter.Score,
        batch_size=6,
        model="shakespeare-1m",
        text="prompt",
        by_token="log_probabilities",
        errors="column",
    )
    out = scored.map_batches(
        adapter.Embed,
        fn_constructor_kwargs={"model": str(folder), "text": "prompt"},
        batch_size=9,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    scores = [model.score(row["prompt"]) for row in ROWS[:40]]
    embeddings = llorch.TextEncoder.from_pretrained(folder).encode([row["prompt"] for row in rows])
    direct = {
        "id": [row["id"] for row in rows],
        "log_likelihood": [*(one.log_likelihood for one in scores), np.nan],
        "log_probabilities": [*(one.log_probabilities for one in scores), []],
        "embedding": embeddings,
    }
    columns = list(direct)[1:]
    wanted = adapter.digest([direct], key="id", columns=columns)
    assert adapter.digest(out, key="id", columns=columns) == wanted
    embeddings[3, 7] = np.nextafter(embeddings[3, 7], np.float32(1))
    assert adapter.digest([direct], key="id", columns=columns) != wanted


def test_a_job_ends_by_an_error_that_names_the_row(cluster):
    rows = [*ROWS[:5], {"id": "the bad one", "prompt": "O " * 300}]
    with pytest.raises(Exception, match="row 'the bad one': prompt has 301 tokens, the context only 256"):
        job(rows, 2, adapter.Generate, **OPTIONS, max_new_tokens=2).take_all()


def test_a_pool_leaves_cpus_for_tasks(cluster):
    assert adapter.pool(leave=0)["num_cpus"] == 1 and adapter.pool(leave=0)["compute"].max_size == 2
    with pytest.raises(ValueError, match="a node has 1 CPU, and leave=1 of each are to stay free"):
        adapter.pool()
    for wrong, error in ((-1, ValueError), (True, TypeError), (0.5, TypeError)):
        with pytest.raises(error, match="leave must be"):
            adapter.pool(leave=wrong)


# ---- a peer ------------------------------------------------------------------------------------------------


def test_a_peer_in_padded_batches_has_a_digest_for_each_size(model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32).eval()
    rows = ROWS[:28]

    def by_peer(size):
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            ids = [model.tokenizer.prompt(row["prompt"]) for row in some]
            width = max(map(len, ids))
            padded = torch.tensor([one + [0] * (width - len(one)) for one in ids])
            mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids])
            with torch.no_grad():
                logs = peer(padded, attention_mask=mask).logits.log_softmax(-1)
            sums = [logs[i, range(len(one) - 1), one[1:]].sum().item() for i, one in enumerate(ids)]
            yield {"id": [row["id"] for row in some], "log_likelihood": np.array(sums)}

    def by_llorch(size):
        worker = adapter.Score("shakespeare-1m", text="prompt")
        return [worker(batch_of(rows[first : first + size])) for first in range(0, len(rows), size)]

    sizes, columns = (1, 7, 28), ["log_likelihood"]
    ours = {adapter.digest(by_llorch(size), key="id", columns=columns) for size in sizes}
    theirs = [adapter.digest(by_peer(size), key="id", columns=columns) for size in sizes]
    assert len(ours) == 1 and len(set(theirs)) == len(sizes)
    near = np.concatenate([batch["log_likelihood"] for batch in by_peer(7)])  # they compute the same otherwise
    assert np.allclose(near, by_llorch(28)[0]["log_likelihood"], rtol=1e-4)
