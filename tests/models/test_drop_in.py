"""`MultiheadDilatedAttention` for `nn.MultiheadAttention`: adapters, state, layout, copies."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from models import MultiheadDilatedAttention

ALL = ([64], [1])


def ours(branches=ALL, seed=0, **options):
    torch.manual_seed(seed)
    options = {"sub_layer_norm": False, "dtype": torch.float64} | options
    module = MultiheadDilatedAttention(16, 4, *branches, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def theirs(**options):
    torch.manual_seed(1)
    module = nn.MultiheadAttention(16, 4, **({"dtype": torch.float64} | options))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def tokens(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 16, dtype=torch.float64, generator=generator)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


class LowRank(nn.Module):
    """A layer with a low-rank addition, as adapters wrap one."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("same", ("all", "keys and values", "query and value", "none"))
@pytest.mark.parametrize("layer", ("in_proj", "out_proj"))
@pytest.mark.parametrize("kind", ("adapter", "hook", "weight norm"))
def test_what_is_put_on_a_projection_acts_on_all_inputs(kind, layer, same):
    """Against the same module whose weights hold what the adapter adds."""
    module, merged = ours(), ours()
    inner, weight = getattr(module, layer), getattr(merged, layer).weight
    if kind == "adapter":
        adapter = LowRank(inner)
        setattr(module, layer, adapter)
        weight.data += (adapter.up @ adapter.down).detach()
    elif kind == "hook":
        inner.register_forward_hook(lambda _, inputs, output: 2 * output)
        weight.data *= 2
        getattr(merged, layer).bias.data *= 2
    else:
        weight_norm(inner)
        inner.parametrizations.weight.original0.data *= 3
        weight.data *= 3
    x, y, z = (tokens(2, 20, seed=seed) for seed in range(3))
    inputs = {
        "all": (x, x, x),
        "keys and values": (x, y, y),
        "query and value": (x, y, x),
        "none": (x, y, z),
    }[same]
    got, want = module(*inputs)[0], merged(*inputs)[0]
    close(got, want)
    apart = merged(*(part.clone() for part in inputs))[0]
    close(got, apart)
    got.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("sub_layer_norm", (False, True))
def test_it_loads_their_state_dict(sub_layer_norm, bias):
    source, module = theirs(bias=bias), ours(bias=bias, sub_layer_norm=sub_layer_norm)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    state = source.state_dict()
    assert str(module.load_state_dict(state)) == "<All keys matched successfully>"
    assert set(state) == set(source.state_dict())  # theirs is left as it was
    assert torch.equal(module.in_proj.weight, source.in_proj_weight)
    if sub_layer_norm:
        assert torch.equal(module.norm.weight, before["norm.weight"])
        return
    x = tokens(20, 2)
    want = source(x, x, x, need_weights=False)[0]
    close(module(*(3 * (x.transpose(0, 1),)))[0].transpose(0, 1), want)


def test_it_loads_within_a_larger_model():
    model = nn.ModuleDict({"layer": nn.Sequential(theirs())})
    target = nn.ModuleDict({"layer": nn.Sequential(ours())})
    target.load_state_dict(model.state_dict())
    assert torch.equal(target["layer"][0].in_proj.bias, model["layer"][0].in_proj_bias)
    round_trip = ours(seed=5)
    round_trip.load_state_dict(target["layer"][0].state_dict())
    assert torch.equal(round_trip.in_proj.bias, model["layer"][0].in_proj_bias)


@pytest.mark.parametrize("state", (theirs(add_bias_kv=True), theirs(kdim=8), nn.Linear(4, 4)))
def test_other_state_dicts_are_refused(state):
    with pytest.raises(RuntimeError, match="bias_k|k_proj_weight|Missing key"):
        ours().load_state_dict(state.state_dict())


@pytest.mark.parametrize("padded", (None, torch.arange(20) >= torch.tensor([[20], [13]])))
def test_batch_first_false_attends_along_the_tokens(padded):
    source, module = theirs(), ours(batch_first=False)
    module.load_state_dict(source.state_dict())
    x, y, z = (tokens(20, 2, seed=seed) for seed in range(3))
    for inputs in ((x, x, x), (x, y, z), (x, y, y)):
        want = source(*inputs, key_padding_mask=padded, need_weights=False)[0]
        close(module(*inputs, key_padding_mask=padded)[0], want)


def test_the_arguments_of_the_original():
    """Those that ask for what is not done are refused by name; the others change nothing."""
    defaults = {"dropout": 0.0, "add_bias_kv": False, "add_zero_attn": False}
    module = ours(**defaults, kdim=16, vdim=None, batch_first=True)
    x = tokens(2, 20)
    want = ours()(x, x, x)[0]
    close(module(x, x, x, None, False, None, True, False)[0], want)
    close(module(x, x, x, need_weights=False, average_attn_weights=False)[0], want)
    for name, value in (
        ("dropout", 0.1), ("add_bias_kv", True), ("add_zero_attn", True), ("kdim", 8), ("vdim", 8),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}={value}: expected"):
            ours(**{name: value})
    with pytest.raises(ValueError, match="need_weights=True"):
        module(x, x, x, need_weights=True)


@pytest.mark.parametrize(
    ("inputs", "message"),
    (
        ((tokens(2, 20), tokens(2, 9), tokens(2, 9)), r"key.shape=\(2, 9, 16\).*self-attention"),
        ((tokens(20), tokens(20), tokens(20)), r"query.shape=\(20, 16\): expected \(batch, tokens"),
        ((tokens(2, 20)[..., :8],) * 3, r"query.shape=\(2, 20, 8\)"),
        ((None, None, None), "query.shape=NoneType"),
    ),
)
def test_cross_attention_and_unbatched_inputs_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        ours()(*inputs)


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize(
    "mask",
    (
        torch.zeros(20, 20, dtype=torch.float64),
        torch.zeros(8, 20, 20).bool(),
        torch.eye(20).bool(),
        nn.Transformer.generate_square_subsequent_mask(20, dtype=torch.float64).triu(2),
    ),
)
def test_masks_that_are_not_causal_are_refused(mask, is_causal):
    x = tokens(2, 20)
    with pytest.raises(ValueError, match="attn_mask=.*expected None, or the causal mask"):
        ours()(x, x, x, attn_mask=mask, is_causal=is_causal)


@pytest.mark.parametrize("name", ("key_padding_mask", "attn_mask"))
def test_masks_that_are_no_tensors_are_refused_by_name(name):
    x = torch.randn(2, 8, 16)
    module = MultiheadDilatedAttention(16, 4, [8], [1])
    with pytest.raises(ValueError, match=f"{name}=list: expected a tensor or None"):
        module(x, x, x, **{name: [[False] * 8] * 2}, is_causal=True)


def test_an_empty_batch_gives_an_empty_result():
    for batch_first in (True, False):
        x = tokens(0, 20) if batch_first else tokens(20, 0)
        module = ours(batch_first=batch_first, branches=([8, 16], [1, 2]))
        out, _ = module(x.requires_grad_(), x, x)
        assert out.shape == x.shape
        out.sum().backward()
        assert x.grad.shape == x.shape
        assert all((p.grad == 0).all() for p in module.parameters())


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield dist.new_group([0])
    dist.destroy_process_group()


def test_copies_pickles_and_averages_keep_the_group(group):
    module, x = ours(branches=([8, 16], [1, 2]), group=group), tokens(2, 20)
    want = module(x, x, x)[0]
    twin = copy.deepcopy(module)
    assert twin.group is group and twin.in_proj.weight is not module.in_proj.weight
    close(twin(x, x, x)[0], want)
    again = pickle.loads(pickle.dumps(module))
    assert again.group is group
    close(again(x, x, x)[0], want)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    close(torch.load(file, weights_only=False)(x, x, x)[0], want)
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(module)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(2.0)
    average.update_parameters(module)
    close(average.module.in_proj.weight, module.in_proj.weight - 1.0)
    assert average.module.group is group


def test_a_pickle_from_elsewhere_says_what_it_lacks(group):
    module, x = ours(group=group), tokens(2, 20)
    state = module.__getstate__()
    state["group"] = "a group of another process"
    stranger = MultiheadDilatedAttention.__new__(MultiheadDilatedAttention)
    stranger.__setstate__(state)
    with pytest.raises(ValueError, match="group='a group of another process'"):
        stranger(x, x, x)
    stranger.group = None
    close(stranger(x, x, x)[0], module(x, x, x)[0])
