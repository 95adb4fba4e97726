"""A run that is cut off goes on from its checkpoint and ends with the same bits; dense training can be shared."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.methods import run
from tests.methods.task import ARGUMENTS, TRAIN, VALIDATION, make_model

METHODS = [
    "evolution_threshold_2022", "evolution_llm_2024", "smart_bezier_2022", "smart_prune_2023", "magnitude_cubic",
    "platon", "movement", "sr_ste", "rigl", "set", "wanda", "sparsegpt",
]  # fmt: skip


class Cut(Exception):
    """The power is gone."""


def target_of(method):
    return {"pattern": "2:4"} if method == "sr_ste" else {"sparsity": 0.6}


def finish(method, model=None, **kwargs):
    arguments = {**ARGUMENTS, **target_of(method), **kwargs}
    return run(method, model or make_model(), TRAIN, VALIDATION, **arguments)


def same(a, b):
    """Bitwise, weights and masks."""
    weights = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in weights) and all(
        torch.equal(a.masks[n], b.masks[n]) for n in (*a.masks, *b.masks)
    )


@pytest.mark.parametrize("cut_at", [13, 45, 59])
@pytest.mark.parametrize("method", METHODS)
def test_a_cut_run_ends_as_the_whole_one(method, cut_at, tmp_path):
    whole = finish(method)
    path = tmp_path / "run.pt"

    def power_cut(numbers, step):
        if step >= cut_at:
            raise Cut

    with pytest.raises(Cut):
        finish(method, checkpoint=path, checkpoint_every=7, log=power_cut)
    resumed = finish(method, make_model(seed=5), checkpoint=path, checkpoint_every=7)
    assert same(whole, resumed)
    assert resumed.record["history"] == whole.record["history"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    finish("magnitude_cubic", checkpoint=path, checkpoint_every=7)
    with pytest.raises(
        ValueError, match="another run: expected method platon, got magnitude_cubic"
    ):
        finish("platon", checkpoint=path)
    with pytest.raises(ValueError, match=r"expected job .*'seed': 1.*got .*'seed': 0"):
        finish("magnitude_cubic", checkpoint=path, seed=1)
    torch.save({"format": 1}, path)
    with pytest.raises(ValueError, match="expected method magnitude_cubic, got None"):
        finish("magnitude_cubic", checkpoint=path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="expected format 1, got None"):
        finish("magnitude_cubic", checkpoint=path)


SHARING = [
    "dense", "random", "magnitude_std", "magnitude_uniform", "magnitude_global", "magnitude_erk", "wanda",
    "sparsegpt", "ecoflap", "evolution_threshold_2022", "smart_bezier_2022",
]  # fmt: skip


@pytest.mark.parametrize("method", SHARING)
def test_shared_dense_training_changes_nothing(method):
    dense = finish("evolution_threshold_2022", finetune=0).dense
    target = {"sparsity": None} if method == "dense" else {}
    alone = finish(method, **target)
    shared = finish(method, make_model(seed=5), dense=dense, **target)
    assert same(alone, shared)
    assert shared.record["history"] == alone.record["history"]


def test_dense_training_of_another_job_is_refused():
    dense = finish("magnitude_global", finetune=0).dense
    with pytest.raises(ValueError, match=r"another job: expected .*'seed': 1.*got .*'seed': 0"):
        finish("magnitude_global", dense=dense, seed=1)
    with pytest.raises(ValueError, match=r"needs the average .*evolution.*got {}"):
        finish("evolution_llm_2024", dense=dense)
    with pytest.raises(ValueError, match="'platon' does not begin with dense training"):
        finish("platon", dense=dense)


def test_a_data_loader_resumes_in_its_order(tmp_path):
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(TRAIN.points, TRAIN.labels)
    loader = DataLoader(data, batch_size=32, shuffle=True)

    def go(model, **kwargs):
        return run(
            "magnitude_cubic", model, loader, VALIDATION, sparsity=0.5, **{**ARGUMENTS, **kwargs}
        )

    whole = go(make_model())

    def power_cut(numbers, step):
        if step >= 30:
            raise Cut

    path = tmp_path / "run.pt"
    with pytest.raises(Cut):
        go(make_model(), checkpoint=path, checkpoint_every=11, log=power_cut)
    assert same(whole, go(make_model(seed=3), checkpoint=path))
