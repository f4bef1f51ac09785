"""What a type checker sees of `llorch.CausalLM` and the encoders: checked by test_typing.py, never run."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch.text.chat import ChatStream, Reply
from llorch.text.cross_encoder import Ranked
from llorch.text.generate import Stream
from llorch.text.score import Score
from llorch.text.tokenizer import Tokenizer

model = llorch.CausalLM.from_pretrained("shakespeare-1m")
assert_type(model, llorch.CausalLM)
assert_type(llorch.GPT2.from_pretrained("shakespeare-1m"), llorch.CausalLM)
assert_type(model.tokenizer, Tokenizer)

assert_type(model.generate("O", 3), str)
assert_type(model.generate([1, 2], 3, temperature=1.0, top_k=5, top_p=0.9, repetition_penalty=1.1), list[int])
assert_type(model.generate(np.arange(3), 3, stop=[1, 2], seed=7), list[int])

assert_type(model.stream("O", 3, stop="x", progress=print), Stream[str])
assert_type(model.stream([1], 3), Stream[int])
assert_type(next(model.stream("O", 3)), str)
assert_type(next(model.stream([1], 3)), int)

assert_type(model.generate_batch(["O", "A"], 3, seed=[1, None], batch_size=2), list[str])
assert_type(model.generate_batch([[1], [2, 3]], 3), list[list[int]])
mixed: list[str | list[int]] = ["O", [1]]
assert_type(model.generate_batch(mixed, 3), list[Any])

assert_type(model.score("O, a"), Score)

messages = [{"role": "user", "content": "O"}]
assert_type(model.chat(messages, 3, temperature=1.0, seed=1, overflow="drop_oldest"), Reply)
assert_type(model.chat_stream(messages, stop="x", tools=[{"name": "a"}], progress=print), ChatStream)
assert_type(next(model.chat_stream(messages)), str)
assert_type(model.chat_prompt(messages), list[int])

encoder = llorch.TextEncoder.from_pretrained("folder")
assert_type(encoder, llorch.TextEncoder)
assert_type(encoder.encode("O"), NDArray[Any])
assert_type(next(encoder.encode_stream(iter(["O"]), batch_size=2)), NDArray[Any])
assert_type(llorch.CrossEncoder.from_pretrained("folder").predict([("O", "A")]), NDArray[Any])
assert_type(llorch.CrossEncoder.from_pretrained("folder").rank("O", ["A"]), list[Ranked])

encoder.encode(3)  # type: ignore[arg-type]
encoder.encode("O", size=1)  # type: ignore[call-arg]
model.generate("O", 3, warmth=1)  # type: ignore[call-overload]
model.generate(3, 3)  # type: ignore[call-overload]
model.generate("O", 3, temperature="hot")  # type: ignore[call-overload]
