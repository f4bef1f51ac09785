"""RoBERTa, XLM-RoBERTa and CamemBERT: what config.json can say, and the graph. GGUF has them as architecture bert.

The network is that of transformers' modeling_roberta.py: BERT's, whose positions begin behind the padding token's.
Every token of a text has its position, one that is the padding token too: there is no padding.
"""

from dataclasses import dataclass

from llorch.models import config as check
from llorch.models import encoder
from llorch.models.bert import block, embeddings, norm
from llorch.models.encoder import Classifier, EncoderConfig
from llorch.models.graph import Graph
from llorch.models.registry import Family


@dataclass(frozen=True)
class RobertaConfig(EncoderConfig):
    """Sizes and switches of a RoBERTa, checked when made.

    Attributes
    ----------
    pad_token_id : int
        The first position of a text is the row behind it. A text has at most max_position_embeddings - pad_token_id - 1
        tokens.

    The others, and the errors: as `llorch.models.encoder.EncoderConfig` has them.
    """

    vocab_size: int = 50265
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2

    NAME = "RoBERTa"

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.max_position_embeddings - 2
        if not 0 <= check.integer(self.pad_token_id, "pad_token_id") <= most:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id}, it must be in [0, {most}]: positions begin behind it"
            )

    @property
    def first(self) -> int:
        """The row of the first position."""
        return self.pad_token_id + 1

    @property
    def context(self) -> int:
        return self.max_position_embeddings - self.first


def graph(c: RobertaConfig, classifier: Classifier | None = None) -> Graph:
    blocks = [block(c)] * c.layers
    return encoder.graph(c, embeddings(c, c.first), norm(c, "embeddings.LayerNorm"), blocks, classifier=classifier)


def classifier(c: RobertaConfig) -> Graph:
    return graph(c, Classifier("classifier.dense", "tanh", "classifier.out_proj"))


FAMILY = Family(
    "RoBERTa",
    ("roberta", "xlm-roberta", "camembert"),
    RobertaConfig.from_dict,
    graph,
    "Roberta",
    kind="encoder",
    classifier=classifier,
    prefixes=("roberta.",),
    endings={".gamma": ".weight", ".beta": ".bias"},
    left_out=(r"pooler\..*",),
    others=(r"lm_head\..*",),
)
