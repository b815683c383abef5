"""Reused memory: what a call computes does not depend on the calls before, between and beside it."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sims_kit.model import sparse as first_layer
from sims_kit.model.network import TabNet
from sims_kit.model.sparse import last_call, workspace

N_GENES = 500
PATHS = pytest.mark.parametrize("narrow", [1, -1], ids=["pairs", "all-genes"])


pytestmark = pytest.mark.usefixtures("double_precision")


def _network(narrow=1, **settings):
    network = TabNet(N_GENES, 3, virtual_batch_size=16, **settings)
    network.narrow = narrow
    return network


def _cells(n_cells=40, n_genes=N_GENES, rate=1.0):
    return torch.poisson(rate * torch.rand(n_cells, n_genes)).log1p().to_sparse_csr()


def _loss(network, cells):
    output = network(cells)
    return output.logits.square().mean() + output.mask_entropy


def _gradients(loss, network, **options):
    return torch.autograd.grad(loss, list(network.parameters()), **options)


def _poison():
    """Fill every buffer of the network with NaN, as large as the largest batch of these tests."""
    for name in ("cells", "logits", "table"):
        for number_type in (torch.float32, torch.float64):
            workspace(name, (100, 2 * N_GENES), torch.empty(0, dtype=number_type)).fill_(torch.nan)


def _assert_equal(found, expected):
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def _assert_close(found, expected):
    """Equal but for rounding: torch may cut sums otherwise in a thread of its own.

    Sums that nearly cancel have shown differences of 2e-12; memory that two threads share would show 1e-3 and more.
    """
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_memory_is_used_again():
    """The same name gives the same memory for a shape no larger, and another name other memory."""
    like = torch.empty(0)
    first = workspace("test", (4, 5), like)
    assert workspace("test", (2, 3), like).data_ptr() == first.data_ptr() and first.shape == (4, 5)
    assert workspace("other test", (4, 5), like).data_ptr() != first.data_ptr()
    assert workspace("test", (2, 3), like.float()).dtype == torch.float32
    assert workspace("test", (40, 50), like).shape == (40, 50)


def test_threads_have_their_own():
    """Two threads never share memory."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(workspace, "test", (4, 5), torch.empty(0)).result()
    assert workspace("test", (4, 5), torch.empty(0)).data_ptr() != other.data_ptr()


def test_last_call():
    """The number stands until the same name is used again, and no two threads ever have the same."""
    like = torch.empty(0)
    assert last_call("never called", like) is None
    workspace("test", (4, 5), like)
    number = last_call("test", like)
    workspace("other test", (4, 5), like), workspace("test", (4, 5), like.float())
    assert last_call("test", like) == number is not None
    workspace("test", (1,), like)
    assert last_call("test", like) != number
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(last_call, "test", like).result() is None
        pool.submit(workspace, "test", (4, 5), like).result()
        assert pool.submit(last_call, "test", like).result() != last_call("test", like)


@pytest.mark.parametrize("between, times", [(False, 0), (True, 1)], ids=["at once", "after another batch"])
def test_backward_unpacks_when_it_must(between, times, monkeypatch):
    """The backward pass finds the batch still unpacked, unless another one was meanwhile."""
    network, cells, calls = _network(), _cells(), []
    unpacked = first_layer.unpacked
    loss = _loss(network, cells)
    if between:
        _loss(network, _cells())
    monkeypatch.setattr(first_layer, "unpacked", lambda cells: calls.append(cells) or unpacked(cells))
    loss.backward()
    assert len(calls) == times


@PATHS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_same_call_twice(narrow, training):
    """Logits, gradients, statistics and explanations are the same to the bit, also after NaN filled the memory."""
    network, cells, found = _network(narrow).train(training), _cells(), []
    for _ in range(2):
        twin = copy.deepcopy(network)
        loss = _loss(twin, cells)
        _poison()
        gradients = _gradients(loss, twin)
        _poison()
        aggregated, logits = twin.eval().explain(cells)
        found.append([loss, *gradients, *twin.buffers(), aggregated.to_dense(), logits])
    _assert_equal(*found)
    assert all(torch.isfinite(part).all() for part in found[0])


@PATHS
def test_forward_twice_then_backward(narrow):
    """A batch between a forward pass and its backward pass changes nothing, and both may go backward in any order."""
    network, batches = _network(narrow).eval(), [_cells(40), _cells(50, rate=3.0)]
    expected = [_gradients(_loss(network, cells), network) for cells in batches]
    losses = [_loss(network, cells) for cells in batches]
    _poison()
    _assert_equal(_gradients(losses[0], network), expected[0])
    _assert_equal(_gradients(losses[1], network), expected[1])


@PATHS
def test_backward_twice(narrow):
    """A graph that is kept gives the same gradients again."""
    network, cells = _network(narrow), _cells()
    loss = _loss(network, cells)
    first = _gradients(loss, network, retain_graph=True)
    _network().eval()(_cells(rate=5.0))
    _assert_equal(_gradients(loss, network), first)


@PATHS
def test_two_threads(narrow):
    """Networks at work in two threads at once give what each gives alone."""
    networks, batches = [_network(narrow).eval() for _ in range(2)], [_cells(64), _cells(33, rate=2.0)]
    start = threading.Barrier(2)

    def work(number, together):
        if together:
            start.wait()
        losses = [_loss(networks[number], batches[number]) for _ in range(5)]
        return [gradient for loss in losses for gradient in _gradients(loss, networks[number])]

    expected = [work(number, False) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for found, alone in zip(pool.map(work, range(2), [True, True]), expected, strict=True):
            _assert_close(found, alone)


@PATHS
@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad])
def test_predicting_before_training(narrow, first):
    """A thread that starts with predictions, as a trainer's first check does, can go on to train."""
    network, cells = _network(narrow), _cells()
    expected = network.eval()(cells).logits.detach()

    def predict_and_train():  # in a thread of its own: its memory is new
        with first():
            predicted = network.eval()(cells).logits
            explained = network.explain(cells)[1]
        return predicted, explained, *_gradients(_loss(network.train(), cells), network)

    with ThreadPoolExecutor(1) as pool:
        predicted, explained, *gradients = pool.submit(predict_and_train).result()
    _assert_close([predicted, explained], [expected, expected])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@PATHS
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies(narrow, duplicate):
    """A network that was used can be copied and pickled, and the copy goes its own way."""
    network, cells = _network(narrow), _cells()
    network(cells)
    twin = duplicate(network)
    _assert_equal(_gradients(_loss(twin, cells), twin), _gradients(_loss(network, cells), network))
    twin.final_mapping.weight.data.zero_()
    assert (network.eval()(cells).logits != 0).any() and (twin.eval()(cells).logits == 0).all()


def test_second_derivatives_are_right_or_refused():
    """Differentiating a gradient through sparse cells is right or an error, never a number from reused memory."""
    network, cells = _network(-1).eval(), _cells()
    weight = network.encoder.initial_splitter.shared.glu_layers[0].fc.weight

    def second(given):
        (gradient,) = torch.autograd.grad(_loss(network, given), weight, create_graph=True)
        _poison()
        weight.grad = None
        gradient.square().sum().backward()
        return weight.grad

    expected = second(cells.to_dense())
    try:
        found = second(cells)
    except RuntimeError as error:
        assert "second derivatives" in str(error) or "inplace operation" in str(error)
    else:
        torch.testing.assert_close(found, expected)


@PATHS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["cells", "encoder.att_transformers.1.fc.weight", "encoder.initial_bn.weight"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", [torch.Tensor.to_dense, torch.Tensor.to_sparse_csr], ids=["dense", "csr"])
def test_not_finite_is_an_error(narrow, bad, place, training, make):
    """NaN or infinite cells or weights are one clear error on every path, and leave nothing behind."""
    network, cells = _network(narrow).train(training), _cells().to_dense()
    broken, broken_cells = copy.deepcopy(network), cells.clone()
    (broken_cells if place == "cells" else dict(broken.named_parameters())[place].data).view(-1)[-1] = bad
    expected = copy.deepcopy(network)(make(cells)).logits
    with pytest.raises(FloatingPointError, match="diverged"):
        broken(make(broken_cells))
    assert torch.equal(network(make(cells)).logits, expected)


@PATHS
@pytest.mark.parametrize("make", [torch.Tensor.to_dense, torch.Tensor.to_sparse_csr], ids=["dense", "csr"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_bf16_autocast(narrow, make, training):
    """Under bf16 autocast a step runs on every path, and the first masks look at nearly the same genes."""
    network, cells = _network(narrow).float().train(training), make(_cells().float().to_dense())
    exact = copy.deepcopy(network).steps(cells)[0].mask.to_dense()
    with torch.autocast("cpu", torch.bfloat16):
        loss = _loss(network, cells)
        mask = copy.deepcopy(network).steps(cells)[0].mask.to_dense()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    assert (mask.float() - exact).abs().sum(1).mean() < 0.2  # of 2 between masks that share no gene
