"""A graph becomes a plan: an array of kernel calls, with neighbours fused and buffers shared.

Fused, where nobody else looks at what is between: linear + activation, linear + residual, activation * up (with the
layer that makes gate and up, where that is one weight), several linear layers of one input (they become columns of one
weight), and all of attention between the projections. None of it changes a bit: docs/numerics.md defines the fused
forms by the steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch import _core
from llorch._core import PackedLinear, Plan
from llorch.models.graph import GIVEN, Graph, Step

Array = NDArray[Any]
PANEL = 16  # columns: where a linear layer may be joined to the next
IN_PLACE = ("scale", "divide", "softcap")  # steps of one tensor, value by value
BEFORE, AFTER = -1, 1 << 20  # as numbers of layers: what comes before the blocks, and after


@dataclass(frozen=True)
class Group:
    """Linear layers of one input, by the full names of their weights, whose results lie side by side."""

    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """Linear layers of a group whose weights are kept alike, in one packed weight.

    columns : of the group's result, by the layers' names: where each begins.
    """

    weight: PackedLinear
    columns: Mapping[str, int]


@dataclass(eq=False)
class Value:
    """A tensor of the graph on its way through the plan.

    users : the steps that take it. left : how many of them are still to come. buffer, column : where it is; -1 where it
    is nowhere yet. width : values in a row.
    """

    step: Step
    layer: int
    width: int
    users: list["Value"] = field(default_factory=list)
    left: int = 0
    buffer: int = -1
    column: int = 0

    @property
    def view(self) -> tuple[int, int]:
        return self.buffer, self.column

    def only(self, op: str) -> "Value | None":
        """The one step that takes this, if it is one of this operation."""
        return self.users[0] if len(self.users) == 1 and self.users[0].step.op == op else None


def full_name(graph: Graph, layer: int, weight: str) -> str:
    """The name of a step's weight in Hugging Face's files, without ".weight"."""
    return weight if layer in (BEFORE, AFTER) else graph.prefix(layer) + weight


def factor_of(step: Step, kept: str) -> float:
    """What an embedding's rows are multiplied by, a float32; kept: the type of its table."""
    factor = np.array([step.options.get("factor", 1.0)], np.float32)
    if step.options.get("rounded") and kept in ("bfloat16", "float16"):
        factor = _core.cast(_core.cast(factor, kept), "float32")
    return float(factor[0])


def _values(graph: Graph) -> list[tuple[Value, list[Value | str]]]:
    """Every step of the graph in order as a value, with its inputs: values, or names of what is given."""
    found: list[tuple[Value, list[Value | str]]] = []
    widths: dict[str, int] = {}  # by axes
    x: Value | None = None
    for layer, steps in ((BEFORE, graph.before), *enumerate(graph.blocks), (AFTER, graph.after)):
        names: dict[str, Value | str] = {name: name for name in GIVEN}
        if x is not None:
            names["x"] = x
        for step in steps:
            if step.axes not in widths:
                widths[step.axes] = math.prod(graph.shape(step.axes.replace("T", ""), 1))
            value = Value(step, layer, widths[step.axes] if step.op != "scores" else 0)
            inputs = [names[name] for name in step.inputs]
            for one in inputs:
                if isinstance(one, Value):
                    one.users.append(value)
                    one.left += 1
            names[step.name] = value
            found.append((value, inputs))
            x = value
    return found


def groups(graph: Graph) -> list[Group]:
    """The linear layers that share a packed weight, in the order in which they are needed."""
    found: dict[tuple[int, str, str], list[str]] = {}
    for value, inputs in _values(graph):
        if value.step.op == "linear":
            key = _group_key(value, inputs)
            found.setdefault(key, []).append(full_name(graph, value.layer, value.step.weight))
    return [Group(tuple(names)) for names in found.values()]


def _group_key(value: Value, inputs: list[Value | str]) -> tuple[int, str, str]:
    """What layers must have in common to be joined: the input, and what becomes of them."""
    if value.width % PANEL or isinstance(inputs[0], str):
        kind = value.step.name
    elif value.users and all(user.step.op == "heads" for user in value.users):
        kind = "heads"
    elif _gate(value) is not None:
        kind = "gate"
    else:
        kind = value.step.name
    return value.layer, value.step.inputs[0], kind


def _gate(value: Value) -> Value | None:
    """The product of act(gate) and up that a linear layer is one side of."""
    activation = value.only("activation")
    return (activation or value).only("multiply")


@dataclass(eq=False)
class Weights:
    """What a plan is made with, by the names of Hugging Face's files.

    packed : of a group of linear layers, by its first name: its parts, side by side.
    vectors : float32. tables : of embeddings, (K, N) packed with a column a token, or float32 arrays with a row each.
    """

    packed: dict[str, list[Part]] = field(default_factory=dict)
    vectors: dict[str, Array] = field(default_factory=dict)
    tables: dict[str, PackedLinear | Array] = field(default_factory=dict)

    @property
    def layers(self) -> list[PackedLinear]:
        """The packed weights of linear layers."""
        return [part.weight for parts in self.packed.values() for part in parts]

    @property
    def dtype(self) -> str:
        """How matrices are kept; where it isn't one way, all of them, that of most bytes first: "q4_k+q6_k"."""
        nbytes: dict[str, int] = {}
        for each in self._matrices():
            nbytes[each.dtype] = nbytes.get(each.dtype, 0) + each.nbytes
        return "+".join(sorted(nbytes, key=lambda name: -nbytes[name]))

    def others(self, dtype: str) -> tuple[int, int, str] | None:
        """Of the matrices how many are kept in another way, of how many, and in which; None if none is. Those that are
        computed side by side count as one."""
        found = [each.dtype for each in self._matrices()]
        others = sorted({name for name in found if name != dtype})
        return (sum(name != dtype for name in found), len(found), ", ".join(others)) if others else None

    @property
    def compute(self) -> str:
        """ "int16" where any layer has that arithmetic, else "float32"."""
        return "int16" if any(weight.compute == "int16" for weight in self.layers) else "float32"

    @property
    def nbytes(self) -> int:
        """Memory of all weights."""
        tables = [table for table in self.tables.values() if isinstance(table, np.ndarray)]
        return sum(each.nbytes for each in self._matrices()) + sum(each.nbytes for each in [*tables, *self._vectors()])

    @property
    def step_nbytes(self) -> int:
        """What of it one step reads: all but the embeddings, of which it takes rows."""
        return sum(each.nbytes for each in self.layers) + sum(each.nbytes for each in self._vectors())

    def _matrices(self) -> list[PackedLinear]:
        """Each once: a head may be the embedding."""
        tables = [table for table in self.tables.values() if isinstance(table, PackedLinear)]
        return list({id(each): each for each in [*self.layers, *tables]}.values())

    def _vectors(self) -> list[Array]:
        return [*self.vectors.values(), *(weight.bias for weight in self.layers if weight.bias is not None)]


class Compiler:
    """One plan of a graph.

    rows : "all"; "last" or "first" for one row of each sequence, which alone goes through the end of the last block;
    "mean" for the mean of its rows.
    fuse : False keeps every tensor of the graph, for a trace.
    """

    def __init__(self, graph: Graph, weights: Weights, *, rows: str = "all", fuse: bool = True) -> None:
        self.graph, self.weights, self.rows, self.fuse = graph, weights, rows, fuse
        self.calls: list[dict[str, Any]] = []
        self.widths: list[int] = []
        self.free: list[int] = []
        self.made: list[list[Value]] = []  # by call: the graph's tensors that are there after it, for a trace
        self.holders: dict[int, int] = {}  # buffer: values in it that are still needed
        self.lying: dict[int, list[Value]] = {}  # buffer: values that have been put there since it was taken
        self.done: set[int] = set()  # values that a fused call has made already, by id
        self.ropes = list(graph.ropes)
        self.biases: dict[tuple[str, tuple[int, ...]], Array] = {}  # by table and buckets
        self.values = _values(graph)
        self.inputs_of = {id(value): inputs for value, inputs in self.values}
        self.group_of = {
            name: first for first, parts in weights.packed.items() for part in parts for name in part.columns
        }
        self.members: dict[tuple[int, str], list[Value]] = {}  # by layer and group: the linear layers side by side
        for value, _ in self.values:
            if value.step.op == "linear":
                first = self.group_of[full_name(graph, value.layer, value.step.weight)]
                self.members.setdefault((value.layer, first), []).append(value)
        self.widths.append(self.values[-1][0].width)
        self.output = 0  # the result's buffer, whose memory is the caller's

    # ---- buffers ----

    def take(self, width: int) -> int:
        for at, buffer in enumerate(self.free):
            if self.widths[buffer] == width:
                self.lying[buffer] = []
                return self.free.pop(at)
        self.widths.append(width)
        return len(self.widths) - 1

    def place(self, value: Value, buffer: int | None = None, column: int = 0) -> Value:
        value.buffer = self.take(value.width) if buffer is None else buffer
        value.column = column
        self.lying.setdefault(value.buffer, []).append(value)
        if value.left:
            self.holders[value.buffer] = self.holders.get(value.buffer, 0) + 1
        return value

    def use(self, *values: Value | str) -> None:
        """Counts that a step has taken these; a buffer that nobody needs any more is free."""
        for value in values:
            if isinstance(value, str):
                continue
            value.left -= 1
            if value.left == 0 and value.buffer >= 0:
                self.holders[value.buffer] -= 1
                if self.holders[value.buffer] == 0 and value.buffer != self.output:
                    del self.holders[value.buffer]
                    self.free.append(value.buffer)

    def dies(self, value: Value) -> bool:
        """Whether the step at hand is the last to need this and everything else in its buffer."""
        return value.left == 1 and self.holders.get(value.buffer) == 1 and value.buffer != self.output

    def alone(self, value: Value) -> bool:
        """Whether the step at hand is the last to need this and all else in its columns, so that it may write there."""
        end = value.column + value.width
        return value.left == 1 and not any(
            other is not value and other.left and other.column < end and value.column < other.column + other.width
            for other in self.lying[value.buffer]
        )

    def emit(self, op: str, *made: Value, **entries: Any) -> None:
        self.calls.append({"op": op, **entries})
        self.made.append(list(made))

    # ---- steps ----

    def run(self) -> Plan:
        for value, inputs in self.values:
            if id(value) in self.done:
                continue
            handler: Callable[[Value, list[Any]], None] = getattr(self, f"_{value.step.op}")
            handler(value, inputs)
        if self.rows == "mean":
            self.emit("mean", x=value.view, y=(self.output, 0), n=value.width)
        return Plan(self.calls, self.widths, self.output, len(self.graph.blocks))

    def put(self, value: Value, *, over: Value | None = None) -> Value:
        """A place for a result: the output, the place of a value that dies here, or a fresh buffer."""
        if self._ends_as_result(value):
            return self.place(value, self.output)
        if over is not None and self.dies(over) and over.width == value.width:
            self.holders[over.buffer] += 1  # the new one; use() counts the old one off
            value.buffer, value.column = over.view
            self.lying[over.buffer].append(value)
            if not value.left:
                self.holders[over.buffer] -= 1
            return value
        return self.place(value)

    def _ends_as_result(self, value: Value) -> bool:
        """Whether it is the result, or becomes it where it lies: logits are large, and a second buffer would be too."""
        while self.fuse and len(value.users) == 1 and value.users[0].step.op in IN_PLACE:
            value = value.users[0]
        return value is self.values[-1][0] and self.rows != "mean"

    def _embedding(self, value: Value, inputs: list[Any]) -> None:
        name = full_name(self.graph, value.layer, value.step.weight) + ".weight"
        table = self.weights.tables[name]
        kept = table.dtype if isinstance(table, PackedLinear) else "float32"
        factor = factor_of(value.step, kept)
        if inputs[0] != "ids":
            user = value.only("add")
            if user is not None and isinstance(table, np.ndarray) and factor == 1.0:
                return  # the sum adds its rows by itself
            raise ValueError(f"{name}: an embedding of {inputs[0]} must be added to one of tokens")
        self.put(value)
        self.emit("embedding", value, y=value.view, n=value.width, weight=table, number=factor)

    def _layer_norm(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        step, name = value.step, full_name(self.graph, value.layer, value.step.weight)
        weight, bias = self.weights.vectors.get(f"{name}.weight"), self.weights.vectors.get(f"{name}.bias")
        heads = self.graph.sizes[step.axes[0]] if step.axes[0] != "T" else 1
        if heads > 1 and self.fuse and self.alone(x):
            self.place(value, x.buffer, x.column)  # where it lies, among its neighbours
        else:
            self.put(value, over=x if self.fuse else None)
        self.emit(
            step.op, value, x=x.view, y=value.view, n=value.width // heads, heads=heads, scale=weight, bias=bias,
            number=float(step.options["eps"]),
        )  # fmt: skip
        self.use(x)

    _rms_norm = _layer_norm

    def _linear(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        name = full_name(self.graph, value.layer, value.step.weight)
        first = self.group_of[name]
        parts = self.weights.packed[first]
        if sum(len(part.columns) for part in parts) > 1:
            self._join(value, x, first, parts)
            return
        sides = {id(user): int(user.step.options["first"]) for user in value.users if user.step.op == "columns"}
        if self._gated(value.users, [sides.get(id(user), -1) for user in value.users], x, parts[0].weight):
            self.use(x)
            return
        result, function, residual = value, None, None
        if self.fuse:
            activation = value.only("activation")
            if activation is not None:
                result, function = activation, activation.step.options["function"]
            user = result.only("add")
            if user is not None and (other := self._other(user, result)) is not None:
                result, residual = user, other
        self.put(result, over=residual)
        self.emit(
            "linear", result, x=x.view, y=result.view, n=result.width, weight=parts[0].weight, function=function,
            x2=None if residual is None else residual.view,
        )  # fmt: skip
        self.use(x)
        if residual is not None:
            self.use(residual)
        self.done |= {id(v) for v in (value, value.only("activation") if function else None, result) if v is not None}

    def _other(self, user: Value, mine: Value) -> Value | None:
        """The other side of a sum, if it has been made."""
        others = [one for one in self.inputs_of[id(user)] if one is not mine]
        return others[0] if len(others) == 1 and isinstance(others[0], Value) and others[0].buffer >= 0 else None

    def _join(self, value: Value, x: Value, first: str, parts: list[Part]) -> None:
        """One of the layers whose results lie side by side: the first of them makes all, in a call for each part."""
        members = {full_name(self.graph, one.layer, one.step.weight): one for one in self.members[value.layer, first]}
        if value is next(iter(members.values())):
            columns = {name: column for part in parts for name, column in part.columns.items()}
            if self._gated([members[name] for name in columns], list(columns.values()), x, parts[0].weight):
                self.use(*[x] * len(columns))
                return
            buffer = self.take(sum(member.width for member in members.values()))
            for part in parts:
                made = [self.place(members[name], buffer, column) for name, column in part.columns.items()]
                self.emit("linear", *made, x=x.view, y=made[0].view, n=part.weight.out_features, weight=part.weight)
        self.use(x)

    def _gated(self, sides: list[Value], columns: list[int], x: Value, weight: PackedLinear) -> bool:
        """Makes act(gate) * up in one call with the layer of which they are the halves, in this order, if nobody else
        looks at them. Whether it did."""
        if not self.fuse or len(sides) != 2 or columns != [0, sides[0].width] or sides[0].width % PANEL:
            return False
        gate, up = sides
        activation, product = gate.only("activation"), _gate(gate)
        if product is None or up.only("multiply") is not product or weight.out_features != 2 * gate.width:
            return False
        function = None if activation is None else activation.step.options["function"]
        self.put(product)
        self.emit(
            "linear", product, x=x.view, y=product.view, n=product.width, weight=weight, function=function, gated=True
        )
        self.done |= {id(one) for one in (gate, up, activation, product) if one is not None}
        return True

    def _heads(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        D = self.graph.sizes["D"]
        self.place(value, x.buffer, x.column + int(value.step.options["first"]) * D)
        self.alias(value)
        self.use(x)

    def _columns(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        self.place(value, x.buffer, x.column + int(value.step.options["first"]))
        self.alias(value)
        self.use(x)

    def _row(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        if self.rows == "all":
            self.emit("rows", x=(x.buffer, 0), rows="first")
        self.place(value, x.buffer, x.column)
        self.alias(value)
        self.use(x)

    def _cache(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        self.place(value, x.buffer, x.column)
        self.alias(value)
        self.use(x)

    def alias(self, value: Value) -> None:
        """A value that is there without a call: a trace sees it with the call before."""
        if self.made:
            self.made[-1].append(value)

    def _rope(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        D, heads = self.graph.sizes["D"], self.graph.sizes[value.step.axes[0]]
        table = value.step.options["table"]
        if table is None:
            self._cache(value, inputs)
            return
        over = self.fuse and self.alone(x)
        if over:
            self.place(value, x.buffer, x.column)
        else:
            self.put(value)
        before = self.calls[-1] if self.calls else {}
        entries = {
            "x": x.view, "y": value.view, "n": value.width, "heads": heads, "D": D,
            "R": self.graph.ropes[table].width, "table": self.ropes.index(table),
        }  # fmt: skip
        behind = before.get("op") == "rope" and all(before[one] == entries[one] for one in ("D", "R", "table"))
        if over and behind and before["y"] == before["x"] == (x.buffer, x.column - before["n"]):
            before["heads"] += heads  # queries and keys side by side
            before["n"] += value.width
            self.made[-1].append(value)
        else:
            self.emit("rope", value, **entries)
        self.use(x)

    def _scores(self, value: Value, inputs: list[Any]) -> None:
        """Attention makes scores and context in one call, when it comes to the context."""

    def _attend(self, value: Value, inputs: list[Any]) -> None:
        scores, v = inputs
        q, k = (one for one in self.inputs_of[id(scores)] if isinstance(one, Value))
        options = scores.step.options
        one = self.rows in ("first", "last") and value.layer == len(self.graph.blocks) - 1
        rows = self.rows if one else "all"
        self.put(value)
        self.emit(
            "attention", value, x=q.view, k=k.view, v=v.view, y=value.view, n=value.width, layer=value.layer,
            heads=self.graph.sizes["H"], kv_heads=self.graph.sizes["G"], D=self.graph.sizes["D"],
            attention_scale=options["scale"], causal=options["causal"], window=options["window"],
            softcap=options["softcap"], position_bias=self.position_bias(options), rows=rows,
        )  # fmt: skip
        self.use(q, k, v)
        if rows != "all":
            needed = {v.buffer for v, _ in self.values if v.left and v.buffer >= 0 and v is not value}
            for buffer in sorted(needed):
                self.emit("rows", x=(buffer, 0), rows=rows)

    def position_bias(self, options: Mapping[str, Any]) -> Array | None:
        """What is added to scores: (heads, distances), one array for all layers that have the same."""
        if options.get("position_bias") is None:
            return None
        key = options["position_bias"], options["buckets"]
        if key not in self.biases:
            table = self.weights.tables[f"{key[0]}.weight"]
            assert isinstance(table, np.ndarray)  # as the loader makes those that no id chooses from
            self.biases[key] = np.ascontiguousarray(table[list(key[1])].T)
        return self.biases[key]

    def _activation(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        function = value.step.options["function"]
        product = value.only("multiply") if self.fuse else None
        up = self._other(product, value) if product is not None else None
        if product is not None and up is not None:
            self.put(product)
            self.emit("gate", product, x=x.view, x2=up.view, y=product.view, n=product.width, function=function)
            self.use(x, up)
            self.done |= {id(value), id(product)}
            return
        self.put(value, over=x if self.fuse else None)
        self.emit("function", value, x=x.view, y=value.view, n=value.width, function=function)
        self.use(x)

    def _two(self, op: str, value: Value, inputs: list[Any]) -> None:
        a, b = inputs
        self.put(value, over=a if self.fuse else None)
        self.emit(op, value, x=a.view, x2=b.view, y=value.view, n=value.width)
        self.use(a, b)

    def _multiply(self, value: Value, inputs: list[Any]) -> None:
        self._two("multiply", value, inputs)

    def _add(self, value: Value, inputs: list[Any]) -> None:
        tokens, places = inputs
        if tokens.step.op == "embedding" and tokens.buffer < 0:
            tokens, places = places, tokens
        if places.step.op == "embedding" and places.buffer < 0:
            table = self.weights.tables[full_name(self.graph, places.layer, places.step.weight) + ".weight"]
            (given,) = self.inputs_of[id(places)]
            if not self.dies(tokens):
                raise ValueError(
                    f"step {value.step.name!r} adds {given} to {tokens.step.name!r}, which is needed again"
                )
            value.buffer, value.column = tokens.view
            self.lying[tokens.buffer].append(value)
            self.holders[tokens.buffer] += 1
            if isinstance(table, np.ndarray) and given == "positions":
                table = table[places.step.options.get("first", 0) :]
            self.emit("places", value, y=value.view, n=value.width, weight=table, types=given == "token_types")
            self.use(tokens)
            places.left = 0
            return
        self._two("add", value, inputs)

    def _by_a_number(self, value: Value, inputs: list[Any]) -> None:
        (x,) = inputs
        (number,) = value.step.options.values()
        self.put(value, over=x if self.fuse else None)
        self.emit(value.step.op, value, x=x.view, y=value.view, n=value.width, number=float(number))
        self.use(x)

    _scale = _divide = _softcap = _by_a_number
