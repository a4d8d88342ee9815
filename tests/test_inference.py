"""Evaluation with merged adapters, in batches, in lower precision and compiled changes no result and is undone."""

import copy
import shutil

import pytest
import timm
import torch
from torch import nn
from training import options, tiny_cfg, write_data

from soma_det.adapters import ADAPTERS, adapt, find_adapter_layers
from soma_det.config import setup_cfg
from soma_det.data.build import build_test_loader, equal_size_batches
from soma_det.engine import Trainer
from soma_det.engine.inference import merged_for_inference, prepared_for_inference
from soma_det.modeling.backbone.timm_vit import TimmViT

MERGEABLE = sorted(name for name, config in ADAPTERS.items() if not config.why_not_mergeable)
assert {"soma", "lora", "full"} <= set(MERGEABLE)


def vit(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=0, img_size=64, dynamic_img_size=True)


def adapted(name):
    if name in ("peft_lora", "dora", "pissa", "olora", "mica"):
        pytest.importorskip("peft")
    model = vit()
    adapt(model, ADAPTERS[name](), [1, 2])
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    return TimmViT(model, [-1]).train()


def features(model, x):
    return next(iter(model(x).values()))


def snapshot(model):
    """Everything that has to come back: objects, values, gradients and flags."""
    return {
        name: (id(p), p.data_ptr(), p.detach().clone(), p.requires_grad, p.grad)
        for name, p in [*model.named_parameters(), *model.named_buffers()]
    }, {name: (id(module), module.training) for name, module in model.named_modules()}


def assert_restored(model, before):
    tensors, modules = snapshot(model)
    assert tensors.keys() == before[0].keys() and modules == before[1]
    for name, (identity, pointer, value, requires_grad, grad) in before[0].items():
        assert tensors[name][:2] == (identity, pointer), name
        assert torch.equal(tensors[name][2], value) and tensors[name][3] == requires_grad, name
        assert tensors[name][4] is grad, name


@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_for_inference_computes_the_same_and_restores_the_training_state_exactly(name):
    model = adapted(name)
    x = torch.randn(2, 3, 64, 64)
    features(model, x).square().mean().backward() if name != "frozen" else None
    model.model.blocks[0].eval()  # a mixed state, as of frozen layers, is one to restore too
    before = snapshot(model)
    with torch.no_grad():
        trained = features(copy.deepcopy(model).eval(), x)
        with merged_for_inference(model) as merged:
            plain = vit()
            assert [type(m) for m in merged.model.modules()] == [type(m) for m in plain.modules()]
            assert merged.model.state_dict().keys() == plain.state_dict().keys()
            output = features(merged.eval(), x)
    assert (output - trained).norm() / trained.norm() < 1e-5
    assert_restored(model, before)


def test_soma_merged_gives_bit_equal_outputs_in_full_precision():
    model = adapted("soma").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), merged_for_inference(model):
        output = features(model, x)
    assert torch.equal(features(model, x), output)


def test_the_training_state_is_restored_after_an_exception():
    model = adapted("soma")
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt), merged_for_inference(model):
        model.eval()
        raise KeyboardInterrupt
    assert_restored(model, before)


def test_training_goes_on_after_an_evaluation_as_if_there_had_been_none():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 64, 64)
    runs = []
    for evaluate in (False, True):
        model = adapted("soma")
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            features(model, x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if evaluate:
                with torch.no_grad(), merged_for_inference(model):
                    model.eval()(x)
        runs.append(model.state_dict())
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name


def test_a_bare_vit_is_merged_too_and_what_cannot_be_merged_runs_as_it_is():
    model = adapted("soma").model
    with merged_for_inference(model) as merged:
        assert not find_adapter_layers(merged) and type(merged.blocks[1].mlp.fc1) is nn.Linear
    assert find_adapter_layers(model)
    for other in (adapted("rein"), nn.Linear(2, 2)):
        layers = list(other.modules())
        with merged_for_inference(other) as merged:
            assert merged is other and list(other.modules()) == layers


def test_merging_takes_memory_for_the_merged_weights_alone():
    model = adapted("soma").model
    original = {p.data_ptr() for p in model.parameters()}
    expected = {f"{name}.weight" for name in find_adapter_layers(model)}
    with merged_for_inference(model) as merged:
        fresh = {name for name, p in merged.named_parameters() if p.data_ptr() not in original}
    assert fresh == expected


def test_compilation_reaches_every_block_and_is_undone(monkeypatch):
    model = adapted("soma").eval()
    compiled = []

    def compile_stub(block):
        compiled.append(block)
        block._compiled_call_impl = block._call_impl

    monkeypatch.setattr(nn.Module, "compile", compile_stub)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), prepared_for_inference(model, compile_blocks=True):
        assert compiled == list(model.model.blocks)
        model(x)
    assert all(block._compiled_call_impl is None for block in [*compiled, *model.model.blocks])
    with pytest.raises(ValueError, match="TEST.COMPILE"), prepared_for_inference(nn.Linear(2, 2), compile_blocks=True):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_the_same():
    model = adapted("soma").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = features(model, x)
        with prepared_for_inference(model, compile_blocks=True):
            compiled = features(model, x)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


def test_batches_are_runs_of_equal_size():
    a, b, unknown = (48, 64), (64, 64), (None, None)
    sizes = [a, a, a, b, a, unknown, unknown, a]
    assert equal_size_batches(range(8), sizes, 2) == [[0, 1], [2], [3], [4], [5], [6], [7]]
    assert equal_size_batches(range(8), sizes, 1) == [[i] for i in range(8)]
    assert equal_size_batches([4, 2, 0], sizes, 8) == [[4, 2, 0]]
    assert equal_size_batches([], sizes, 8) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_batched_testing_gives_the_results_of_single_images(data, tmp_path):
    cfgs = [tiny_cfg(data, tmp_path / str(size), TEST__BATCH_SIZE=size) for size in (1, 2)]
    model = Trainer.build_model(cfgs[0])
    name = cfgs[0].DATASETS.TEST[0]
    assert [len(batch) for batch in build_test_loader(cfgs[1], name)] == [2, 1]
    results = [Trainer.test(cfg, model) for cfg in cfgs]
    for dataset, metrics in results[0].items():
        for task in ("bbox", "voc"):
            for metric, value in metrics[task].items():
                assert value == pytest.approx(results[1][dataset][task][metric], abs=1e-6, nan_ok=True)
    predictions = [[one for batch in build_test_loader(cfg, name) for one in model.eval()(batch)] for cfg in cfgs]
    for single, batched in zip(*predictions):
        single, batched = single["instances"], batched["instances"]
        assert len(single) == len(batched)
        assert torch.allclose(single.pred_boxes.tensor, batched.pred_boxes.tensor, atol=1e-2)
        assert torch.allclose(single.scores, batched.scores, atol=1e-5)


def test_the_trainer_evaluates_the_merged_model_and_hands_back_its_own(data, tmp_path, monkeypatch):
    cfg = tiny_cfg(data, tmp_path, TEST__AMP__ENABLED=True, SOLVER__AMP__DTYPE="bfloat16")
    model = Trainer.build_model(cfg).train()
    before, seen = snapshot(model), []

    def look(self, x):
        seen.append((bool(find_adapter_layers(self)), torch.is_autocast_enabled("cpu")))
        return forward(self, x)

    forward = TimmViT.forward
    monkeypatch.setattr(TimmViT, "forward", look)
    Trainer.test(cfg, model)
    assert set(seen) == {(False, True)}
    assert_restored(model, before)


def test_amp_is_for_the_backbone_only_and_is_undone(data, tmp_path):
    model = Trainer.build_model(tiny_cfg(data, tmp_path)).eval()
    x = torch.randn(1, 3, 64, 64)
    full = model.backbone(x)
    with torch.no_grad(), prepared_for_inference(model, torch.bfloat16):
        half = model.backbone(x)
        assert not torch.is_autocast_enabled("cpu")
    for level, feature in half.items():
        assert feature.dtype == torch.float32
        assert not torch.equal(feature, full[level]) and torch.allclose(feature, full[level], atol=0.2), level
        assert torch.equal(model.backbone(x)[level], full[level])


def test_a_batch_size_below_one_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="TEST.BATCH_SIZE is 0"):
        setup_cfg("", options(data, tmp_path, TEST__BATCH_SIZE=0))
