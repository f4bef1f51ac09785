"""The choice of the next token: a pure function of (logits, parameters, seed, position, the ids before).

`llorch.reference._sampling` defines it; this is the same function, fast.
"""

import dataclasses
import decimal
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch import _core

FloatArray = NDArray[np.float32]

EXACT = decimal.Context(40, decimal.ROUND_HALF_EVEN, decimal.MIN_EMIN, decimal.MAX_EMAX, traps=[])


def fresh_seed() -> int:
    """A seed from the system's random source, short enough to be typed again: in [0, 2**32)."""
    return int.from_bytes(os.urandom(4), "little")


def whole(value: Any, name: str, low: int, high: int | None = None) -> int:
    """value as an int in [low, high); TypeError or ValueError that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value.__index__())
    if number < low or (high is not None and number >= high):
        raise ValueError(f"{name} must be {f'at least {low}' if high is None else f'in [{low}, {high})'}, got {number}")
    return number


def _real(value: Any, name: str) -> float:
    if isinstance(value, bool | str | np.complexfloating) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {type(value).__name__} too large for a float") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


class Sampling(TypedDict, total=False):
    """The parameters that a caller may give by name: see `SamplingParameters`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None


@dataclasses.dataclass(frozen=True)
class SamplingParameters:
    """How the next token is chosen. The parameters are checked when this is made.

    temperature : 0 is the greedy choice; more than 0 samples, and the larger it is, the flatter.
    top_k : only the k largest logits. None: all.
    top_p : in (0, 1], only the fewest, largest probabilities whose sum reaches it. None or 1: all.
    repetition_penalty : more than 0; more than 1 makes ids that came before less likely. None or 1: no penalty.
    seed : in [0, 2**64); the same seed gives the same tokens. None: `seeded` draws one.
    presence_penalty : taken from the logit of every id that the new text has. None or 0: nothing is.
    frequency_penalty : taken from it as many times as the new text has the id. None or 0: nothing is.

    TypeError or ValueError names the parameter that is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def __post_init__(self) -> None:
        _core._in_fpenv(
            self._check
        )  # a host that flushes takes 1e-40 for 0, one that rounds up 3.4028235e38 for infinity

    def _check(self) -> None:
        def put(name: str, value: float | None) -> None:
            object.__setattr__(self, name, value)

        temperature = _real(self.temperature, "temperature")
        with np.errstate(all="ignore"):
            if temperature != 0 and not (temperature > 0 and 0 < np.float32(temperature) < np.inf):
                raise ValueError(f"temperature must be 0, or more than 0 and finite in float32, got {temperature}")
        put("temperature", temperature)
        if self.top_k is not None:
            put("top_k", whole(self.top_k, "top_k", 1))
        if self.top_p is not None:
            put("top_p", _real(self.top_p, "top_p"))
            if not 0 < self.top_p <= 1:
                raise ValueError(f"top_p must be more than 0 and at most 1, got {self.top_p}")
        if self.repetition_penalty is not None:
            penalty = _real(self.repetition_penalty, "repetition_penalty")
            with np.errstate(all="ignore"):
                if not 0 < np.float32(penalty) < np.inf:
                    raise ValueError(
                        f"repetition_penalty must be more than 0 and finite in float32, got {self.repetition_penalty}"
                    )
            put("repetition_penalty", penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None:
                number = _real(getattr(self, name), name)
                with np.errstate(all="ignore"):
                    if not np.isfinite(np.float32(number)):
                        raise ValueError(f"{name} must be finite in float32, got {number}")
                put(name, number)
        if self.seed is not None:
            put("seed", whole(self.seed, "seed", 0, 2**64))

    def having(self, given: Mapping[str, Any]) -> "SamplingParameters":
        """These, with what a caller gives in their place. TypeError for a name that isn't one of theirs."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in given:
            if name not in names:
                raise TypeError(f"got an unexpected keyword argument {name!r}; sampling has {', '.join(names)}")
        return dataclasses.replace(self, **given)

    def seeded(self) -> "SamplingParameters":
        """These, with a fresh seed if they need one and have none."""
        if self.temperature == 0 or self.seed is not None:
            return self
        return dataclasses.replace(self, seed=fresh_seed())


def next_token(
    logits: FloatArray,
    parameters: SamplingParameters,
    position: int,
    seen: Sequence[int] = (),
    missing: NDArray[Any] | None = None,
    begin: int = 0,
) -> int:
    """The id that follows.

    Parameters
    ----------
    logits : float32 array (V,)
        -infinity is a token that can't come.
    parameters : SamplingParameters
        With a seed, unless temperature is 0.
    position : int
        Of the new token in its own sequence: the number of tokens before it.
    seen : ids in [0, V)
        What came before, prompt and all; only the penalties look at it.
    missing : array of ids in [0, V), optional
        Ids that can't come, whatever their logits: `Tokenizer.missing`.
    begin : int
        Where the new text begins in seen: what the presence and the frequency penalty count.

    Raises
    ------
    TypeError
        logits of another type.
    ValueError
        logits of another shape, with a NaN, an infinite largest value, or -infinity for all that can come; no seed
        where one is needed.
    IndexError
        seen has an id that is not in [0, V).
    """
    return _core._in_fpenv(_next_token, logits, parameters, position, seen, missing, begin)


def _next_token(
    logits: FloatArray,
    parameters: SamplingParameters,
    position: int,
    seen: Sequence[int] = (),
    missing: NDArray[Any] | None = None,
    begin: int = 0,
) -> int:
    l = np.asarray(logits)
    if l.dtype != np.float32:
        raise TypeError(f"logits is {l.dtype}, it must be float32")
    if l.ndim != 1:
        raise ValueError(f"logits has shape {l.shape}, it must be (V,)")
    masked = missing is not None and len(missing) > 0
    if masked:
        l = l.copy()
        l[missing] = -np.inf
    if parameters.repetition_penalty is not None and len(seen):
        l = _penalised(l, np.float32(parameters.repetition_penalty), np.asarray(seen))
    if (parameters.presence_penalty or parameters.frequency_penalty) and len(seen) > begin:
        l = _less_of_the_new(l, parameters, np.asarray(seen[begin:]))
    best: int = llorch.argmax(l)
    if parameters.temperature == 0:
        if masked and l[best] == -np.inf:
            raise ValueError("logits is -infinity for every id that can come")
        return best
    if not np.isfinite(l[best]):
        raise ValueError(f"logits[{best}], the largest, is {l[best]}: it must be finite")
    if parameters.seed is None:
        raise ValueError("parameters.seed is None: sampling needs one, parameters.seeded() draws it")

    V, k, kept = l.size, parameters.top_k, None
    values = l
    if k is not None and k < V:
        kept = _largest(l, k)
        values = l[kept]
    with np.errstate(over="ignore", under="ignore"):
        z = values - l[best]
        z /= np.float32(parameters.temperature)
    p = llorch.softmax(z, out=z).astype(np.float64)  # in place: fresh pages take longer than the arithmetic
    if parameters.top_p is not None and parameters.top_p < 1:
        p = _nucleus(values, p, parameters.top_p)
    sums = np.cumsum(p, out=p)  # a running sum by definition, unlike np.sum
    i = int(np.searchsorted(sums, uniform(parameters.seed, position) * sums[-1], side="right"))
    return i if kept is None else int(kept[i])


def uniform(seed: int, position: int) -> float:
    """u in [0, 1) from Philox4x64-10. NumPy counts up before its first block."""
    bits = np.random.Philox(key=seed, counter=(position - 1) % 2**256)
    return (int(bits.random_raw()) >> 11) * 2.0**-53


def _penalised(l: FloatArray, penalty: np.float32, seen: NDArray[Any]) -> FloatArray:
    _check_seen(l, seen)
    values = l[seen]
    l = l.copy()
    with np.errstate(over="ignore", under="ignore"):
        l[seen] = np.where(values > 0, values / penalty, values * penalty)
    return l


def _less_of_the_new(l: FloatArray, parameters: SamplingParameters, new: NDArray[Any]) -> FloatArray:
    _check_seen(l, new)
    ids, counts = np.unique(new, return_counts=True)
    l = l.copy()
    with np.errstate(all="ignore"):
        if parameters.frequency_penalty:
            l[ids] -= counts.astype(np.float32) * np.float32(parameters.frequency_penalty)
        if parameters.presence_penalty:
            l[ids] -= np.float32(parameters.presence_penalty)
    return l


def _check_seen(l: FloatArray, seen: NDArray[Any]) -> None:
    outside = (seen < 0) | (seen >= l.size)
    if outside.any():
        raise IndexError(f"seen has {seen[outside][0]}, ids must be in [0, {l.size})")


def _largest(l: FloatArray, k: int) -> NDArray[np.intp]:
    """The k < l.size places of the largest values, of equals the lower ones; in order of place."""
    least = np.partition(l, l.size - k)[l.size - k]
    inside = l > least
    inside[np.flatnonzero(l == least)[: k - np.count_nonzero(inside)]] = True
    return np.flatnonzero(inside)


def _nucleus(l: FloatArray, p: NDArray[np.float64], top_p: float) -> NDArray[np.float64]:
    """p, with 0 wherever the sum over larger l has reached top_p. p rises with l: sorted, it is in order of rank."""
    falling = np.sort(p)[::-1]
    count = int(np.searchsorted(np.cumsum(falling, out=falling), top_p)) + 1
    if count < p.size:
        places = _largest(l, count)
        kept = p[places]
        p[:] = 0
        p[places] = kept
    return p


# ---- log-probabilities --------------------------------------------------------------------------------------


class Likely(NamedTuple):
    """How likely a token was, by the model's own logits: no temperature, penalty or mask.

    log_probability : float
    top : the likeliest ids, of equals the lower first, each with its log-probability
    """

    log_probability: float
    top: list[tuple[int, float]]


class Found(NamedTuple):
    """Of some tokens by the model's own logits.

    log_probabilities : float64 array (n,)
    greedy : bool array (n,)
        Whether each is the likeliest; of equals the lowest id.
    """

    log_probabilities: NDArray[np.float64]
    greedy: NDArray[np.bool_]


def log_probabilities(logits: FloatArray, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
    """Of the token ids[t] by logits[t]: logits (T, V) in float32, ids (T,); float64 (T,).

    ValueError if logits has a NaN or a row whose largest value is infinite.
    """
    return find(logits, np.arange(len(logits)), ids).log_probabilities


def find(logits: FloatArray, rows: Sequence[int] | NDArray[Any], ids: Sequence[int] | NDArray[Any]) -> Found:
    """Of the token ids[i] by logits[rows[i]], a row for any number of tokens. ValueError as `log_probabilities`."""
    best, m, ln = _normalizers(logits)
    values = logits[rows, ids].astype(np.float64)
    return Found((values - m[rows].astype(np.float64)) - ln[rows], best[rows] == ids)


def _normalizers(logits: FloatArray) -> tuple[NDArray[np.intp], FloatArray, NDArray[np.float64]]:
    """Each row's likeliest id, its value m, and ln of the sum of exp(l - m)."""
    best = llorch.argmax(logits)
    m = logits[np.arange(len(logits)), best]
    if not np.isfinite(m).all():
        raise ValueError(f"logits has a row whose largest value is {m[~np.isfinite(m)][0]}: it must be finite")
    with np.errstate(over="ignore", under="ignore"):
        z = logits - m[:, None]
    e = llorch.exp(z, out=z)
    Z = np.cumsum(e, axis=1, dtype=np.float64)[:, -1]  # a running sum by definition, unlike np.sum
    return best, m, np.array([float(EXACT.ln(decimal.Decimal(z))) for z in Z.tolist()], np.float64)


def likely(logits: FloatArray, id: int, count: int) -> Likely:
    """Of a token by logits (V,), and the `count` likeliest beside it."""
    return _core._in_fpenv(_likely, logits, id, count)


def _likely(logits: FloatArray, id: int, count: int) -> Likely:
    _, m, ln = _normalizers(logits[None])
    count = min(count, logits.size)
    places = _largest(logits, count) if 0 < count < logits.size else np.arange(count)
    places = places[np.lexsort((places, -logits[places]))]
    ids = [id, *places.tolist()]
    logs = ((logits[ids].astype(np.float64) - m.astype(np.float64)) - ln).tolist()
    return Likely(logs[0], list(zip(ids[1:], logs[1:], strict=True)))
