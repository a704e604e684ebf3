"""Weights files as trainers write them, read as strictly as torch reads them and no more."""

from __future__ import annotations

import argparse
import io
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_model
from torch import Tensor, nn

from counterfactory.models.wrapping.weights import contents, fill, read_weights


class Net(nn.Module):
    """A network with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.top = nn.Linear(4, 2)


class Tied(nn.Module):
    """A network with one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.out.weight = self.into.weight


def weights(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = Net()
    net.trunk[1].running_mean.normal_()
    return net.state_dict()


def named(front: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {front + key: value for key, value in state.items()}


def saved(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def loaded(data: bytes, entry: str | None = None) -> dict[str, Tensor]:
    torch.manual_seed(99)
    net = Net()
    fill(net, read_weights(data), "Net", entry)
    return net.state_dict()


def expect_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


SGD: dict[str, Any] = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{}]}
CONTAINERS: dict[str, Any] = {
    "compiled": lambda w: named("_orig_mod.", w),
    "compiled part": lambda w: {k.replace("trunk.", "trunk._orig_mod."): v for k, v in w.items()},
    "parallel compiled": lambda w: named("module._orig_mod.", w),
    "compiled parallel": lambda w: named("_orig_mod.module.", w),
    "averaged": lambda w: {"n_averaged": torch.tensor(5), **named("module.", w)},
    "averaged compiled": lambda w: {"n_averaged": torch.tensor(5)} | named("module._orig_mod.", w),
    "lightning": lambda w: {
        "state_dict": named("model.", w),
        "epoch": 1,
        "optimizer_states": [SGD],
    },
    "lightning with a loss": lambda w: {
        "state_dict": named("net.", w) | {"criterion.weight": torch.ones(2)}
    },
    "tutorial": lambda w: {"model_state_dict": w, "optimizer_state_dict": SGD, "epoch": 1},
    "short names": lambda w: {"net": w, "acc": 93.1, "epoch": 1},
    "reference scripts": lambda w: {"model": w, "optimizer": SGD, "lr_scheduler": {}, "epoch": 3},
    "parallel inside": lambda w: {"weights": {"ema": named("module.", w)}, "step": torch.tensor(4)},
    "with settings": lambda w: {
        "state_dict": w,
        "args": argparse.Namespace(lr=0.1, out=PurePosixPath("x"), classes={"a", "b"}),
        "best": np.float64(0.9),
    },
    "float64": lambda w: {k: v.double() if v.is_floating_point() else v for k, v in w.items()},
    "without counters": lambda w: {k: v for k, v in w.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_trainers_file_is_read_whole(kind: str) -> None:
    want = weights()
    expect_equal(loaded(saved(CONTAINERS[kind](want))), want)


def test_counters_may_be_missing_and_nothing_else() -> None:
    want = weights()
    del want["trunk.1.num_batches_tracked"]
    got = loaded(save(want))
    assert int(got["trunk.1.num_batches_tracked"]) == 0
    assert torch.equal(got["trunk.1.running_mean"], want["trunk.1.running_mean"])
    del want["trunk.1.running_mean"]
    with pytest.raises(ValueError, match=r"missing \['trunk.1.running_mean'\] and unknown \[\]"):
        loaded(save(want))


def test_tied_weights_are_needed_once(tmp_path: Any) -> None:
    torch.manual_seed(0)
    want = Tied()
    save_model(want, str(tmp_path / "tied.safetensors"))
    content = read_weights(tmp_path / "tied.safetensors")
    assert len(content) == 1
    net = Tied()
    fill(net, content, "Tied")
    assert torch.equal(net.into.weight, want.into.weight)
    assert net.out.weight is net.into.weight
    apart = Tied()
    apart.out.weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="missing"):
        fill(apart, content, "Tied")


def test_older_names_that_torch_itself_converts() -> None:
    old = nn.utils.weight_norm(nn.Linear(3, 3))
    net = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    fill(net, read_weights(saved(old.state_dict())), "Linear")
    image = torch.rand(2, 3)
    torch.testing.assert_close(net(image), old(image))


def test_one_of_several_sets_is_chosen_by_its_entry() -> None:
    first, second = weights(1), weights(2)
    data = saved({"model": first, "model_ema": named("module.", second), "epoch": 2})
    with pytest.raises(ValueError, match=r"got model, model_ema.module: set `entry`"):
        loaded(data)
    expect_equal(loaded(data, "model"), first)
    expect_equal(loaded(data, "model_ema"), second)
    both = saved(named("student.", first) | named("teacher.", second))
    expect_equal(loaded(both, "teacher"), second)
    with pytest.raises(ValueError, match=r"under the entry 'ema', got something else: the file"):
        loaded(data, "ema")
    expect_equal(loaded(saved({"model": first, "copy": dict(first)})), first)


def test_a_refusal_lists_what_the_file_holds() -> None:
    with pytest.raises(ValueError, match="holds a state dict, got list: save its state_dict"):
        loaded(saved([torch.ones(2)]))
    held = r"the file holds encoder \(dict of 8\), optimizer \(dict of 2\), epoch \(int\)$"
    other = {key.replace("top", "head"): value for key, value in weights().items()}
    del other["head.bias"], other["trunk.1.num_batches_tracked"], other["trunk.1.bias"]
    encoder = {**other, "a": torch.ones(1), "b": torch.ones(1)}
    with pytest.raises(ValueError, match=held):
        loaded(saved({"encoder": encoder, "optimizer": SGD, "epoch": 3}))
    with pytest.raises(ValueError, match=r"got something else: the file holds optimizer"):
        loaded(saved({"optimizer": SGD, "epoch": 3}))
    assert contents({f"layer{n}": torch.ones(n, 2) for n in range(1, 11)}).endswith(" and 2 more")
    with pytest.raises(ValueError, match="a whole pickled network: save its state_dict"):
        loaded(saved(nn.Sequential(nn.Linear(2, 2))))
    script, program = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), program)
    for archive in (script, program):
        with pytest.raises(ValueError, match="archive: set source: export"):
            loaded(archive.getvalue())


def test_objects_of_other_packages_are_refused_and_never_made() -> None:
    with pytest.raises(ValueError, match=r"a pickle with more than tensors in it \(.*Net\)"):
        loaded(saved({"state_dict": weights(), "model": Net()}))
