"""How far this network's numbers are from pytorch-tabnet's, in float64.

    python benchmarks/exactness.py [--genes 200 2000 20000] [--cells 301] [--seed 0] [--all-genes]

For each configuration both networks get the same weights and one batch of simulated cells (10 % nonzeros; one cell
without counts, one gene never seen, one the same in all cells). pytorch-tabnet's genes x genes identity is left out,
which changes no number and saves 3 GB at 20,000 genes. A row prints the largest difference of each kind of number as
"relative (absolute)": relative to the largest number of the same tensor, gradients of both losses tensor by tensor.
The last column is what rounding alone does to pytorch-tabnet: its largest relative difference from itself when its
genes stand in another order, which sums the same numbers in another order. Where a network amplifies roundings, as an
untrained one at 20,000 genes does, no implementation can be nearer than that.
"""

import argparse
import copy
from collections.abc import Iterator

import torch
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sims_kit.model import TabNet

N_CLASSES = 20
KINDS = ["logits", "entropy", "gradients", "statistics", "masks", "aggregated"]
CONFIGURATIONS = {  # what the attention has seen, and settings
    "untrained": ("untrained", {}),
    "trained": ("trained", {}),
    "trained, narrow": ("narrow", {}),
    "uniform masks": ("uniform", {}),
    "broad masks": ("broad", {}),
    "broad, then narrow": ("broad, then narrow", {}),
    "small ghost batches": ("trained", dict(virtual_batch_size=32)),
    "n_d 64, n_a 64, 5 steps": ("trained", dict(n_d=64, n_a=64, n_steps=5)),
    "n_d 4, n_a 24, gamma 1": ("narrow", dict(n_d=4, n_a=24, gamma=1.0)),
    "1 shared, 3 own layers": ("trained", dict(n_shared=1, n_independent=3, gamma=2.0)),
}
LEARNING_RATES = {"trained": 0.02, "narrow": 0.2}  # of three steps of Adam; the second leaves few genes in the masks
ATTENTION_WEIGHTS = {"uniform": [0, 0], "broad": [0.01, 0.01], "broad, then narrow": [0.01, 3]}  # first step, others


class NoMatrix:
    """Stands where pytorch-tabnet keeps its identity: a product with it is the other factor."""

    @classmethod
    def __torch_function__(cls, function, types, factors, options=None):
        """The first factor."""
        if function is not torch.matmul:
            raise TypeError(f"pytorch-tabnet calls {function} on its identity; only products were expected.")
        return factors[0]


def main() -> None:
    """Compare the networks, configuration by configuration, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", default=[200, 2000, 20_000])
    parser.add_argument("--cells", type=int, default=301, help="in a batch; its ghost batches are ragged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all-genes", action="store_true", help="compute no mask on pairs of cell and gene")
    arguments = parser.parse_args()
    if arguments.cells in arguments.genes:
        parser.error("The number of cells must differ from those of genes, which tell a tensor's dimensions apart.")
    torch.set_default_dtype(torch.float64)
    print(f"{arguments.cells} cells, seed {arguments.seed}, float64, torch {torch.__version__}\n")
    print(f"| genes | network | mode | {' | '.join(KINDS)} | genes in another order |\n{'|---' * (4 + len(KINDS))}|")
    for n_genes in arguments.genes:
        for name, (attention, settings) in CONFIGURATIONS.items():
            torch.manual_seed(arguments.seed)
            cells = make_cells(arguments.cells, n_genes)
            oracle = make_oracle(cells, attention, settings)
            ours = TabNet(n_genes, N_CLASSES, **settings)
            ours.load_state_dict(oracle.state_dict(), strict=False)
            if arguments.all_genes:
                ours.narrow = -1
            for mode in ("train", "eval"):
                row = compare(ours.train(mode == "train"), oracle.train(mode == "train"), cells)
                print(f"| {n_genes:,} | {name} | {mode} | {' | '.join(row)} |", flush=True)


def make_cells(n_cells: int, n_genes: int) -> Tensor:
    """Log-normalised expression, shape (n_cells, n_genes)."""
    cells = torch.poisson(0.2 * torch.rand(n_cells, n_genes)).log1p()
    cells[:, 0], cells[:, 1], cells[0] = 0, 2.5, 0
    return cells


def make_oracle(cells: Tensor, attention: str, settings: dict) -> nn.Module:
    """pytorch-tabnet's network, after a few training steps or with the attention's scale set."""
    n_genes = cells.shape[1]
    oracle = TabNetNoEmbeddings(n_genes, N_CLASSES, group_attention_matrix=torch.empty(n_genes, 0), **settings)
    oracle.encoder.group_attention_matrix = NoMatrix()
    for step, transformer in enumerate(oracle.encoder.att_transformers):
        if attention in ATTENTION_WEIGHTS:
            nn.init.constant_(transformer.bn.bn.weight, ATTENTION_WEIGHTS[attention][min(step, 1)])
    if attention in LEARNING_RATES:
        optimizer = torch.optim.Adam(oracle.parameters(), lr=LEARNING_RATES[attention])
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(oracle(cells)[0], torch.arange(len(cells)) % N_CLASSES).backward()
            optimizer.step()
    return oracle


def compare(ours: nn.Module, oracle: nn.Module, cells: Tensor) -> list[str]:
    """The cells of a row: the largest differences of each kind, and of the oracle from itself."""
    expected = numbers_of_oracle(copy.deepcopy(oracle), cells)
    found = numbers_of_ours(copy.deepcopy(ours), cells.to_sparse_csr())
    order = torch.randperm(cells.shape[1])
    shuffled = copy.deepcopy(oracle)
    shuffled.load_state_dict({name: in_order(tensor, order) for name, tensor in oracle.state_dict().items()})
    again = numbers_of_oracle(shuffled, cells[:, order])
    back = order.argsort()
    again = {name: in_order(tensor, back) for name, tensor in again.items()}
    row = []
    for kind in KINDS:
        pairs = [(found[name], tensor) for name, tensor in expected.items() if name.startswith(kind)]
        row.append(f"{max(relative(*pair) for pair in pairs):.0e} ({max(absolute(*pair) for pair in pairs):.0e})")
    return [*row, f"{max(relative(again[name], tensor) for name, tensor in expected.items()):.0e}"]


def numbers_of_oracle(oracle: nn.Module, cells: Tensor) -> dict[str, Tensor]:
    """Everything pytorch-tabnet computes of a batch, by kind and name."""
    logits, negative_entropy = oracle(cells)
    numbers = dict(numbers_of(oracle, logits, -negative_entropy))
    with torch.no_grad():
        aggregated, masks = oracle.forward_masks(cells)
    return numbers | {"aggregated": aggregated} | {f"masks {step}": mask for step, mask in masks.items()}


def numbers_of_ours(ours: TabNet, cells: Tensor) -> dict[str, Tensor]:
    """The same of this network."""
    numbers = dict(numbers_of(ours, *ours(cells)))
    with torch.no_grad():
        masks = {f"masks {number}": step.mask.to_dense() for number, step in enumerate(ours.steps(cells))}
    return numbers | {"aggregated": ours.explain(cells)[0].to_dense()} | masks


def numbers_of(network: nn.Module, logits: Tensor, entropy: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Logits, entropy, the gradients of both losses, and the running statistics after the batch."""
    yield "logits", logits.detach()
    yield "entropy", entropy.detach()
    used = [
        item for item in network.named_parameters() if not item[0].startswith("initial_bn.")
    ]  # the encoder has its own
    names, parameters = zip(*used, strict=True)
    labels = torch.arange(len(logits)) % N_CLASSES
    for loss in (cross_entropy(logits, labels), entropy):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for name, gradient in zip(names, gradients, strict=True):
            yield f"gradients {loss is entropy} {name}", gradient
    for name, buffer in network.named_buffers():
        if name.startswith("encoder.") and buffer.is_floating_point():  # one outside of it is never used
            yield f"statistics {name}", buffer.clone()


def in_order(tensor: Tensor, order: Tensor) -> Tensor:
    """The tensor with its genes, on whichever dimension, in another order."""
    for dimension, size in enumerate(tensor.shape):
        if size == len(order):
            tensor = tensor.index_select(dimension, order)
    return tensor


def absolute(found: Tensor, expected: Tensor) -> float:
    """The largest difference."""
    return (found - expected).abs().max().item()


def relative(found: Tensor, expected: Tensor) -> float:
    """The same, beside the largest number of the tensor; of a tensor that is nothing but rounding, zero."""
    largest = expected.abs().max().item()
    return absolute(found, expected) / largest if largest > 1e-12 else 0.0


if __name__ == "__main__":
    main()
