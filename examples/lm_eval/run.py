"""lm-evaluation-harness gives the same scores, log-likelihoods and texts at every batch size, bit for bit.

    pip install ".[eval]"
    python examples/lm_eval/run.py

Three tasks on 24 lines of Shakespeare, with the model that comes with llorch: multiple choice, perplexity and generated
text. It shows lm_eval's own table, and fails where a bit depends on the batch.
"""

import os
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TASKS = ["which_line", "whole_lines", "next_line"]
SIZES = [1, 7, 64]

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1")
os.chdir(FOLDER)  # the tasks name their data from here

with tempfile.TemporaryDirectory() as room:
    os.environ["HF_HOME"] = room

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    import llorch.lm_eval  # noqa: F401  registers the model

    def run(batch_size):
        tasks = TaskManager(include_path=str(FOLDER), include_defaults=False)
        model = {"model": "llorch", "model_args": {"pretrained": "shakespeare-1m"}, "batch_size": batch_size}
        return simple_evaluate(**model, tasks=TASKS, task_manager=tasks, bootstrap_iters=0)

    def answers(results):
        """Everything the model said, and every score; floats as their bits."""
        said = [[sample["resps"] for sample in results["samples"][task]] for task in TASKS]
        scores = [sorted((k, v) for k, v in results["results"][task].items() if k != "alias") for task in TASKS]
        return exact([said, scores])

    def exact(value):
        if isinstance(value, list | tuple):
            return [exact(one) for one in value]
        return value.hex() if isinstance(value, float) else value

    results = [run(size) for size in SIZES]

print(make_table(results[0]))
first, *others = [answers(one) for one in results]
count = str(first).count("0x")
assert count > 100, "there are fewer floats than lines have choices"
for size, other in zip(SIZES[1:], others, strict=True):
    assert other == first, f"batch size {size} gives other bits than {SIZES[0]}"
print(f"batch sizes {', '.join(map(str, SIZES))}: {count} log-likelihoods and scores, bit for bit, and the same texts")
