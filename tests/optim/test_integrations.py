"""Our optimizers inside accelerate and the transformers Trainer, with no change of user code."""

from __future__ import annotations

import pytest
import torch

import evoprune_kernels as ek

CONFIG = ek.PruneConfig("2:4", start=2, end=6, every=2)


@pytest.mark.parametrize("optimizer_class", [ek.optim.AdamW, ek.optim.SGD])
def test_accelerate(optimizer_class, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    optimizer = optimizer_class(ek.optim.prunable_groups(model, CONFIG), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    data = torch.utils.data.DataLoader(torch.randn(64, 16), batch_size=8)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, prepared, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)

    def epoch():
        for x in data:
            with accelerator.accumulate(model):
                loss = model(x).square().mean()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                prepared.step()
                scheduler.step()
                prepared.zero_grad()

    epoch()
    assert optimizer.param_groups[0]["prune_step"] == 4, "accumulated micro-batches are one step"
    accelerator.save_state(tmp_path)
    epoch()
    expected = [p.detach().clone() for p in model.parameters()]
    masks = [m.clone() for m in optimizer.masks().values()]
    accelerator.load_state(tmp_path)
    assert optimizer.param_groups[0]["prune_step"] == 4
    epoch()
    for a, b in zip(model.parameters(), expected, strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masks().values(), masks, strict=True))
    assert optimizer.sparsity_report()["sparsity"] == 0.5


def test_transformers_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    optimizer = ek.optim.AdamW(ek.optim.prunable_groups(model, CONFIG), lr=1e-2)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (16, 16))]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, save_steps=8, logging_steps=100, disable_tqdm=True, max_grad_norm=1.0,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, optimizers=(optimizer, None)
    )
    trainer.train()
    assert optimizer.sparsity_report()["sparsity"] == 0.5
    weight = model.transformer.h[0].mlp.c_fc.weight  # Conv1D: [in, out]
    assert ((weight.t() == 0).view(64, 4, 4).sum(-1) == 2).all()
    assert (
        model.transformer.wte.weight != 0
    ).any() and model.transformer.wte.weight not in optimizer.masks()
    saved = torch.load(tmp_path / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["prune"]["pattern"] == "2:4"
