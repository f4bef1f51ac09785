"""What a model's files say about generating: the tokens that end a text, and how an answer's tokens are best chosen.

A folder has a generation_config.json, a GGUF file the entries general.sampling.* of its metadata.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llorch._text import printable, shown
from llorch.files.folder import read_settings
from llorch.text.sampling import SamplingParameters

NAME = "generation_config.json"

# What the files may ask for and llorch hasn't, with the values that ask for nothing; None, false and [] never do.
LACKING: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ({},),
    "stop_strings": (),
    "watermarking_config": ({},),
}
LACKING_WHERE_DRAWN: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
LACKING_IN_GGUF: dict[str, tuple[Any, ...]] = {
    "sequence": ("",),
    "min_p": (0,),
    "xtc_probability": (0,),
    "mirostat": (0,),
}


@dataclasses.dataclass(frozen=True)
class Recommended:
    """How a model's files would have tokens chosen.

    parameters : SamplingParameters
        Greedy, where they recommend nothing.
    place : str
        The file.
    lacking : tuple of str
        What they ask for beside it and llorch hasn't, such as "min_p 0.05".
    """

    parameters: SamplingParameters
    place: str
    lacking: tuple[str, ...] = ()


def ends(folder: Path) -> set[int]:
    """The eos_token_id, one or several, of a folder's generation_config.json. ValueError names the file."""
    found = read_settings(folder, NAME).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(id, int) and not isinstance(id, bool) and id >= 0 for id in ids):
        raise ValueError(f"{printable(str(folder / NAME))}: eos_token_id is {shown(found)}, it must be an id or a list "
                         "of ids")  # fmt: skip
    return set(ids)


def recommended(model: Any) -> Recommended:
    """Of a model's folder, or of a `llorch.files.Source`. ValueError or TypeError names the file and the entry."""
    path = Path(getattr(model, "path", model))
    gguf = getattr(model, "kind", "hf") == "gguf"
    place = printable(str(path if gguf else path / NAME))
    try:
        parameters, lacking = _of_gguf(model.config) if gguf else _of_folder(read_settings(path, NAME))
    except (ValueError, TypeError) as error:
        raise type(error)(str(error) if str(error).startswith(place) else f"{place}: {error}") from None
    return Recommended(parameters, place, lacking)


def _of_folder(entries: Mapping[str, Any]) -> tuple[SamplingParameters, tuple[str, ...]]:
    """As transformers' `generate` reads it: without do_sample nothing is drawn, whatever else is there. Where it draws
    and the file has no top_k, transformers keeps the 50 likeliest; here that is what the file says: all."""
    drawn = entries.get("do_sample")
    if drawn not in (None, True, False):
        raise TypeError(f"do_sample must be true or false, got {shown(drawn)}")
    temperature = _entry(entries, "temperature", 1.0) if drawn else 0.0
    parameters = _made(temperature, *(_entry(entries, name) for name in ("top_k", "top_p", "repetition_penalty")))
    return parameters, _lacking(entries, LACKING | (LACKING_WHERE_DRAWN if drawn else {}))


def _of_gguf(metadata: Mapping[str, Any]) -> tuple[SamplingParameters, tuple[str, ...]]:
    """llama.cpp's names. A file made of one that says no temperature has none either: it is 1."""
    prefix = "general.sampling."
    entries = {name.removeprefix(prefix): _short(value) for name, value in metadata.items() if name.startswith(prefix)}
    drawn = any(name in entries for name in ("temp", "top_k", "top_p"))
    temperature = entries.get("temp", 1.0) if drawn else 0.0
    if isinstance(temperature, float) and temperature < 0:
        temperature = 0.0  # llama.cpp's other word for it
    last, penalty = entries.get("penalty_last_n"), entries.get("penalty_repeat")
    parameters = _made(temperature, entries.get("top_k"), entries.get("top_p"), None if last == 0 else penalty)
    whole_text = parameters.repetition_penalty is None or last == -1  # the penalty here is for all that came before
    return parameters, _lacking(entries, LACKING_IN_GGUF | ({} if whole_text else {"penalty_last_n": ()}))


def _made(temperature: Any, top_k: Any, top_p: Any, repetition_penalty: Any) -> SamplingParameters:
    """Checked, and None for what changes nothing."""
    if isinstance(top_k, int) and not isinstance(top_k, bool) and top_k <= 0:
        top_k = None  # everywhere another word for all
    found = SamplingParameters(temperature, top_k, top_p, repetition_penalty)
    nothing: dict[str, Any] = {name: None for name in ("top_p", "repetition_penalty") if getattr(found, name) == 1}
    return dataclasses.replace(found, **nothing)


def _entry(entries: Mapping[str, Any], name: str, default: Any = None) -> Any:
    found = entries.get(name)
    return default if found is None else found


def _short(value: Any) -> Any:
    """A number of float32 as it was meant: 0.95, as the folder has it from which the file was made."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _lacking(entries: Mapping[str, Any], names: Mapping[str, tuple[Any, ...]]) -> tuple[str, ...]:
    asked = ((name, entries.get(name)) for name in names)
    return tuple(
        f"{name} {shown(value)}"
        for name, value in asked
        if value is not None and value is not False and value != [] and value not in names[name]
    )
