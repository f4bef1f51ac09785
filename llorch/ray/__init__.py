"""llorch in Ray Data: classes for `Dataset.map_batches`, and one hash over the rows of a job. docs/ray.md says more.

>>> import ray, llorch.ray
>>> rows = ray.data.from_items([{"id": 1, "prompt": "ROMEO:"}, {"id": 2, "prompt": "JULIET:"}])  # doctest: +SKIP
>>> options = {"model": "shakespeare-1m", "max_new_tokens": 20, "key": "id"}
>>> answers = rows.map_batches(
...     llorch.ray.Generate, fn_constructor_kwargs=options, batch_size=256, **llorch.ray.pool()
... )  # doctest: +SKIP
"""

try:
    import ray.data  # noqa: F401
except ImportError as error:
    raise ImportError('llorch.ray needs Ray Data: pip install "llorch[ray]"') from error

from llorch.ray.cluster import pool
from llorch.ray.rows import digest, seed_of
from llorch.ray.workers import Embed, Generate, RowError, Score

__all__ = ["Embed", "Generate", "RowError", "Score", "digest", "pool", "seed_of"]
