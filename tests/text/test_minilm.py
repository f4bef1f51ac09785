"""all-MiniLM-L6-v2's real weights: beside transformers and sentence-transformers, and the same bits in any company."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import assert_same_bits, minilm, num_threads, rng, same_bits
from mixed_text import mixed
from sentence_models import gguf_words

import llorch
from llorch.cli import main
from llorch.text.tokenizer_gguf import from_metadata

pytestmark = pytest.mark.weights

TEXT = """the river runs north past an old mill where nobody has worked since the war and children still swim in summer
while trains cross the iron bridge twice a day carrying timber, cement and letters nobody reads"""
WORDS = TEXT.split()


def sentences(count=24):
    """Of 1 to 60 words, in no order of length; empty and long ones and other scripts among them."""
    random = rng(11)
    made = [" ".join(random.choice(WORDS, random.integers(1, 60))) for _ in range(count - 4)]
    return [*made[:9], "", "word " * 400, *made[9:], "Привет, мир! 你好，世界", "Crème brûlée №5 costs €3.50"]


SENTENCES = sentences()


@pytest.fixture(scope="module")
def model():
    return llorch.TextEncoder.from_pretrained(minilm())


@pytest.fixture(scope="module")
def embeddings(model):
    return model.encode(SENTENCES)


def test_transformers(embeddings):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    theirs = transformers.AutoModel.from_pretrained(minilm()).eval()
    for text, ours in zip(SENTENCES, embeddings, strict=True):
        with torch.no_grad():
            inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            mean = theirs(**inputs).last_hidden_state[0].mean(dim=0)
            wanted = torch.nn.functional.normalize(mean, dim=0).numpy()
        assert np.abs(ours - wanted).max() < 1e-5, text[:60]


def test_sentence_transformers(model, embeddings):
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(str(minilm()), device="cpu")
    wanted = theirs.encode(SENTENCES)
    assert np.abs(embeddings - wanted).max() < 1e-5 and embeddings.shape == wanted.shape
    assert np.abs(model.encode(SENTENCES[0]) - theirs.encode(SENTENCES[0])).max() < 1e-5
    prompt = "Represent this: "
    ours = model.encode(SENTENCES, prompt=prompt, normalize_embeddings=True)
    assert np.abs(ours - theirs.encode(SENTENCES, prompt=prompt, normalize_embeddings=True)).max() < 1e-5
    assert model.max_seq_length == theirs.max_seq_length == 256
    some = embeddings[:7]
    assert np.abs(model.similarity(some, embeddings) - theirs.similarity(some, embeddings).numpy()).max() < 1e-5


def test_their_bits_hang_on_the_batch():
    """Negative control: what is compared here does change for a padded batch, where its sum isn't specified."""
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(str(minilm()), device="cpu")
    some = SENTENCES[:9]
    together, alone = theirs.encode(some), np.stack([theirs.encode(text) for text in some])
    assert not same_bits(together, alone)


def test_no_bit_depends_on_the_company(model, embeddings):
    order = rng(12).permutation(len(SENTENCES))
    shuffled = [SENTENCES[i] for i in order]
    for threads in (1, 2):
        with num_threads(threads):
            for size in (1, 7, 32):
                got = model.encode(shuffled, batch_size=size)
                assert_same_bits(got, embeddings[order], f"{size} together, {threads} threads")
    for i in (0, 9, 10, 23):
        assert_same_bits(model.encode(SENTENCES[i]), embeddings[i], "alone")


def test_the_vocabulary_in_gguf():
    """As llama.cpp's converter spells it: the tokens are those of the model's tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    words = (minilm() / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    ours = from_metadata(gguf_words(words), minilm()).library
    theirs = tokenizers.Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    for line in [*mixed(600), *SENTENCES]:
        assert ours.encode(line).ids == theirs.encode(line).ids, line


def test_search(tmp_path):
    """The README's example."""
    lines = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    arguments = ["search", str(tmp_path / "lines.txt"), "sports", "--model", str(minilm())]
    shown = CliRunner().invoke(main, arguments).stdout
    assert [line.split(None, 2)[2] for line in shown.splitlines()] == [lines[2], lines[1], lines[0]]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "".join(f"    {line}\n" for line in shown.splitlines()) in readme
    bits = llorch.TextEncoder.from_pretrained(minilm()).encode(lines).tobytes()
    assert f"# {hashlib.sha256(bits).hexdigest()[:16]}, on every machine" in readme
    out = tmp_path / "lines.npy"
    result = CliRunner().invoke(main, ["embed", *arguments[1:2], "--model", str(minilm()), "-o", str(out)])
    assert result.exit_code == 0
    assert_same_bits(np.load(out), llorch.TextEncoder.from_pretrained(minilm()).encode(lines))


def test_a_plain_folder(tmp_path, embeddings):
    """Without modules.json: the mean, of as many tokens as tokenizer_config.json says."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm() / name, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(minilm() / "model.safetensors")
    model = llorch.TextEncoder.from_pretrained(tmp_path)
    length = json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"]
    assert model.max_seq_length == length == 512
    short = [text for text in SENTENCES if len(text) < 600]
    wanted = embeddings[[len(text) < 600 for text in SENTENCES]]
    assert_same_bits(model.encode(short, normalize_embeddings=True), wanted)
