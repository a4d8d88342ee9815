"""Started twice by torchrun: trains every adapter for two steps and prints the name of each that did as it should."""

import torch
import torch.distributed as dist
from adapter_cases import adapt, cases, plain_vit
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import soma_det  # noqa: F401  (first: makes Detectron2 importable)
from soma_det.adapters import pop_auxiliary_losses


class Classifier(nn.Module):
    """The ViT's last feature map and a head, which trains also where the ViT does not."""

    def __init__(self, vit):
        super().__init__()
        self.vit, self.head = vit, nn.Linear(vit.embed_dim, 3)

    def forward(self, x):
        last = len(self.vit.blocks) - 1
        (feature,) = self.vit.forward_intermediates(x, indices=[last], output_fmt="NLC", intermediates_only=True)
        return self.head(feature), pop_auxiliary_losses(self.vit)


def check(case: str) -> None:
    """Two steps; the second fails in DDP if a parameter got no gradient in the first."""
    torch.manual_seed(dist.get_rank())  # the ranks start apart, and DDP brings them together
    model = Classifier(plain_vit()).train()
    promised = {f"vit.{name}" for name in adapt(model.vit, case)} | {"head.weight", "head.bias"}
    model = DistributedDataParallel(model)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            y, losses = model(torch.randn(2, 3, 64, 64))
            loss = y.float().square().mean() + sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters() if p.requires_grad)
        optimizer.step()
    state = model.module.state_dict()
    moved = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    assert moved == promised, (case, moved ^ promised)
    mine = torch.cat([tensor.flatten() for tensor in state.values()])
    main = mine.clone()
    dist.broadcast(main, 0)
    assert torch.equal(mine, main), case


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in cases():
        check(case)
        if dist.get_rank() == 0:
            print(case, flush=True)
    dist.destroy_process_group()
