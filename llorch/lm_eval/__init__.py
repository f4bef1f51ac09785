"""llorch as a model of EleutherAI's lm-evaluation-harness: `python -m llorch.lm_eval --model llorch ...`.

lm_eval looks models up in a table of its own and reads no entry points, so its command `lm_eval` can't know this one.
`python -m llorch.lm_eval` is that command, with the same arguments, and one model more. In Python, importing this
module registers it. Nothing is computed here: scores are those of `llorch.CausalLM.score_continuations`, texts those of
`generate_batch`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError as error:
    name = (error.name or "lm_eval").partition(".")[0]
    raise ImportError(f'llorch.lm_eval needs the package {name}: pip install "llorch[eval]"') from None

import llorch
from llorch.receipts import digests
from llorch.text import score
from llorch.text.batch import CHUNK, Batch, Request
from llorch.text.batch import Sequence as Generated
from llorch.text.causal_lm import CausalLM
from llorch.text.chat_prompt import prompt_text
from llorch.text.generation_config import LACKING, LACKING_WHERE_DRAWN
from llorch.text.prefixes import BLOCK
from llorch.text.protocol import context_of
from llorch.text.sampling import SamplingParameters, whole
from llorch.text.template import ChatTemplate

AUTO = 64  # sequences together where batch_size is "auto": more of them don't make a model on a CPU faster
SEED = 1234  # lm_eval's own for PyTorch
NOTHING = {**LACKING, **LACKING_WHERE_DRAWN, "num_return_sequences": (1,), "use_cache": (True,)}

log = logging.getLogger(__name__)


class _Wish(NamedTuple):
    """How a task would have its answers: parameters with the task's seed, and the texts that end one."""

    parameters: SamplingParameters
    most: int
    stop: list[str]
    until: list[str]


@register_model("llorch")
class LlorchLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """A decoder of llorch, with what `--model_args` gives.

    Parameters
    ----------
    pretrained : str, or a llorch.CausalLM
        As `llorch.CausalLM.from_pretrained` has it: a folder, a GGUF file, a hub id, "shakespeare-1m".
    dtype, compute
        As `from_pretrained` has them; dtype "auto" is None. Not looked at for a model that is loaded already.
    batch_size : int, "auto" or "auto:N"
        At most so many sequences go through the model together; "auto" is 64. It changes speed, no bit.
    max_batch_size : int, optional
        At most so many for "auto".
    max_length : int, optional
        The most tokens that the model reads, as lm_eval's `hf` has it: a longer context loses its beginning. At most
        the model's context, which is the default.
    max_gen_toks : int
        New tokens where a task doesn't say.
    add_bos_token : bool, optional
        Whether the tokenizer's begin-of-text token comes before every text; where it has none, nothing comes. None:
        where the model's files say so.
    prefix_token_id : int, optional
        What an empty context, and a text scored from its first token on, begin with. None: the tokenizer's
        begin-of-text token, else its end-of-text token, else the first that the configuration names as such.
    seed : int in [0, 2**64)
        Where a task draws tokens. A sample's own seed is made of it, of the prompt's ids, and of how many times the
        prompt came before.
    threads : int, optional
        As `llorch.set_num_threads`.
    chat_template_args : mapping, optional
        More for the chat template; enable_thinking: one of them. enable_thinking=True needs think_end_token, and
        `loglikelihood` raises a ValueError.
    think_end_token : str or int, optional
        An answer begins behind the last of it: of a text, or of a token by its id, also a special one. Digits are an
        id.
    device, trust_remote_code
        Not looked at: everything is computed on the CPU, and no model brings code that is run. lm_eval's command says
        device "cuda:0" where its caller says nothing.

    ValueError, TypeError, FileNotFoundError as `from_pretrained`, or naming the argument.
    """

    def __init__(
        self,
        pretrained: str | CausalLM,
        *,
        dtype: str | None = None,
        compute: str = "float32",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = SEED,
        threads: int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(f"llorch has no model argument {min(unknown)!r}; docs/lm_eval.md lists those it has")
        if enable_thinking and think_end_token is None:
            raise ValueError("enable_thinking=True needs think_end_token, behind which an answer begins")
        self.batch_size = _batch_size(batch_size, max_batch_size)
        self.seed = whole(seed, "seed", 0, 2**64)
        if threads is not None:
            llorch.set_num_threads(threads)
        if isinstance(pretrained, CausalLM):
            self.model = pretrained
        else:
            self.model = CausalLM.from_pretrained(pretrained, None if dtype == "auto" else dtype, compute)
        context, size = context_of(self.model), self.model.config.vocab_size
        self.max_length = context if max_length is None else whole(max_length, "max_length", 1, context + 1)
        self.max_gen_toks = whole(max_gen_toks, "max_gen_toks", 1)
        self._end, begin = self._special("eos"), self._special("bos")
        if self._end is None:
            ends = getattr(self.model.config, "eos_token_ids", ()) or sorted(self.model.end_ids)
            self._end = next(iter(ends), None)
        self._prefix = self._end if begin is None else begin
        if prefix_token_id is not None:
            self._prefix = whole(prefix_token_id, "prefix_token_id", 0, size)
        self._begin: tuple[int, ...] | None = None  # before every text; None: as the tokenizer has it
        if add_bos_token is not None:
            self._begin = (begin,) if add_bos_token and begin is not None else ()
            if add_bos_token and begin is None:
                log.warning("add_bos_token: %s has no begin-of-text token, so none is added", self.model.path)
        self._variables = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._variables["enable_thinking"] = enable_thinking
        self._thinking = bool(enable_thinking)
        self._think_end = think_end_token
        if isinstance(think_end_token, str) and think_end_token.isdecimal():
            self._think_end = int(think_end_token)
        if self._think_end is not None and not isinstance(self._think_end, str):
            self._think_end = whole(self._think_end, "think_end_token, if it isn't a str,", 0, size)
        self._template: ChatTemplate | None = None
        self._encoded: tuple[str | None, list[int]] = None, []
        added = self.model.tokenizer.library.get_added_tokens_decoder()
        self._special_ids = {id for id, token in added.items() if token.special}

    # ---- tokens ------------------------------------------------------------------------------------------

    def _special(self, name: str) -> int | None:
        """The tokenizer's bos or eos token, as Hugging Face's files or GGUF name it."""
        text = self.model.chat_templates.variables.get(f"{name}_token")
        return None if text is None else self.model.tokenizer.library.token_to_id(text)

    @property
    def eot_token_id(self) -> int | None:
        return self._end

    @property
    def prefix_token_id(self) -> int:
        if self._prefix is None:
            raise ValueError(
                f"{self.model.path} names no token that begins or ends a text: give prefix_token_id, which stands "
                "before an empty context"
            )
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text. None: with the begin-of-text token before it, where the model's files or add_bos_token say
        so and it doesn't begin so."""
        tokenizer = self.model.tokenizer
        if add_special_tokens is not None:
            return tokenizer.encode(string, special=add_special_tokens)
        if self._begin is None:
            return tokenizer.prompt(string)
        ids = tokenizer.encode(string)
        return ids if tuple(ids[: len(self._begin)]) == self._begin else [*self._begin, *ids]

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.model.tokenizer.decode(tokens, special=not skip_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm_eval has it: the spaces at a context's end are the continuation's, and the continuation's ids are what
        both together have behind the context's. A context that comes again and again is encoded once."""
        bare = context.rstrip()
        if bare != self._encoded[0]:
            self._encoded = bare, self.tok_encode(bare)
        before = self._encoded[1]
        return before, self.tok_encode(context + continuation)[len(before) :]

    @property
    def tokenizer_name(self) -> str:
        return f"llorch-{digests.tokenizer(self.model.tokenizer)}"

    # ---- chat --------------------------------------------------------------------------------------------

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the template that `apply_chat_template` takes from now on: the default, or one by its name."""
        if chat_template is False or chat_template is None:
            return None
        found: ChatTemplate = self.model.chat_templates.choose(None if chat_template is True else chat_template)
        self._template = found
        return found.text

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without add_generation_prompt its last message is left open."""
        template = self._template or self.model.chat_templates.choose()
        try:
            return self._applied(template, chat_history, add_generation_prompt)
        except ValueError as error:
            without = [message for message in chat_history if message["role"] != "system"]
            if len(without) in (0, len(chat_history)):
                raise
            log.warning("%s; once more without the system's message", error)
            return self._applied(template, without, add_generation_prompt)

    def _applied(self, template: ChatTemplate, messages: list[dict[str, str]], answer: bool) -> str:
        return prompt_text(
            template,
            messages,
            add_generation_prompt=answer,
            continue_final_message=not answer,
            variables=self._variables,
        )

    # ---- scores ------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if self._thinking:
            raise ValueError("enable_thinking=True is for tasks that generate; this one scores given answers")
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitted(context, continuation, text) for text, context, continuation in requests]
        results: list[Any] = [None] * len(pairs)
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for i, found in score.continuations(self.model, pairs, self.batch_size):
                results[i] = found.log_likelihood, found.greedy
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
                bar.update(1)
        return results

    def _fitted(self, context: list[int], continuation: list[int], text: Any) -> tuple[list[int], list[int]]:
        """A pair of which the model reads at most max_length tokens: the last isn't read, a context loses its first."""
        if not continuation or len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, it must have at least one and at most max_length, "
                f"{self.max_length}: {text!r:.200}"
            )
        room = self.max_length + 1 - len(continuation)
        if len(context) > room:
            log.warning(
                "context and continuation have %d and %d tokens, max_length is %d: the context loses its first %d",
                len(context), len(continuation), self.max_length, len(context) - room,
            )  # fmt: skip
        return context[-room:], continuation

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each text, the exact sum of its tokens' log-probabilities in lm_eval's windows, rounded once."""
        pairs, owners = [], []
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            for window in windows:
                pairs.append(make_disjoint_window(window))
                owners.append(i)
        left, results = [0] * len(requests), [0.0] * len(requests)
        parts: list[list[Any]] = [[] for _ in requests]
        for i in owners:
            left[i] += 1
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood_rolling requests") as bar:
            for place, found in score.continuations(self.model, pairs, self.batch_size):
                i = owners[place]
                parts[i].append(found.log_probabilities)
                left[i] -= 1
                if not left[i]:
                    results[i] = score.exact_sum(parts[i])
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, results[i])
                bar.update(1)
        return results

    # ---- texts -------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        wishes: dict[str, _Wish] = {}
        came: Counter[tuple[str, str]] = Counter()
        asked = []
        for place, request in enumerate(requests):
            context, given = request.args
            key = repr(sorted(given.items(), key=str))
            if key not in wishes:
                wishes[key] = self._wish(given)
            asked.append((place, self._sequence(context, wishes[key], came[context, key]), wishes[key]))
            came[context, key] += 1
        for place, _, wish in asked:
            if wish.parameters.temperature:
                # lm_eval's cache answers equal requests alike unless they have this entry, which a temperature implies.
                requests[place].args[1]["do_sample"] = True
        asked.sort(key=lambda one: one[1].prompt_ids)  # what begins alike comes together, and is read once
        batch = Batch(self.model, self.batch_size, self.batch_size + CHUNK, self._memory([one[1] for one in asked]))
        under_way = {batch.admit(sequence): (place, sequence, wish) for place, sequence, wish in asked}
        results = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            while batch:
                for event in batch.step():
                    if event.error is not None:
                        raise event.error
                    if event.reason is None:
                        continue
                    place, sequence, wish = under_way.pop(event.id)
                    results[place] = self._answer(sequence, wish)
                    if not wish.parameters.temperature:
                        self.cache_hook.add_partial("generate_until", requests[place].args, results[place])
                    bar.update(1)
        return results

    def _memory(self, sequences: list[Generated]) -> int | None:
        """What `Batch` gets to keep prompts' beginnings in; None where no two begin alike for a whole block of keys."""
        begin = [tuple(one.prompt_ids[:BLOCK]) for one in sequences if len(one.prompt_ids) >= BLOCK]
        if len(set(begin)) == len(begin):
            return None
        longest = max(one.positions for one in sequences)
        nbytes = self.model.cache_nbytes
        return nbytes(longest) * self.batch_size + nbytes(context_of(self.model))

    def _wish(self, given: Mapping[str, Any]) -> _Wish:
        """Of a task's generation_kwargs."""
        kwargs = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        most, stop = kwargs.pop("max_gen_toks"), [text for text in kwargs.pop("until") if text]
        if most >= self.max_length:
            raise ValueError(f"max_gen_toks is {most}, it must be less than max_length, {self.max_length}")
        # The end-of-text token itself ends an answer in any case; here is its text.
        end = None if self.eot_token_id is None else self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(list(stop), eos=end)
        drawn = kwargs.pop("do_sample")
        seed = whole(kwargs.pop("seed", self.seed), "seed", 0, 2**64)
        known = ("top_k", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        more = {name: kwargs.pop(name) for name in known if name in kwargs}
        temperature = kwargs.pop("temperature", 0.0)
        for name, value in kwargs.items():
            if value is not None and value is not False and value not in NOTHING.get(name, ()):
                raise ValueError(f"a task's generation_kwargs ask for {name}={value!r}, which llorch hasn't")
        if more.get("top_k") in (0, -1):
            more["top_k"] = None  # other libraries' words for all
        if not drawn or not temperature:
            temperature, more["top_k"], more["top_p"] = 0.0, None, None
        return _Wish(SamplingParameters(temperature, seed=seed, **more), most, stop, until)

    def _sequence(self, context: str, wish: _Wish, before: int) -> Generated:
        """A request whose prompt came `before` times already."""
        ids = self.tok_encode(context) or [self.prefix_token_id]
        room, parameters = self.max_length - wish.most, wish.parameters
        if len(ids) > room:
            log.warning(
                "a prompt has %d tokens, max_length is %d, of which %d are for the answer: it loses its first %d",
                len(ids), self.max_length, wish.most, len(ids) - room,
            )  # fmt: skip
            ids = ids[-room:]
        if parameters.temperature:
            own = hashlib.sha256(repr((parameters.seed, ids, before)).encode()).digest()
            parameters = dataclasses.replace(parameters, seed=int.from_bytes(own[:8], "little"))
        return Generated(self.model, Request(ids, wish.most, parameters, wish.stop, "a prompt", as_text=True))

    def _answer(self, sequence: Generated, wish: _Wish) -> str:
        """Its text without special tokens, up to what ends it, as lm_eval cuts it."""
        text, ids, mark = sequence.told, list(sequence.new_ids), self._think_end
        if not self._special_ids.isdisjoint(ids):
            text = self.tok_decode(ids)
        if isinstance(mark, int):
            if mark in ids:
                text = self.tok_decode(ids[len(ids) - ids[::-1].index(mark) :])
            text, mark = text.lstrip(), None
        answer: str = postprocess_generated_text(text, wish.until, mark)
        return answer

    # ---- which model it was ------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """For lm_eval's results: hashes of the model's values and graph and of its tokenizer, as receipts have them."""
        model = self.model
        found = {"llorch_version": llorch.__version__, "model_dtype": model.dtype, "model_compute": model.compute}
        return {**found, **{f"{name}_sha256": value for name, value in digests.of_model(model).items()}}


def _batch_size(given: int | str | None, most: int | None) -> int:
    """lm_eval's words for it: a number, also as text, "auto", "auto:N"."""
    most = AUTO if most is None else whole(most, "max_batch_size", 1)
    if given is None:
        return AUTO
    if isinstance(given, str):
        if given.partition(":")[0] == "auto":
            return min(AUTO, most)
        if not given.isdecimal():
            raise ValueError(f"batch_size is {given!r}, it must be a number, 'auto' or 'auto:N'")
        given = int(given)
    return whole(given, "batch_size", 1)
