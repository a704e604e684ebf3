"""A network cut in two behind one of its layers: from images to that layer's maps, and from maps to
the network's output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer

Head = Callable[[Tensor], Any]
LAST = "last"  # the layer whose maps are the network's last with more than one cell


def last_maps(network: nn.Module, images: Tensor) -> str:
    """Return the dotted name of the last layer whose maps (B,D,h,w) have more than one cell.

    Where nested layers end together, it is the outermost. images: prepared for the network.
    ValueError where no layer has such maps.
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
    """Return a layer's maps (B,D,h,w) for images; ValueError where its output is something else."""
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
    """Return the function from a layer's maps to the network's output.

    It is the part of the network's graph behind the layer. Where torch.fx cannot trace the network,
    the whole network runs and the maps replace the layer's output: the result is the same, and the
    part before the layer costs extra time. images: used to test the function. ValueError where the
    output also depends on something other than the layer's output.
    """
    head = traced_head(network, layer) or whole_with(network, layer, images)
    with torch.no_grad():
        maps, other = maps_of(network, layer, images), torch.zeros_like(images)
        want, got = first_tensor(network(images)), first_tensor(head(maps))
        # The head of a whole run must not depend on the images either: test it with other images.
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
    """Return the part of the network's graph behind a layer.

    Returns None where the graph cannot be traced, or where the layer does not cut it.
    """

    class Leaves(Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return module_qualified_name == layer or super().is_leaf_module(
                m, module_qualified_name
            )

    try:
        module = GraphModule(network, Leaves().trace(network))
    except Exception:
        # a network from elsewhere may raise any error when its input is not a real tensor
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
    """Return a function that runs the whole network on placeholder images, with the maps in place
    of a layer's output.
    """

    def head(maps: Tensor) -> Any:
        hook = layer_of(network, layer).register_forward_hook(lambda _, given, output: maps)
        try:
            return network(images[:1].expand(len(maps), -1, -1, -1))
        finally:
            hook.remove()

    return head


def layer_of(network: nn.Module, layer: str) -> nn.Module:
    """Return a layer by its dotted name; ValueError with the network's last layer names where there
    is none.
    """
    names: dict[str, nn.Module] = dict(network.named_modules())
    if not layer or layer not in names:
        ends = ", ".join(list(names)[-5:])
        raise ValueError(
            f"expected the name of a layer of {type(network).__name__} (it ends with {ends}), got"
            f" {layer!r}"
        )
    return names[layer]


def first_tensor(output: Any) -> Tensor:
    """Return a network's output where it is a tensor, else its logits or its first tensor."""
    while not isinstance(output, Tensor):
        output = (
            output["logits"]
            if isinstance(output, dict) and "logits" in output
            else next(iter(output))
        )
    return output
