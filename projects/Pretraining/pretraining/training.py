"""The pretraining loop. It can be stopped by time or signal; on a CPU a resumed run equals one that never stopped."""

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from pretraining.encoder import PIXEL_MEAN, PIXEL_STD, CropEncoder
from pretraining.images import Batch, ImageStream
from soma_det.utils.files import atomic_path, write_bytes
from soma_det.utils.vit_weights import KEYS

logger = logging.getLogger(__name__)

CHECKPOINT, WEIGHTS = "checkpoint.pth", "vit.safetensors"
BETAS = (0.9, 0.95)
LOG_PERIOD = 10.0  # seconds


def learning_rate(iteration: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over ``warmup`` iterations to ``peak``, then half a cosine to 0 at ``steps``."""
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (iteration - warmup) / max(1, steps - warmup)))


def build_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without weight decay of vectors and tokens."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    still = [p for name, p in trained if p.ndim < 2 or name.endswith("_token")]
    ids = set(map(id, still))
    groups = [
        {"params": [p for _, p in trained if id(p) not in ids], "weight_decay": weight_decay},
        {"params": still, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS)


class Pretraining:
    """Trains a model on a stream of images, with checkpoints in ``output``.

    Args:
        settings: all settings that the weights depend on; a checkpoint with other settings is refused.
        precision: "bfloat16" (matrix products in bfloat16, on a CPU too) or "float32".
        save_period: seconds between checkpoints.
        workers: processes that cut crops, see ImageStream.batches.
    """

    def __init__(
        self,
        model: CropEncoder,
        stream: ImageStream,
        output: str | Path,
        settings: dict,
        *,
        steps: int,
        warmup: int,
        peak_lr: float = 1.5e-3,
        weight_decay: float = 0.05,
        device: str = "cpu",
        precision: str = "bfloat16",
        save_period: float = 120.0,
        workers: int = 0,
    ):
        if steps < 1 or warmup < 0:
            raise ValueError(f"{steps} iterations with {warmup} of warm-up: at least 1 and 0 are needed.")
        self.model, self.stream, self.output, self.settings = model.to(device), stream, Path(output), settings
        self.steps, self.warmup, self.peak_lr = steps, warmup, peak_lr
        self.device, self.precision = torch.device(device), precision
        if self.device.type == "cpu":
            _avoid_fused_attention(self.model)
        self.save_period, self.workers = save_period, workers
        self.optimizer = build_optimizer(self.model, weight_decay)
        self.iteration, self.seconds, self.losses, self.parts = 0, 0.0, [], {}
        self.output.mkdir(parents=True, exist_ok=True)

    def resume(self) -> bool:
        """Continue from the checkpoint in the output folder; False if it has none.

        Raises:
            ValueError: the checkpoint has other settings.
        """
        path = self.output / CHECKPOINT
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        changed = [k for k in {*state["settings"], *self.settings} if state["settings"].get(k) != self.settings.get(k)]
        if changed:
            raise ValueError(
                f"{path} was trained with other settings ({', '.join(sorted(changed))}): repeat the same command, or "
                "choose another output folder."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.seconds, self.losses = state["iteration"], state["seconds"], state["losses"]
        logger.info("Going on at iteration %d of %d.", self.iteration, self.steps)
        return True

    def run(self, minutes: float = math.inf) -> bool:
        """Train until ``steps``, for ``minutes``, or until SIGINT. Returns whether all iterations are done.

        In all cases it writes a checkpoint and the ViT's weights.
        """
        if self.iteration < self.steps:
            self.stream.decode()
        start = now = last_save = time.monotonic()
        last_log, waited = -math.inf, 0.0
        before, first = self.seconds, self.iteration
        self.model.train()
        with _interruptible() as stopped:
            for batch in self.stream.batches(
                self.iteration, self.steps, self.workers, pinned=self.device.type == "cuda"
            ):
                waited += time.monotonic() - now
                loss = self._step(batch)
                self.losses.append(loss)
                self.iteration += 1
                now = time.monotonic()
                self.seconds = before + now - start
                if now - last_log > LOG_PERIOD or self.iteration == self.steps:
                    self._log(now - start, waited, self.iteration - first, 60 * minutes)
                    last_log = now
                if now - last_save > self.save_period:
                    self.save()
                    now = last_save = time.monotonic()
                if stopped() or now - start > 60 * minutes:
                    break
        if self.iteration < self.steps:
            logger.info("Stopped at iteration %d of %d; the same command goes on.", self.iteration, self.steps)
        self.save()
        export_weights(self.model.vit, self.output / WEIGHTS)
        return self.iteration == self.steps

    def _step(self, batch: Batch) -> float:
        """One optimizer step; returns the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.iteration, self.steps, self.warmup, self.peak_lr)
        images, places = (tensor.to(self.device, non_blocking=True) for tensor in batch[:2])
        targets = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.targets.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = self.model(images.permute(0, 3, 1, 2).float(), places, **targets)
        values = torch.stack(list(losses.values()))
        self.parts = dict(zip(losses, values.tolist()))
        loss = sum(self.parts.values())
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss} at iteration {self.iteration}: lower the learning rate, in another output folder."
            )
        self.optimizer.zero_grad(set_to_none=True)
        values.sum().backward()
        self.optimizer.step()
        self.model.after_step((self.iteration + 1) / self.steps)
        return loss

    def _log(self, seconds: float, waited: float, done: int, limit: float) -> None:
        rate = done / seconds
        left = min((self.steps - self.iteration) / rate, limit - seconds)
        recent = self.losses[-50:]
        logger.info(
            "iteration %d of %d, loss %.4f (%s), lr %.2e, %.1f images per second, waited for data %.0f %%, ETA %s",
            self.iteration,
            self.steps,
            sum(recent) / len(recent),
            ", ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in self.parts.items()),
            self.optimizer.param_groups[0]["lr"],
            rate * self.stream.batch_size,
            100 * waited / seconds,
            timedelta(seconds=max(0, round(left))),
        )

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "losses": self.losses,
            "settings": self.settings,
        }
        with atomic_path(self.output / CHECKPOINT) as temporary:
            torch.save(state, temporary)


def _avoid_fused_attention(model: nn.Module) -> None:
    """With few tokens, a CPU's fused attention needs half as long in the backward pass as all else (timm 1.0)."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def export_weights(vit: nn.Module, path: str | Path) -> None:
    """Write a timm ViT's weights in float16 under timm's names, as MODEL.VIT.WEIGHTS wants them.

    Noted beside them are the image size that the position embeddings are for, since timm takes those of a file as
    square, and how images were normalized.
    """
    weights = {name: tensor.detach().half().cpu().contiguous() for name, tensor in vit.state_dict().items()}
    noted = zip(KEYS, (vit.patch_embed.img_size, PIXEL_MEAN, PIXEL_STD), strict=True)
    metadata = {key: json.dumps(list(value)) for key, value in noted}
    write_bytes(path, save(weights, metadata={"format": "pt", **metadata}))


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT came. A second SIGINT interrupts at once."""
    signals: list[int] = []

    def note(number, _frame):
        logger.info("Stopping after this iteration. A second signal stops at once.")
        signals.append(number)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(signals)
    finally:
        signal.signal(signal.SIGINT, previous)
