"""Run by torchrun in tests/test_distributed.py: python ddp_worker.py DATA_FOLDER OUTPUT_FOLDER"""

import copy
import sys
from pathlib import Path

import torch
from detectron2.modeling import build_backbone
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel
from training import tiny_cfg

import soma_det  # noqa: F401
from soma_det.engine import Trainer
from soma_det.engine.distributed import init_launched_process_group
from soma_det.modeling.freezing import fingerprint
from soma_det.uda.trainer import UdaTrainer

ADAPTATION = {
    "UDA__TARGET": ["tiny_night_sunny_train"],
    "UDA__TEACHER": "ema",
    "UDA__LABELS__THRESHOLD": 0.0,
    "UDA__ALIGN__LEVELS": ["p2", "p3"],
    "UDA__ALIGN__INSTANCE": True,
    "SOLVER__WEIGHT_AVERAGE__METHOD": "ema",
}


def loss(features):
    """A mean over images, so that the mean over processes is that of the joint batch."""
    return sum(feature[:, :3].square().mean() for feature in features.values())


def check_gradients(cfg):
    """The adapted backbone's gradients equal those of one process on the joint batch."""
    torch.manual_seed(0)
    replica = build_backbone(cfg).double()
    single = copy.deepcopy(replica)
    batch = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    loss(single(batch)).backward()
    ddp = DistributedDataParallel(replica)  # has to live until backward
    loss(ddp(batch.chunk(2)[comm.get_rank()])).backward()
    compared = 0
    for (name, expected), parameter in zip(single.named_parameters(), replica.parameters()):
        if expected.requires_grad:
            assert torch.allclose(parameter.grad, expected.grad, rtol=1e-6, atol=1e-12), name
            assert expected.grad.abs().max() > 1e-9, name
            compared += 1
    assert compared > 20


def check_replicas(cfg, trainer_class=Trainer):
    """After training on different images, with layers thawing on the way, all replicas are bit-equal."""
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert isinstance(trainer.model, DistributedDataParallel)
    prints = comm.all_gather(fingerprint(trainer.model.module))
    assert len(prints) == 2 and len(set(prints)) == 1, prints


def main(data, output):
    torch.set_num_threads(1)
    init_launched_process_group("cpu")
    thaw = dict(SOLVER__FREEZING__MODULES=[r"proposal_generator\.rpn_head"], SOLVER__FREEZING__UNTIL=2)
    cfg = tiny_cfg(data, output, SOLVER__MAX_ITER=4, **thaw)
    check_gradients(cfg)
    check_replicas(cfg)
    comm.synchronize()
    adapted = str(Path(output, "adapted"))
    check_replicas(
        tiny_cfg(data, adapted, SOLVER__MAX_ITER=4, MODEL__WEIGHTS=f"{output}/model_final.pth", **ADAPTATION),
        UdaTrainer,
    )
    comm.synchronize()
    Path(output, f"passed_{comm.get_rank()}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
