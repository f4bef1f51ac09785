"""A text has the same bits alone and in a batch, on any number of threads: on the model that comes with llorch.

    pip install ".[models]"
    python examples/alone_and_in_a_batch.py

It says what holds, and fails where it doesn't.
"""

import llorch

PROMPTS = ["ROMEO:", "First Citizen:\nBefore we proceed", "To be, or not", "KING RICHARD III:\nNow is the winter"]
SAMPLING = {"temperature": 0.8, "top_p": 0.9, "seed": 6}

model = llorch.CausalLM.from_pretrained("shakespeare-1m")
llorch.set_num_threads(1)
alone = [model.generate(prompt, 24, **SAMPLING) for prompt in PROMPTS]
scores = [model.score(prompt).log_probabilities.tobytes() for prompt in PROMPTS]
print(PROMPTS[0] + alone[0])

llorch.set_num_threads(2)
assert model.generate_batch(PROMPTS, 24, **SAMPLING) == alone, "other texts in a batch, on two threads"
assert [model.score(prompt).log_probabilities.tobytes() for prompt in PROMPTS] == scores, "other scores on two threads"
print(f"\n{len(PROMPTS)} texts and their scores: the same bits alone on one thread and together on two.")
