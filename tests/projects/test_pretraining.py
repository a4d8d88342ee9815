"""Pretraining in miniature: what is drawn, that it learns, resumes and can be loaded."""

import math
import multiprocessing
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pretrain_vit
import pytest
import torch
from safetensors.torch import load_file

from pretraining.distillation import SelfDistillation
from pretraining.encoder import normalize
from pretraining.images import MOMENTS, ImageStream, find_images
from pretraining.masked import MaskedAutoencoder
from pretraining.moving import MovingObjects
from pretraining.render import render_all, render_moments
from pretraining.training import CHECKPOINT, WEIGHTS, Pretraining, build_optimizer, learning_rate
from soma_det.modeling.backbone.timm_vit import create_timm_vit
from synthdrive import make_image
from synthdrive.scene import render_departures, render_scene

SHIPPED = Path(__file__).parents[2] / "projects" / "Pretraining" / "weights" / "vit_tiny_patch16_synthdrive.safetensors"
SIZE = (32, 64)  # of the images' grid, pixels; crops are 32 x 32


@pytest.fixture(autouse=True)
def one_thread():
    """Threads wait for each other far longer than such small products take, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images(tmp_path) -> Path:
    """Eight images 40 x 80 in two folders: stripes of different directions and colors."""
    rows, columns = np.mgrid[:40, :80]
    for i in range(8):
        stripes = np.sin(columns * math.cos(i) * 0.6 + rows * math.sin(i) * 0.6)
        image = (128 + 100 * stripes[..., None] * np.array([1.0, 0.2 * i - 0.8, 0.5])).clip(0, 255).astype(np.uint8)
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    return tmp_path / "images"


@pytest.fixture
def moments(images) -> Path:
    """The eight images with a white square that leaves, then a gray bar, then nothing; seen darker in "weather"."""
    for path in find_images(images):
        nothing = cv2.imread(str(path)) // 4
        bar, both = nothing.copy(), nothing.copy()
        bar[4:36, 60:70] = both[4:36, 60:70] = 130
        both[10:30, 20:40] = 255
        for folder, image in zip(("weather", *MOMENTS), (both // 2, both, bar, nothing)):
            target = images.parent / "place" / folder / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), image)
    return images.parent / "place"


def plain_stream(images: Path, companions=(), **options) -> ImageStream:
    """Crops of 32 x 32 whose targets are their companions, and noise."""

    def prepare(_crop, others, rng):
        return {"noise": rng.random(4, dtype=np.float32), "others": np.array(others)}

    return ImageStream(images, prepare, companions, crop_size=(32, 32), **options)


def same(one, two) -> bool:
    """Whether two batches are equal."""
    arrays = (one.targets | {"p": one.images, "q": one.places}), (two.targets | {"p": two.images, "q": two.places})
    return all(torch.equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


def tiny_run(images: Path, output: Path, steps: int = 8, seed: int = 0, target: str = "hog", **options) -> Pretraining:
    torch.manual_seed(seed)
    vit = create_timm_vit("test_vit", "", 16, SIZE)
    moving, small = target == "moving", {"mask_ratio": 0.5, "width": 16, "depth": 1}
    if moving:
        model = MovingObjects(vit)
    else:
        model = SelfDistillation(vit, **small) if target == "distill" else MaskedAutoencoder(vit, target, **small)
    root, moments = (images / "weather", [images / m for m in MOMENTS]) if moving else (images, [])
    stream = ImageStream(root, model.prepare, moments, batch=4, crop_size=(32, 32), scales=(0.8, 1.2), seed=seed)
    options = {"steps": steps, "warmup": 2, "precision": "float32", **options}
    return Pretraining(model, stream, output, {"seed": seed, "steps": steps}, **options)


def weights(run: Pretraining) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def differing(one: dict, two: dict) -> list[str]:
    return [name for name in one if not torch.equal(one[name], two[name])]


# Images


def test_images_are_found_in_all_folders_below(images):
    (images / "notes.txt").write_text("no image")
    assert [path.name for path in find_images(images)] == [f"{i}.png" for i in (0, 2, 4, 6, 1, 3, 5, 7)]


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images"):
        find_images(tmp_path)


def test_a_batch_depends_on_seed_and_position_alone(images):
    one, two = (plain_stream(images, batch=4, seed=3) for _ in range(2))
    one[0], one[7]
    assert same(one[2], two[2])
    assert not torch.equal(one[2].images, one[3].images)
    other = plain_stream(images, batch=4, seed=4)
    assert not torch.equal(one[2].targets["noise"], other[2].targets["noise"])


def test_batches_made_ahead_are_the_same_in_the_same_order(images):
    stream = plain_stream(images, batch=4)
    ahead = list(stream.batches(1, 6, workers=2))
    assert len(ahead) == 5
    for i, batch in enumerate(ahead, 1):
        assert same(batch, stream[i])


def test_every_epoch_shows_every_image_once(images):
    stream = plain_stream(images, batch=6)
    shown = [index for i in range(4) for index in stream._indices(i)]
    epochs = [shown[:8], shown[8:16], shown[16:24]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 3
    assert epochs[0] != epochs[1]


def test_memory_changes_no_crop(images):
    streams = [plain_stream(images, batch=4, memory=memory) for memory in (0, 20_000, 1 << 20)]
    for stream in streams:
        stream.decode()
    first, second, third = (stream[5] for stream in streams)
    assert same(first, second) and same(first, third)
    assert [len(stream._kept) for stream in streams] == [0, 2, 8]  # of 40 x 80 x 3 bytes each


def test_companions_are_cut_as_their_images(images, tmp_path):
    for path in find_images(images):
        companion = tmp_path / "negative" / path.relative_to(images)
        companion.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(companion), 255 - cv2.imread(str(path)))
    batch = plain_stream(images, [tmp_path / "negative"], batch=8)[0]
    negative = 255 - batch.images.int()
    assert (negative - batch.targets["others"]).abs().max() <= 1  # rounding when resized


def test_the_place_of_a_crop_is_that_in_the_image_as_it_is_shown(tmp_path):
    """In an image that grows brighter to the right, the right is bright, unless it is shown flipped."""
    ramp = np.repeat(np.arange(240, dtype=np.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    cv2.imwrite(str(tmp_path / "ramp.png"), ramp)
    batch = plain_stream(tmp_path, batch=32, scales=(1.0, 1.0))[0]
    flipped = batch.images[:, 0, 0, 0] > batch.images[:, 0, -1, 0]
    assert 0 < flipped.sum() < 32
    bright = batch.images.float().mean(dim=(1, 2, 3)) / 239
    shown = torch.where(flipped, 1.0 - bright, bright)
    # A crop of 32 of 240 columns has its middle at (place * 209 + 15.5) / 239, up to the rounding to a column.
    assert (shown - (batch.places[:, 1] * 209 + 15.5) / 239).abs().max() < 1.1 / 239


def test_companions_of_another_size_are_an_error(images, tmp_path):
    for path in find_images(images):
        companion = tmp_path / "larger" / path.relative_to(images)
        companion.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(companion), np.zeros((41, 80, 3), np.uint8))
    with pytest.raises(ValueError, match="different sizes"):
        plain_stream(images, [tmp_path / "larger"])[0]


def test_a_missing_companion_is_an_error(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="no companion"):
        plain_stream(images, [tmp_path / "nowhere"])


def test_road_users_leave_and_nothing_else_changes():
    """Outside the boxes of road users, and of their shadows below, the street is the same to the bit."""
    scene, fewer, none = render_departures([3, 1], 90, 160, sun=False)
    assert np.array_equal(scene.image, render_scene([3, 1], 90, 160, sun=False).image)
    first = (scene.image != none).any(axis=2)
    later = (fewer != none).any(axis=2)
    assert first.sum() > later.sum() > 0
    for x0, y0, x1, y1 in scene.boxes.astype(int):
        assert first[y0:y1, x0:x1].mean() > 0.3
    above = int(scene.boxes[:, 1].min()) - 20
    assert not first[: max(0, above)].any()


def test_what_is_seen_has_weather_and_the_moments_have_none():
    night, gray, fewer, none = render_moments(0, 1, 90, 160)
    assert night.mean() < 0.7 * gray.mean()
    assert abs(gray.mean() - none.mean()) < 0.2 * gray.mean()
    assert night.shape == gray.shape == fewer.shape == none.shape == (90, 160, 3)


@pytest.mark.slow
def test_rendering_again_keeps_what_is_there(tmp_path):
    assert list(render_all(tmp_path, 2, workers=1)) == [1, 2]
    files = {path: path.stat().st_mtime_ns for path in find_images(tmp_path)}
    assert len(files) == 2 * (1 + len(MOMENTS))
    list(render_all(tmp_path, 2, workers=1))
    assert {path: path.stat().st_mtime_ns for path in find_images(tmp_path)} == files


# The loop


def test_the_learning_rate_rises_and_falls_as_worked_out_by_hand():
    rates = [learning_rate(i, steps=14, warmup=4, peak=2.0) for i in (0, 3, 4, 9, 13)]
    assert rates[:4] == pytest.approx([0.5, 2.0, 2.0, 1.0])
    assert rates[4] == pytest.approx(1.0 + math.cos(math.pi * 0.9))


def test_vectors_and_tokens_do_not_decay_and_positions_do_not_train():
    model = MaskedAutoencoder(create_timm_vit("test_vit", "", 16, SIZE), "hog", width=16, depth=1)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, still = ([names[id(p)] for p in group["params"]] for group in build_optimizer(model, 0.1).param_groups)
    assert all(name.endswith("weight") for name in decayed)
    assert {"mask_token", "vit.cls_token", "vit.norm.weight"} <= set(still)
    assert set(names.values()) - {*decayed, *still} == {"vit.pos_embed"}


def test_each_loss_of_moving_objects_reaches_the_vit(moments, tmp_path):
    run = tiny_run(moments, tmp_path / "out", target="moving")
    batch = run.stream[0]
    images = batch.images.permute(0, 3, 1, 2).float()
    for name, loss in run.model(images, batch.places, **batch.targets).items():
        (gradient,) = torch.autograd.grad(loss, run.model.vit.blocks[0].attn.qkv.weight, retain_graph=True)
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("target, steps", [("pixels", 40), ("hog", 40), ("distill", 120), ("moving", 40)])
def test_the_loss_falls_on_a_few_images(images, moments, tmp_path, target, steps):
    root = moments if target == "moving" else images
    run = tiny_run(root, tmp_path / "out", steps=steps, target=target, peak_lr=5e-3)
    assert run.run()
    assert np.mean(run.losses[-10:]) < 0.8 * np.mean(run.losses[:5])


def test_the_seed_decides_on_the_weights(images, tmp_path):
    runs = [tiny_run(images, tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2))]
    for run in runs:
        run.run()
    assert not differing(weights(runs[0]), weights(runs[1]))
    assert differing(weights(runs[0]), weights(runs[2]))


@pytest.mark.parametrize("target", ["hog", "distill"])
def test_a_resumed_run_ends_as_if_never_stopped(images, tmp_path, target):
    whole = tiny_run(images, tmp_path / "whole", target=target)
    assert whole.run()
    first = tiny_run(images, tmp_path / "parts", target=target)
    assert not first.run(minutes=0.0)  # one iteration
    second = tiny_run(images, tmp_path / "parts", target=target)
    assert second.resume() and second.iteration == 1
    assert second.run()
    assert not differing(weights(whole), weights(second))
    assert second.losses == whole.losses


def test_an_interrupted_run_saves_before_it_ends(images, tmp_path, monkeypatch):
    run = tiny_run(images, tmp_path / "out")
    step = run._step
    monkeypatch.setattr(
        run, "_step", lambda batch: (run.iteration == 2 and signal.raise_signal(signal.SIGINT), step(batch))[1]
    )
    handler = signal.getsignal(signal.SIGINT)
    assert not run.run()
    assert signal.getsignal(signal.SIGINT) is handler
    again = tiny_run(images, tmp_path / "out")
    assert again.resume() and again.iteration == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [CHECKPOINT, WEIGHTS]


def test_processes_that_cut_crops_outlive_an_interrupt(images, tmp_path, monkeypatch):
    run = tiny_run(images, tmp_path / "out", workers=2)
    step, interrupted = run._step, []

    def interrupting_step(batch):
        if not interrupted:
            interrupted.extend(multiprocessing.active_children())
            for process in interrupted:
                os.kill(process.pid, signal.SIGINT)
        return step(batch)

    monkeypatch.setattr(run, "_step", interrupting_step)
    assert run.run() and len(interrupted) == 2


def test_a_checkpoint_of_other_settings_is_refused(images, tmp_path):
    tiny_run(images, tmp_path / "out", steps=3).run()
    with pytest.raises(ValueError, match="steps"):
        tiny_run(images, tmp_path / "out", steps=4).resume()


def test_a_loss_that_is_no_number_stops_the_run(images, tmp_path):
    run = tiny_run(images, tmp_path / "out")
    run.model.mask_token.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="iteration 0"):
        run.run()


# The weights


def test_pretrained_weights_load_into_the_detectors_vit_completely(images, tmp_path):
    run = tiny_run(images, tmp_path / "out", steps=3)
    run.run()
    file = tmp_path / "out" / WEIGHTS
    loaded = create_timm_vit("test_vit", str(file), 16, SIZE).state_dict()
    trained = run.model.vit.state_dict()
    assert loaded.keys() == trained.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, trained[name].half().float()), name
    random = create_timm_vit("test_vit", "", 16, SIZE)
    image = torch.randn(1, 3, *SIZE)
    assert not torch.allclose(random(image), create_timm_vit("test_vit", str(file), 16, SIZE)(image))


def test_position_embeddings_of_an_oblong_image_are_resampled_to_another_size(images, tmp_path):
    run = tiny_run(images, tmp_path / "out", steps=1)
    with torch.no_grad():  # brighter to the right and nothing else
        run.model.vit.pos_embed[:, -8:] = torch.arange(4.0).repeat(2)[None, :, None]
    run.run()
    larger = create_timm_vit("test_vit", str(tmp_path / "out" / WEIGHTS), 16, (64, 128))
    rows = larger.pos_embed[0, -32:, 0].view(4, 8)
    assert (rows.diff(dim=1) > -0.1).all() and (rows[:, -1] - rows[:, 0] > 2.5).all()
    torch.testing.assert_close(rows, rows[:1].expand(4, -1))


def test_a_damaged_file_of_weights_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "vit.safetensors"
    file.write_bytes(b"no weights")
    with pytest.raises(RuntimeError, match="vit.safetensors does not hold the weights of test_vit"):
        create_timm_vit("test_vit", str(file), 16, SIZE)


@pytest.mark.parametrize("size", [(288, 480), (224, 224)])
def test_the_shipped_weights_are_small_and_load_completely_at_every_size(size):
    assert SHIPPED.stat().st_size < 12_000_000
    stored = load_file(SHIPPED)
    loaded = create_timm_vit("vit_tiny_patch16_224", str(SHIPPED), 16, size)
    assert loaded.patch_embed.grid_size == (size[0] // 16, size[1] // 16)
    for name, tensor in loaded.state_dict().items():
        if name != "pos_embed" or size == (288, 480):
            assert torch.equal(tensor, stored[name].float()), name


def test_the_shipped_weights_know_road_users_in_the_dark_better_than_random_ones():
    """A linear readout of which patches show a road user, from clear days, ranks those at night."""
    scenes = {domain: [patches_of(domain, index) for index in range(8)] for domain in ("daytime_clear", "night_rainy")}
    precision = {}
    for weights in (str(SHIPPED), ""):
        torch.manual_seed(0)
        vit = create_timm_vit("vit_tiny_patch16_224", weights, 16, (288, 480)).eval()
        (x, y), (other_x, other_y) = (
            (torch.cat([features(vit, image) for image, _ in s]), torch.cat([marked for _, marked in s]))
            for s in scenes.values()
        )
        readout = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ (y.float() - y.float().mean()))
        precision[weights] = average_precision(other_x @ readout, other_y)
    assert precision[str(SHIPPED)] > 0.5 > precision[""] + 0.1


def patches_of(domain: str, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A padded (1, 3, 288, 480), and which of its 540 patches have their center in a box."""
    image, scene = make_image(0, domain, "train", index)
    padded = torch.zeros(1, 3, 288, 480)
    padded[:, :, :270] = torch.from_numpy(image).permute(2, 0, 1)
    y, x = (torch.from_numpy(np.mgrid[:18, :30]).reshape(2, -1, 1) + 0.5) * 16
    left, top, right, bottom = torch.from_numpy(scene.boxes).T
    return padded, ((x > left) & (x < right) & (y > top) & (y < bottom)).any(dim=1)


@torch.no_grad()
def features(vit, image: torch.Tensor) -> torch.Tensor:
    """(540, 193): normalized tokens of the patches, and a one."""
    tokens = torch.nn.functional.layer_norm(vit.forward_features(normalize(image))[0, 1:], (192,))
    return torch.cat([tokens, torch.ones(len(tokens), 1)], dim=1)


def average_precision(scores: torch.Tensor, positive: torch.Tensor) -> float:
    hits = positive[scores.argsort(descending=True)].float()
    return ((hits.cumsum(0) / torch.arange(1, len(hits) + 1)) * hits).sum().item() / hits.sum().item()


def test_the_tool_trains_resumes_and_reports_mistakes(images, tmp_path, capsys):
    command = ["--images", str(images), "--output", str(tmp_path / "out"), "--model", "test_vit", "--steps", "3"]
    command += ["--img-size", "32", "64", "--crop", "32", "32", "--batch", "2", "--device", "cpu", "--objective", "hog"]
    assert pretrain_vit.main(command + ["--minutes", "0"]) == 0
    assert pretrain_vit.main(command) == 0
    assert "iteration 3 of 3" in capsys.readouterr().out
    assert pretrain_vit.main(command + ["--lr", "1"]) == 1
    assert "other settings (lr)" in capsys.readouterr().err
    nowhere = ["--images", str(tmp_path / "nowhere"), "--output", str(tmp_path / "o")]
    assert pretrain_vit.main([*nowhere, "--objective", "hog"]) == 1
    assert "holds no images" in capsys.readouterr().err
    assert pretrain_vit.main(nowhere) == 1
    assert "--objective hog" in capsys.readouterr().err
    assert pretrain_vit.main(command + ["--device", "abacus"]) == 1
    assert "--device abacus cannot be used" in capsys.readouterr().err
    assert pretrain_vit.main(command + ["--crop", "64", "64"]) == 1
    assert "larger than --img-size" in capsys.readouterr().err
    next(iter(images.rglob("*.png"))).write_bytes(b"no image")
    assert pretrain_vit.main([*command, "--output", str(tmp_path / "broken"), "--batch", "8"]) == 1
    assert "cannot be read as an image" in capsys.readouterr().err
