"""`llorch score`."""

import json
import math

import click

from llorch.commands import common


@click.command("score", short_help="How likely a model finds a text: log-probability, perplexity.")
@click.argument("text")
@common.model_option()
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="Score a text longer than the context in windows, each of which begins N tokens later.",
    metavar="N",
)
@click.option("--tokens", "by_token", is_flag=True, help="Every token's log-probability too.")
@common.json_option
@common.dtype_option
@common.compute_option
@common.threads_option
def command(
    text: str, model: str, stride: int | None, by_token: bool, as_json: bool, dtype: str | None, compute: str
) -> None:
    """How likely a model finds TEXT: log-probability and perplexity, of every token from the second on.

    TEXT "-" is standard input. Logarithms are natural.
    """
    text = common.text_of(text)
    engine = common.load(model, dtype, compute)
    with common.failures(), common.progress("scoring") as progress:
        result = engine.score(text, stride=stride, progress=progress)
    logs = result.log_probabilities.tolist()
    tokens = [engine.tokenizer.token(id) for id in result.ids]
    if as_json:
        numbers = {
            "tokens": len(tokens),
            "log_likelihood": result.log_likelihood,
            "perplexity": result.perplexity,
            "by_token": [
                {"id": id, "token": token, "log_probability": log}
                for id, token, log in zip(result.ids, tokens, [None, *logs], strict=True)
            ],
        }
        if not by_token:
            del numbers["by_token"]
        common.echo(json.dumps(numbers, indent=1))
        return
    if by_token:
        for id, token, log in zip(result.ids, tokens, ["", *(f"{log:.4f}" for log in logs)], strict=True):
            common.echo(f"{log:>10}  {id:6d}  {token}")
    common.echo(f"tokens:         {len(tokens)}")
    common.echo(f"log-likelihood: {result.log_likelihood:.6f}")
    common.echo(f"bits a token:   {-result.log_likelihood / math.log(2) / len(logs):.4f}")
    common.echo(f"perplexity:     {result.perplexity:.6f}")
