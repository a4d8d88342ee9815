"""What the cache of decompositions promises: the same layers, found again only for the same weights, whatever happens."""

import logging
import multiprocessing
import os
from pathlib import Path

import pytest
import timm
import torch

from soma_det.adapters import cache as cache_module
from soma_det.adapters import inject_adapter, soma
from soma_det.adapters.cache import DecompositionCache, content_key, default_cache_dir
from soma_det.adapters.soma import inject_soma


def vit(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=0, img_size=64, dynamic_img_size=True)


def adapted(folder, seed=0, **changes):
    model = vit(seed)
    inject_soma(model, **{"rank": 2, "blocks": [1, 2], "cache": folder, **changes})
    return model


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def decompositions(monkeypatch):
    """Counts the decompositions that are computed."""
    count = []
    original = soma._factors
    monkeypatch.setattr(soma, "_factors", lambda *args: count.append(1) or original(*args))
    return count


def assert_equal(model, other):
    for (name, tensor), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("components", ["minor", "major", "random"])
def test_layers_from_the_cache_are_bit_equal_to_those_decomposed(tmp_path, decompositions, components):
    without = adapted(None, components=components)
    first = adapted(tmp_path, components=components)
    computed = len(decompositions)
    second = adapted(tmp_path, components=components)
    assert len(decompositions) == computed > 0
    assert_equal(first, without)
    assert_equal(second, without)


def test_another_weight_rank_layer_or_choice_is_another_decomposition(tmp_path):
    adapted(tmp_path)
    changes = [dict(seed=1), dict(rank=3), dict(blocks=[2]), dict(components="major"), dict(targets=[r"mlp\.fc1"])]
    for number, change in enumerate(changes, start=2):
        adapted(tmp_path, **change)
        assert len(files(tmp_path)) == number, change
    adapted(tmp_path)
    assert len(files(tmp_path)) == len(changes) + 1


def test_the_key_changes_with_a_single_bit_the_type_the_shape_and_the_name():
    weight = torch.zeros(4, 6)
    nudged = weight.clone()
    nudged[3, 5] = -0.0
    variants = [{"w": weight}, {"w": nudged}, {"w": weight.view(6, 4)}, {"w": weight.view(torch.int32)}, {"v": weight}]
    keys = {content_key(variant, {"rank": 2}) for variant in variants} | {content_key({"w": weight}, {"rank": 3})}
    assert len(keys) == 6
    assert content_key({"w": weight.clone()}, {"rank": 2}) in keys


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_reported_and_replaced(tmp_path, caplog, damage):
    whole = adapted(tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    path.write_bytes({"cut": good[: len(good) // 2], "flipped": flipped, "empty": b"", "foreign": b"x" * 100}[damage])
    with caplog.at_level(logging.WARNING, logger="soma_det"):
        assert_equal(adapted(tmp_path), whole)
    assert "decomposing again" in caplog.text
    assert path.read_bytes() == good


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    def full_disk(path, data):
        with open(path, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with caplog.at_level(logging.WARNING, logger="soma_det"):
            adapted(tmp_path)
    assert "No space left on device" in caplog.text
    assert files(tmp_path) == []


def _adapt_at_once(folder, barrier):
    torch.set_num_threads(1)
    barrier.wait()
    adapted(folder)


def test_processes_that_decompose_at_once_leave_one_good_file(tmp_path, caplog):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_adapt_at_once, args=(tmp_path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(files(tmp_path)) == 1
    assert DecompositionCache(tmp_path, {}).load() is None  # of another key
    with caplog.at_level(logging.WARNING, logger="soma_det"):
        adapted(tmp_path)
    assert not caplog.records


def test_only_the_first_process_of_a_training_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(cache_module.dist, "get_rank", lambda: 1)
    adapted(tmp_path)
    assert files(tmp_path) == []
    monkeypatch.setattr(cache_module.dist, "get_rank", lambda: 0)
    adapted(tmp_path)
    assert len(files(tmp_path)) == 1


def test_the_adapter_uses_the_folder_of_the_environment_and_none_unless_told(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMA_DET_CACHE", str(tmp_path / "cache"))
    inject_adapter(vit(), "soma", [1], rank=2)
    assert not (tmp_path / "cache").exists()
    inject_adapter(vit(), "soma", [1], rank=2, cache=True)
    assert len(files(tmp_path / "cache")) == 1
    monkeypatch.delenv("SOMA_DET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "soma_det" / "decompositions"


def test_nothing_is_read_or_written_where_a_checkpoint_brings_the_weights(tmp_path):
    model = adapted(tmp_path, decompose=False)
    assert files(tmp_path) == []
    assert not model.blocks[1].attn.qkv.a.any()


def test_adapting_leaves_the_number_of_threads_even_where_it_fails(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    adapted(tmp_path)
    assert torch.get_num_threads() == threads

    def fail(*args):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(soma, "_factors", fail)
    with pytest.raises(torch.linalg.LinAlgError):
        adapted(None)
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_stops_nothing(tmp_path, caplog):
    tmp_path.chmod(0o500)
    with caplog.at_level(logging.WARNING, logger="soma_det"):
        adapted(tmp_path / "cache")
    assert "set SOMA_DET_CACHE" in caplog.text
