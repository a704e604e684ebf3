"""A network cut in two behind one of its layers: images to that layer's maps, and maps to what the
network returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer

Head = Callable[[Tensor], Any]
LAST = "last"  # the layer that a network's last maps of more than one cell come from


def last_maps(network: nn.Module, images: Tensor) -> str:
    """The dotted name of the last layer to give maps (B,D,h,w) of more than one cell; images as the
    network wants them.

    Of layers within each other that end together, it is the outermost.
    """
    seen: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
                seen.append(name)

        return hook

    hooks = [
        layer.register_forward_hook(note(name)) for name, layer in network.named_modules() if name
    ]
    try:
        network(images[:1])
    finally:
        for one in hooks:
            one.remove()
    if not seen:
        hint = "set the method's layer to null, for cells of the image itself"
        raise ValueError(
            f"expected a layer of {type(network).__name__} that gives maps (B,D,h,w), got none:"
            f" {hint}"
        )
    return seen[-1]


def maps_of(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a layer gives (B,D,h,w) while the network looks at images; ValueError where that is
    something else.
    """
    seen: list[Any] = []
    hook = layer_of(network, layer).register_forward_hook(
        lambda _, given, output: seen.append(output)
    )
    try:
        network(images)
    finally:
        hook.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].ndim != 4:
        got = (
            f"{len(seen)} outputs"
            if len(seen) != 1
            else str(tuple(getattr(seen[0], "shape", ())) or type(seen[0]))
        )
        raise ValueError(
            f"expected maps (B,D,h,w) from {layer!r} of {type(network).__name__}, got {got}"
        )
    return seen[0]


def head_of(network: nn.Module, layer: str, images: Tensor) -> Head:
    """What turns a layer's maps into what the network returns.

    It is the part of the network's graph behind the layer. A network that torch.fx cannot trace is
    run as a whole, the maps put in the layer's place: the same, and slower by the part in front of
    the layer. images: to try it on. ValueError where something else than the layer's output reaches
    the end.
    """
    head = traced_head(network, layer) or whole_with(network, layer, images)
    with torch.no_grad():
        maps, other = maps_of(network, layer, images), torch.zeros_like(images)
        want, got = first_tensor(network(images)), first_tensor(head(maps))
        # The head of a whole run must not look at the images either, and these it was not given.
        again = first_tensor(whole_with(network, layer, other)(maps))
    if not (
        torch.allclose(got, want, rtol=1e-3, atol=1e-4)
        and torch.allclose(again, want, rtol=1e-3, atol=1e-4)
    ):
        raise ValueError(
            f"expected a layer of {type(network).__name__} that everything passes through, got"
            f" {layer!r}, which something goes around: name a later one, or one that holds both"
            " ways"
        )
    return head


def traced_head(network: nn.Module, layer: str) -> Head | None:
    """The network's graph from behind a layer on; None where it cannot be traced, or is not cut by
    the layer.
    """

    class Leaves(Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return module_qualified_name == layer or super().is_leaf_module(
                m, module_qualified_name
            )

    try:
        module = GraphModule(network, Leaves().trace(network))
    except Exception:
        # a foreign network's code may fail in any way where it is given a stand-in for a tensor
        return None
    graph = module.graph
    cuts = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(cuts) != 1:
        return None
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(cuts[0]):
        maps = graph.placeholder("maps")
    cuts[0].replace_all_uses_with(maps)
    graph.eliminate_dead_code()
    if any(node.users for node in inputs):
        return None
    for node in inputs:
        graph.erase_node(node)
    module.recompile()
    return module


def whole_with(network: nn.Module, layer: str, images: Tensor) -> Head:
    """The whole network, run on a stand-in for the images, with the maps put in place of a layer's
    output.
    """

    def head(maps: Tensor) -> Any:
        hook = layer_of(network, layer).register_forward_hook(lambda _, given, output: maps)
        try:
            return network(images[:1].expand(len(maps), -1, -1, -1))
        finally:
            hook.remove()

    return head


def layer_of(network: nn.Module, layer: str) -> nn.Module:
    """A layer by its dotted name; ValueError names the last ones there are."""
    names: dict[str, nn.Module] = dict(network.named_modules())
    if not layer or layer not in names:
        ends = ", ".join(list(names)[-5:])
        raise ValueError(
            f"expected the name of a layer of {type(network).__name__} (it ends with {ends}), got"
            f" {layer!r}"
        )
    return names[layer]


def first_tensor(output: Any) -> Tensor:
    """The tensor that a network's output is, or starts with."""
    while not isinstance(output, Tensor):
        output = (
            output["logits"]
            if isinstance(output, dict) and "logits" in output
            else next(iter(output))
        )
    return output
