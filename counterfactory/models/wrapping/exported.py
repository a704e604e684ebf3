"""Exported archives as networks: checks for training mode, and batches of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

SWITCHES = ("train", "training")  # arguments of operators that are false in eval mode
DRAWS = ("bernoulli", "rand_like")  # in an operator's name: decomposed dropout
RATES = ("dropout_p", "p", "dropout")  # a switch with a rate of 0 does nothing
Argument = tuple[str, Any]


class InBatches(nn.Module):
    """A program exported for batches of `rows` rows, which computes other batches in parts of that
    size.

    The last part is padded with copies of its last row, and their outputs are removed.
    """

    def __init__(self, program: nn.Module, rows: int) -> None:
        super().__init__()
        self.program, self.rows = program, rows

    def forward(self, *inputs: Tensor) -> Any:
        """Return the program's output (B,...) for inputs (B,...)."""
        count = len(inputs[0])
        outputs = []
        for parts in zip(*(torch.split(one, self.rows) for one in inputs), strict=True):
            lacking = self.rows - len(parts[0])
            outputs.append(self.program(*(_filled(part, lacking) for part in parts)))
        return joined(outputs, count)


class ByItself(nn.Module):
    """A TorchScript network that computes row by row where it fails on several rows at once.

    A network that was traced with one image fails so.
    """

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script, self.alone = script, False

    def forward(self, *inputs: Tensor) -> Any:
        """Return the script's output (B,...) for inputs (B,...)."""
        count = len(inputs[0])
        if count > 1 and not self.alone:
            try:
                return self.script(*inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                try:
                    outputs = [self.script(*(one[:1] for one in inputs))]
                except RuntimeError:  # one image fails as well, so the reason is another one
                    raise error from None
                self.alone = True
        if count > 1:
            rows = zip(*(torch.split(one, 1) for one in inputs), strict=True)
            outputs = [self.script(*row) for row in rows]
            return joined(outputs, count)
        return self.script(*inputs)


def _filled(part: Tensor, lacking: int) -> Tensor:
    return torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part


def joined(outputs: list[Any], count: int) -> Any:
    """Return the outputs of parts as one output of `count` rows; tensors, or tuples, lists and
    dicts of them.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs)[:count]
    if isinstance(first, dict):
        return {key: joined([one[key] for one in outputs], count) for key in first}
    if isinstance(first, tuple | list):
        return [joined(list(part), count) for part in zip(*outputs, strict=True)]
    return first


def network_of_program(program: torch.export.ExportedProgram) -> nn.Module:
    """Return an exported program as a network for batches of any size; ValueError where it was
    exported in training mode.

    Its `fixed_channels` and `fixed_side` are those of the images of the export, where these are
    fixed.
    """
    graphs = [
        part.graph for part in program.graph_module.modules() if isinstance(part, GraphModule)
    ]
    nodes = [node for graph in graphs for node in graph.nodes if node.op == "call_function"]
    expect_eval((str(node.target), _arguments(node)) for node in nodes)
    shape = _input_shape(program)
    network: nn.Module = program.module()
    if shape and isinstance(shape[0], int):
        network = InBatches(network, shape[0])
    if len(shape) == 4 and isinstance(shape[1], int):
        network.fixed_channels = shape[1]  # type: ignore[assignment]
    if len(shape) == 4 and isinstance(shape[2], int) and shape[2] == shape[3]:
        network.fixed_side = shape[2]  # type: ignore[assignment]
    return network


def _input_shape(program: torch.export.ExportedProgram) -> list[Any]:
    """Return the shape of the first input, with a number for each fixed side; empty where there is
    no input.
    """
    names = program.graph_signature.user_inputs
    for node in program.graph_module.graph.nodes:
        if names and node.op == "placeholder" and node.name == names[0]:
            return list(getattr(node.meta.get("val"), "shape", ()))
    return []


def _arguments(node: Any) -> list[Argument]:
    """Return an operator's arguments by name, with the default where one is not passed."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    given = dict(zip((one.name for one in schema.arguments), node.args, strict=False))
    return [
        (one.name, node.kwargs.get(one.name, given.get(one.name, one.default_value)))
        for one in schema.arguments
    ]


def expect_eval(operators: Iterable[tuple[str, Iterable[Argument]]]) -> None:
    """Raise ValueError where an operator, by its name and its arguments' values, is in training
    mode.

    A switch that is not a constant (None) follows the network's own mode.
    """
    for name, pairs in operators:
        values = dict(pairs)
        on = next((switch for switch in SWITCHES if values.get(switch) is True), None)
        idle = any(values.get(rate, 1) == 0 for rate in RATES)
        # Batch norm without running statistics is the same in both modes.
        plain = "batch_norm" in name and values.get("running_mean") is None
        rate = values.get("dropout_p")
        draws = any(word in name for word in DRAWS) or (isinstance(rate, float) and rate > 0)
        if (on and not idle and not plain) or draws:
            raise ValueError(
                f"expected an archive of a network in eval mode, got {name} with"
                f" {f'{on}=True' if on else 'random numbers'}: call .eval() before the export"
            )


def expect_eval_script(script: nn.Module) -> None:
    """Raise ValueError where a TorchScript network was traced in training mode.

    Operators inside a branch are skipped: the network's own mode selects the branch.
    """
    try:
        graph: Any = script.inlined_graph
    except RuntimeError:  # it has no method forward, and a call raises that error itself
        return
    expect_eval(
        (node.kind(), _script_arguments(node))
        for node in graph.nodes()
        if node.kind().startswith("aten::") and node.schema() != "(no schema)"
    )


def _script_arguments(node: Any) -> Iterator[Argument]:
    """Yield an operator's arguments by name, with the value None where it is computed."""
    names = [one.name for one in torch._C.parse_schema(node.schema()).arguments]
    for name, value in zip(names, node.inputs(), strict=False):
        if name in (*SWITCHES, *RATES):
            yield name, value.toIValue()
        elif name == "running_mean":
            yield name, None if value.type().kind() == "NoneType" else ""
