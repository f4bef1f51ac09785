"""`llorch serve`: answers by the real openai client and by httpx, in processes of their own."""

import base64
import json
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import get_type_hints

import httpx
import numpy as np
import pytest
import sentence_models
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import SMALL, chat_model, client, serving

import llorch
from llorch.cli import main
from llorch.models.gpt2 import GPT2Config
from llorch.models.shapes import write_random
from llorch.serve import requests
from llorch.serve.requests import Asked
from llorch.text.sampling import SamplingParameters, log_probabilities

openai = pytest.importorskip("openai")
for name in ("starlette", "uvicorn", "prometheus_client", "llguidance"):
    pytest.importorskip(name)

PROMPTS = ["ROMEO:", "O", "KING RICHARD III:\nNow is the winter of our discontent", "JULIET:\n" * 9, "First Citizen:"]
TALK = [{"role": "user", "content": "Who goes there?"}]
RIGHT = {"completions": {"prompt": "O"}, "chat/completions": {"messages": TALK}, "embeddings": {"input": "a"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llorch.CausalLM.from_pretrained(chat_model(tmp_path_factory.mktemp("serve") / "talk"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = sentence_models.save(tmp_path_factory.mktemp("encoder") / "small")
    return llorch.TextEncoder.from_pretrained(sentence_models.write_modules(folder))


@pytest.fixture(scope="module")
def server(model, encoder):
    with serving(model.path, "--embeddings", encoder.path, "--memory", 0.2, "--max-body", 100_000) as (
        process,
        address,
    ):
        yield process, address
        assert process.poll() is None, "it lives after all tests"


@pytest.fixture(scope="module")
def http(server):
    with client(server[1]) as made:
        yield made


@pytest.fixture(scope="module")
def api(server):
    straight = openai.DefaultHttpxClient(trust_env=False)  # no proxy between
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0, http_client=straight) as made:
        yield made


def post(http, path="completions", **body):
    return http.post(f"/v1/{path}", json={"model": "talk"} | body)


def gauge(http, name):
    (value,) = re.findall(rf"^llorch_{name} (\S+)$", http.get("/metrics").text, re.M)
    return float(value)


# ---- the same bits --------------------------------------------------------------------------------------------


def test_an_answer_is_that_of_generate(api):
    for seed, prompt in enumerate(PROMPTS):
        got = api.completions.create(model="talk", prompt=prompt, max_tokens=20, temperature=0.8, top_p=0.9, seed=seed)
        assert got.choices[0].text == SMALL.generate(prompt, 20, temperature=0.8, top_p=0.9, seed=seed)
        assert got.choices[0].finish_reason == "length" and got.choices[0].seed == seed
        count = len(SMALL.tokenizer.prompt(prompt))
        assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (count, 20)


def test_a_crowd_changes_no_bit(http):
    """Eighty requests at once, some of which go away midway: each of the others is what it is alone."""
    jobs = [(PROMPTS[i % 5], 5 + i % 30, i % 11) for i in range(80)]

    def ask(job):
        prompt, most, seed = job
        body = {"model": "talk", "prompt": prompt, "max_tokens": most, "temperature": 1.1, "seed": seed}
        if seed == 7:
            with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
                next(answer.iter_lines())
            return None
        return http.post("/v1/completions", json=body).json()["choices"][0]["text"]

    with ThreadPoolExecutor(32) as pool:
        got = list(pool.map(ask, jobs))
    alone = {job: SMALL.generate(job[0], job[1], temperature=1.1, seed=job[2]) for job in set(jobs)}
    assert got == [None if job[2] == 7 else alone[job] for job in jobs]
    assert len(set(got)) > 20, "they differ among themselves"


def test_choices_are_independent_and_each_can_be_had_alone(api):
    options = dict(model="talk", prompt=["ROMEO:", "O"], max_tokens=12, temperature=1.2)
    got = api.completions.create(**options, n=3)
    assert [choice.index for choice in got.choices] == list(range(6))
    assert len({choice.seed for choice in got.choices}) == 6 and len({choice.text for choice in got.choices}) == 6
    for choice in got.choices:
        prompt = ["ROMEO:", "O"][choice.index // 3]
        assert choice.text == SMALL.generate(prompt, 12, temperature=1.2, seed=choice.seed)
    again = api.completions.create(**options, n=3, seed=got.choices[0].seed)
    assert [choice.text for choice in again.choices] == [choice.text for choice in got.choices]
    fresh = {api.completions.create(**options).choices[0].seed for _ in range(3)}
    assert len(fresh) == 3, "a fresh seed for each request"


def test_a_restart_after_kill_gives_the_same(model, api):
    """One that is killed while it answers, and another in its place."""
    options = dict(model="talk", prompt="O", max_tokens=30, temperature=1.0, seed=5, n=2)
    wanted = [choice.text for choice in api.completions.create(**options).choices]
    with serving(model.path) as (process, address), client(address) as http:
        body = options | {"max_tokens": 250, "stream": True}
        with pytest.raises(httpx.RemoteProtocolError), http.stream("POST", "/v1/completions", json=body) as answer:
            for i, _ in enumerate(answer.iter_lines()):
                if not i:
                    process.send_signal(signal.SIGKILL)
        port = address.rpartition(":")[2]
        process.wait()
        with serving(model.path, "--port", port) as (_, again):
            assert again == address
            got = http.post("/v1/completions", json=options).json()["choices"]
            assert [choice["text"] for choice in got] == wanted


# ---- chat -----------------------------------------------------------------------------------------------------


def test_chat(api, model):
    got = api.chat.completions.create(model="talk", messages=TALK, max_tokens=25, temperature=0.7, seed=3)
    reply = model.chat(TALK, 25, temperature=0.7, seed=3)
    assert got.choices[0].message.content == reply.text and got.choices[0].message.role == "assistant"
    assert got.choices[0].finish_reason == reply.finish_reason and got.usage.prompt_tokens == len(reply.prompt_ids)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Who goes"}, {"type": "text", "text": " there?"}]}]
    again = api.chat.completions.create(model="talk", messages=parts, max_completion_tokens=25, temperature=0.7, seed=3)
    assert again.choices[0].message.content == reply.text
    assert again.usage.prompt_tokens_details.cached_tokens == len(reply.prompt_ids) - 1
    free = api.chat.completions.create(model="talk", messages=TALK, seed=1)
    assert free.choices[0].message.content == model.chat(TALK, temperature=1.0, seed=1).text


def test_a_stream_is_the_answer_in_pieces(api):
    options = dict(model="talk", messages=TALK, max_tokens=30, temperature=0.9, seed=8, n=2)
    whole = api.chat.completions.create(**options)
    pieces = list(api.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert pieces[-1].usage == whole.usage and not pieces[-1].choices
    assert {choice.delta.role for piece in pieces[:2] for choice in piece.choices} == {"assistant"}
    for choice in whole.choices:
        mine = [one for piece in pieces for one in piece.choices if one.index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        assert mine[-1].seed == choice.seed


def test_log_probabilities_are_those_of_score(api):
    got = api.chat.completions.create(
        model="talk", messages=TALK, max_tokens=8, temperature=1.5, seed=2, logprobs=True, top_logprobs=3
    )
    ids = SMALL.tokenizer.prompt("USER:\nWho goes there?\n\nASSISTANT:\n")
    for told in got.choices[0].logprobs.content:
        logits = SMALL.forward(ids)[-1:]
        places = np.argsort(-logits[0], kind="stable")[:3]
        assert [one.logprob for one in told.top_logprobs] == [log_probabilities(logits, [i])[0] for i in places]
        assert [one.token for one in told.top_logprobs] == [SMALL.tokenizer.decode([int(i)]) for i in places]
        (id,) = [i for i in range(1024) if SMALL.tokenizer.decode([i]) == told.token][:1]
        assert told.logprob == log_probabilities(logits, [id])[0] and bytes(told.bytes).decode() == told.token
        ids = [*ids, id]
    text = api.completions.create(model="talk", prompt="O", max_tokens=5, temperature=0, logprobs=2)
    logs = text.choices[0].logprobs
    assert "".join(logs.tokens) == text.choices[0].text and len(logs.token_logprobs) == 5
    assert all(log == max(top.values()) for log, top in zip(logs.token_logprobs, logs.top_logprobs, strict=True))
    assert logs.text_offset[0] == 0 and logs.text_offset[-1] == len("".join(logs.tokens[:-1]))


def test_what_sampling_is_given_reaches_it(api):
    options = dict(model="talk", prompt="O", max_tokens=25, temperature=0)
    plain = api.completions.create(**options).choices[0].text
    assert plain == SMALL.generate("O", 25)
    for name, value in (("presence_penalty", 1.5), ("frequency_penalty", 2.0)):
        text = api.completions.create(**options, **{name: value}).choices[0].text
        assert text == SMALL.generate("O", 25, **{name: value}) != plain
    text = api.completions.create(**options, extra_body={"repetition_penalty": 1.9, "top_k": 3}).choices[0].text
    assert text == SMALL.generate("O", 25, repetition_penalty=1.9) != plain
    word = plain.split()[2]
    stopped = api.completions.create(**options, stop=[word, "never"]).choices[0]
    assert stopped.text == plain[: plain.index(word)] and stopped.finish_reason == "stop"


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "x-guidance": {"whitespace_flexible": False},  # the small model would write spaces for ever
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_answers_by_a_schema(api):
    kind = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    told = set()
    for seed in range(6):
        got = api.chat.completions.create(
            model="talk", messages=TALK, max_tokens=120, temperature=1.0, seed=seed, response_format=kind
        )
        assert got.choices[0].finish_reason == "stop"
        answer = json.loads(got.choices[0].message.content)
        assert set(answer) == {"name", "age"} and len(answer["name"]) <= 12 and 0 <= answer["age"] <= 99
        told.add(got.choices[0].message.content)
    assert len(told) == 6
    free = api.chat.completions.create(model="talk", messages=TALK, max_tokens=120, temperature=1.0, seed=0)
    with pytest.raises(ValueError):
        json.loads(free.choices[0].message.content)  # negative control
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        kind = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
        api.chat.completions.create(model="talk", messages=TALK, response_format=kind)


# ---- embeddings, models ---------------------------------------------------------------------------------------


def test_embeddings(api, encoder):
    texts = ["hello world", "the sun"]
    wanted = encoder.encode(texts)
    for how in ("float", "base64"):
        got = api.embeddings.create(model="small", input=texts, encoding_format=how)
        rows = [row.embedding for row in got.data]
        if how == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        assert np.array_equal(np.array(rows, np.float32), wanted)
    assert got.usage.prompt_tokens == 8
    with pytest.raises(openai.NotFoundError, match="there is no model talk here, but small"):
        api.embeddings.create(model="talk", input="a")


def test_models_and_health(api, http):
    assert [one.id for one in api.models.list()] == ["talk", "small"] and api.models.retrieve("talk").id == "talk"
    assert http.get("/health").json() == {"status": "ok"}
    page = http.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"https?://|src=|@import", page.text), "no resource from elsewhere"
    assert http.get("/health", headers={"Host": "elsewhere.example"}).status_code == 400
    assert http.get("/health", headers={"Host": "[::1]:8000"}).status_code == 200


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"logit_bias": {"1": 2}}, 400, "logit_bias", "logit_bias isn't supported"),
        ({"best_of": 2}, 400, "best_of", "best_of isn't supported"),
        ({"prompt": None}, 400, "prompt", "prompt must be a string, token ids, or an array of them"),
        ({"prompt": []}, 400, "prompt", "prompt must be"),
        ({"prompt": [1, 99999]}, 400, "prompt", "prompt[1] is 99999, ids must be in [0, 1024)"),
        ({"prompt": "\ud800"}, 400, "prompt", "has the lone surrogate"),
        ({"model": "gpt"}, 404, "model", "there is no model gpt here, but talk"),
        ({"temperature": 3}, 400, "temperature", "temperature must be in [0, 2], got 3"),
        ({"temperature": True}, 400, "temperature", "temperature must be a number, it is a boolean"),
        ({"top_p": 0}, 400, "top_p", "top_p must be more than 0"),
        ({"seed": -1}, 400, "seed", "seed must be in"),
        ({"n": 0}, 400, "n", "n must be in [1, 128], got 0"),
        ({"stop": [""]}, 400, "stop", "stop must be a string that isn't empty"),
        (
            {"max_tokens": 5000},
            400,
            "prompt",
            "the model's context is 256 tokens: prompt has 1, and 5000 are",
        ),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream_options are for a stream"),
        ({"repetition_penalty": 0}, 400, "repetition_penalty", "repetition_penalty must be more than 0"),
    ],
)
def test_what_is_refused_is_named(http, body, status, param, message):
    answer = http.post("/v1/completions", content=json.dumps({"model": "talk", "prompt": "O"} | body),
                       headers={"Content-Type": "application/json"})  # fmt: skip
    error = answer.json()["error"]
    assert answer.status_code == status and error["param"] == param and message in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": []}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": []}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "name": 5}]}, "name"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
    ],
)
def test_what_a_chat_is_refused_is_named(http, body, param):
    answer = post(http, "chat/completions", **{"messages": TALK} | body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("path", "known"),
    [("chat/completions", requests.CHAT), ("completions", requests.TEXT), ("embeddings", requests.EMBEDDINGS)],
)
def test_every_field_of_the_api_is_obeyed_or_refused(http, path, known):
    """By the openai client's own lists of fields."""
    kinds = {
        "chat/completions": openai.types.chat.completion_create_params.CompletionCreateParamsNonStreaming,
        "completions": openai.types.completion_create_params.CompletionCreateParamsNonStreaming,
        "embeddings": openai.types.EmbeddingCreateParams,
    }
    fields = get_type_hints(kinds[path])
    right = {"model": "small" if path == "embeddings" else "talk", "max_tokens": 1} | RIGHT[path]
    if path == "embeddings":
        del right["max_tokens"]
    assert set(right) <= set(fields) and post(http, path, **right).status_code == 200
    refused = fields.keys() - known
    assert {"logit_bias", "dimensions"} & refused and len(fields) - len(refused) >= 4
    for name in refused:
        answer = post(http, path, **right | {name: "x"})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")


def test_other_refusals(http):
    for answer, status in (
        (http.get("/v1/completions"), 405),
        (http.get("/v1/nothing"), 404),
        (http.get("/v1/receipts/none"), 404),
        (http.post("/v1/completions", content=b'{"model": "talk"}'), 415),
        (post(http, prompt="O" * 100_000), 413),
    ):
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("talk")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)
names = st.sampled_from(
    ["model", "prompt", "messages", "stream", "n", "seed", "stop", "logprobs", "temperature", "max_tokens", "x",
     "response_format", "input", "top_k", "stream_options", "receipt"]
)  # fmt: skip


def body_of(path):
    """Bytes; JSON of the right fields and others; a right body with some fields changed."""
    right = {"model": "small" if path == "embeddings" else "talk"} | RIGHT[path]
    right |= {} if path == "embeddings" else {"max_tokens": 1}
    objects = st.dictionaries(names, values, max_size=5)
    return st.one_of(
        st.binary(max_size=40),
        objects.map(lambda body: json.dumps(body).encode()),
        objects.map(lambda body: json.dumps(right | body).encode()),
    ).map(lambda body: (path, body))


@settings(max_examples=int(os.environ.get("LLORCH_BODIES", "40")))  # .ci/run: 1,000
@given(st.sampled_from(list(RIGHT)).flatmap(body_of))
@example(("completions", b"[" * 10_000))
@example(("chat/completions", b'{"a":' * 90 + b"1" + b"}" * 90))
@example(("completions", b'{"seed": ' + b"9" * 5000 + b"}"))
def test_a_malformed_body_gets_an_error_object(http, given_body):
    path, body = given_body
    answer = http.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
    if answer.headers["content-type"].startswith("text/event-stream"):
        return
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# ---- who goes away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_ends_his_sequences(server, http, stream):
    before = gauge(http, "new_tokens_total")
    body = {"model": "talk", "prompt": "O", "max_tokens": 250, "n": 64, "temperature": 2.0, "stream": stream}
    with client(server[1]) as other:
        if stream:
            with other.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                other.post("/v1/completions", json=body, timeout=0.15)
    for _ in range(100):
        if not gauge(http, "sequences") and not gauge(http, "waiting_sequences"):
            break
        time.sleep(0.01)
    else:
        raise AssertionError("they go on")
    assert gauge(http, "new_tokens_total") - before < 64 * 240
    assert gauge(http, "memory_reserved_bytes") == 0


def test_limits_key_and_shutdown(tmp_path):
    """One server for all: one sequence at a time, none that waits, a key, no time to finish. Its model takes seconds to
    fill its context."""
    write_random(tmp_path, GPT2Config(1024, 8192, 256, 8, 4, bos_token_id=None, eos_token_id=None))
    shutil.copy(SMALL.path / "tokenizer.json", tmp_path)
    options = ("--sequences", 1, "--queue", 0, "--shutdown-seconds", 0, "--max-prompt", 20, "--name", "mine")
    with serving(tmp_path, *options, LLORCH_API_KEY="secret") as (process, address):
        with client(address) as nobody:
            assert nobody.get("/v1/models").status_code == 401 and nobody.get("/health").status_code == 200
            answer = nobody.get("/v1/models", headers={"Authorization": "Bearer wrong"})
            assert answer.json()["error"]["code"] == "invalid_api_key"
        with client(address, headers={"Authorization": "Bearer secret"}) as http:
            long = post(http, model="mine", prompt=[1] * 21)
            assert long.json()["error"]["code"] == "context_length_exceeded"
            body = {"model": "mine", "prompt": "O", "max_tokens": 8000, "stream": True}
            with http.stream("POST", "/v1/completions", json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                full = post(http, model="mine", prompt="O")
                assert full.status_code == 429 and full.headers["retry-after"] == "1"
                assert "the queue has its 0 sequences: try again later" in full.json()["error"]["message"]
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
        assert process.stderr.read() == "cut off, as it had not ended within 0 s: 1 answer\n"


def test_shutdown_lets_answers_end(model):
    with serving(model.path) as (process, address), client(address) as http:
        with http.stream("POST", "/v1/completions", json={"model": "talk", "prompt": "O", "max_tokens": 200, "seed": 1,
                                                           "stream": True}) as answer:  # fmt: skip
            lines = answer.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGINT)
            rest = [first, *lines]
        assert process.wait(20) == 0 and process.stderr.read() == ""
    pieces = [json.loads(line[6:]) for line in rest if line.startswith("data: {")]
    text = "".join(piece["choices"][0]["text"] for piece in pieces)
    assert rest[-2:] == ["data: [DONE]", ""] and text == SMALL.generate("O", 200, temperature=1.0, seed=1)


def test_what_can_not_be_served_is_one_line(model, tmp_path, server):
    (tmp_path / "config.json").write_text("{}")
    port = server[1].rpartition(":")[2]
    for arguments, words in (
        ((tmp_path,), "has neither model.safetensors nor"),
        (("--port", port), "can't listen at 127.0.0.1, port"),
        (("--embeddings", tmp_path), "has neither model.safetensors nor"),
    ):
        done = CliRunner().invoke(main, ["serve", *map(str, arguments)], prog_name="llorch")
        assert done.exit_code == 1 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and words in done.stderr


# ---- receipts -------------------------------------------------------------------------------------------------


def test_receipts(http, model, tmp_path):
    from llorch import receipts

    body = dict(messages=TALK, max_tokens=20, temperature=0.8, seed=4, n=2, receipt=True, stop=["zzz"])
    got = post(http, "chat/completions", **body).json()
    for choice in got["choices"]:
        text = http.get(f"/v1/receipts/{choice['receipt']}").text
        receipt = receipts.loads(text)
        assert receipt["text"] == choice["message"]["content"] and receipt["seed"] == choice["seed"]
        assert receipts.verify(receipt, model).status == 0
        statement = http.get(f"/v1/receipts/{choice['receipt']}", params={"format": "in-toto"}).text
        assert receipts.loads(statement) == receipt and json.loads(statement)["_type"].startswith("https://in-toto.io")
    kind = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    lines = []
    with http.stream("POST", "/v1/chat/completions", json={"model": "talk"} | body | {"stream": True, "n": 1,
                     "max_tokens": 100, "response_format": kind}) as answer:  # fmt: skip
        lines = [line for line in answer.iter_lines() if '"receipt"' in line]
    (piece,) = (json.loads(line[6:]) for line in lines)
    receipt = receipts.loads(http.get(f"/v1/receipts/{piece['choices'][0]['receipt']}").text)
    assert receipts.verify(receipt, model).status == 0 and receipt["end"] == 0 and receipt["schema"]
    receipt["schema"] = None
    receipt["parameters_sha256"] = receipts.record.part(receipt, receipts.record.PARAMETERS)
    assert receipts.verify(receipt, model).what in ("parameters", "output")


def test_seeds_of_choices_are_a_function_of_the_seed():
    asked = Asked(SamplingParameters(1.0, seed=5), None, 3, (), False, False, None, None, False)
    assert [asked.choice(i).seed for i in range(3)] == [5, 424660162, 3919451211]
    greedy = Asked(SamplingParameters(), None, 3, (), False, False, None, None, False)
    assert greedy.choice(2).seed is None


def test_the_engine_goes_on_when_a_step_fails():
    """No memory to work in: who is in the batch is told, the next request is answered."""
    import asyncio

    from llorch.serve.engine import Engine
    from llorch.text.batch import Batch, Request, Sequence

    class Model:
        fail = True

        def __getattr__(self, name):
            return getattr(SMALL, name)

        def step(self, chunks, caches):
            if Model.fail:
                raise MemoryError("none")
            return SMALL.step(chunks, caches)

    async def talk():
        engine = Engine(Batch(Model(), memory=10**8), asyncio.get_running_loop())
        try:
            ticket = await engine.add(Sequence(SMALL, Request([1], 3)))
            with pytest.raises(MemoryError):
                async for _ in ticket:
                    pass
            Model.fail = False
            ticket = await engine.add(Sequence(SMALL, Request([1], 3)))
            return [event.token async for event in ticket]
        finally:
            engine.close()

    assert asyncio.run(talk()) == SMALL.generate([1], 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "llorch engine"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", ["step", "receipt"])
def test_a_failure_of_the_server_is_told_and_it_goes_on(where, stream, monkeypatch):
    from starlette.testclient import TestClient

    from llorch.serve import app

    def broken(*_):
        raise OSError(f"{SMALL.path} is gone")

    state = app.Server(app.Settings(name="small", memory=10**8), SMALL, None, lambda: False)
    asked = {"model": "small", "prompt": "O", "max_tokens": 2, "stream": stream}
    asked |= {"receipt": True} if where == "receipt" else {}
    with TestClient(app.application(state), raise_server_exceptions=False) as http:
        with monkeypatch.context() as patch:
            patch.setattr(*((state.engine.batch, "step") if where == "step" else (app.receipts, "make")), broken)
            answer = http.post("/v1/completions", json=asked)
        last = answer.text.strip().rpartition("data: ")[2]
        assert json.loads(last)["error"]["message"] == "the server failed: OSError" and not state.engine.batch
        assert answer.status_code == (200 if stream else 500)
        assert http.post("/v1/completions", json=asked).status_code == 200
