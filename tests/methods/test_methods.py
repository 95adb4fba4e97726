"""Every preset, whole: the target is met, the record is JSON, pruned weights are zero; what each method promises."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import evoprune_kernels as ek
from evoprune_kernels.methods import PRESETS, run
from tests.methods.task import ARGUMENTS, TRAIN, VALIDATION, make_model

#: what a method takes instead of a sparsity
NEEDS = {"sr_ste": {"pattern": "2:4"}}
#: methods whose masks are not made to hit the target: rounds that go on pruning
OVERSHOOT = {"smart_prune_2023": 0.02, "wanda": 0.01}


def finish(method, seed=0, **kwargs):
    target = NEEDS.get(method, {"sparsity": 0.6})
    if method == "dense":
        target = {}
    return run(method, make_model(seed), TRAIN, VALIDATION, **{**ARGUMENTS, **target, **kwargs})


#: methods that change layers: tests of their own
OWN = {"consensus_gates", "random_gates", "bn_polarization", "ssprop"}


@pytest.mark.parametrize("method", sorted(set(PRESETS) - OWN))
def test_a_preset_reaches_its_target_and_still_works(method):
    result = finish(method)
    wanted = {"dense": 0.0, "sr_ste": 0.5}.get(method, 0.6)
    total = sum(w.numel() for w in weights(result))
    assert result.record["sparsity"]["sparsity"] == pytest.approx(
        wanted, abs=OVERSHOOT.get(method, 1 / total)
    )
    for name, mask in result.masks.items():
        weight = result.model.get_parameter(name)
        assert mask.dtype == torch.bool and mask.shape == weight.shape
        assert bool((weight[~mask] == 0).all())
        assert result.record["sparsity"][f"sparsity/{name}"] == 1 - mask.double().mean().item()
    history = result.record["history"]
    assert history[-1]["step"] == 64 and history[-1]["validation/accuracy"] > 0.7  # chance: 0.25
    assert json.loads(json.dumps(result.record, allow_nan=False))["method"] == method


def weights(result):
    return [p for n, p in result.model.named_parameters() if n.endswith("weight")]


@pytest.mark.parametrize(
    "method", ["evolution_llm_2024", "magnitude_uniform", "wanda", "sparsegpt", "platon"]
)
def test_n_of_m(method):
    result = finish(method, sparsity=None, pattern="2:4")
    assert result.record["sparsity"]["sparsity"] == 0.5
    for mask in result.masks.values():
        assert bool((mask.view(mask.shape[0], -1, 4).sum(-1) == 2).all())


def test_two_of_four_by_evolution_runs_through_sparse_linear_with_the_same_loss():
    result = finish("evolution_llm_2024", sparsity=None, pattern="2:4")
    dense = result.model.eval()
    inputs, labels = next(iter(VALIDATION))
    with torch.inference_mode():
        expected = nn.functional.cross_entropy(dense(inputs), labels)
        report = ek.convert(dense, "2:4", masks=result.masks)
        assert len(report.swapped) == 3
        found = nn.functional.cross_entropy(dense(inputs), labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_evolution_threshold_ranks_the_current_weight_by_the_spread_of_the_average():
    result = finish("evolution_threshold_2022", finetune=0)
    dense, rate = result.dense, result.record["numbers"]["rate"]
    for name, mask in result.masks.items():
        w, average = dense.model[name].double(), dense.averages[name].double()
        assert torch.equal(mask, w.abs() / average.std() > rate)


def test_the_average_of_2022_is_the_square_root_mean_of_the_last_half():
    """Replayed: the same run step by step, weights recorded, averaged in fp64."""
    seen = []
    model = make_model()
    result = run(
        "evolution_threshold_2022", model, TRAIN, VALIDATION, sparsity=0.5,
        log=lambda numbers, step: seen.append(model[0].weight.detach().double().clone())
        if "train/loss" in numbers else None, **{**ARGUMENTS, "finetune": 0},
    )  # fmt: skip
    last = seen[20:]
    shares = torch.arange(1, 21, dtype=torch.float64).sqrt()
    expected = sum(s * w for s, w in zip(shares, last, strict=True)) / shares.sum()
    torch.testing.assert_close(
        result.dense.averages["0.weight"].double(), expected, rtol=1e-5, atol=1e-6
    )


def test_the_llm_recipe_ranks_the_average():
    result = finish("evolution_llm_2024", finetune=0)
    rate = result.record["numbers"]["rate"]
    for name, mask in result.masks.items():
        average = result.dense.averages[name].double().abs()
        assert torch.equal(mask, average / average.std() >= rate)


def test_bezier_masks_only_shrink():
    seen = []
    finish("smart_bezier_2022", log=lambda numbers, step: seen.append(numbers.get("sparsity")))
    reported = [s for s in seen if s is not None]
    assert reported == sorted(reported) and reported[-1] == pytest.approx(0.6, abs=1e-3)


def test_bezier_raises_its_upscale_where_bins_are_too_small():
    """Rows of 16 weights have bins of a few, of which 4 % is none: without more the target could not be reached."""
    numbers = finish("smart_bezier_2022", sparsity=0.9).record["numbers"]
    assert numbers["upscale"] in (0.16, 0.64, 1.0)


def test_bezier_says_so_where_its_curve_cannot_reach_the_target():
    with pytest.warns(UserWarning, match="never prunes the outermost bins"):
        reached = finish("smart_bezier_2022", sparsity=0.99, scaling="*", upscale=0.0).record
    assert 0.1 < reached["sparsity"]["sparsity"] < 0.99 and reached["numbers"]["upscale"] == 1.0


def test_random_masks_are_the_seeds():
    first, again = (finish("random").masks for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    other = run("random", make_model(), TRAIN, VALIDATION, sparsity=0.6, seed=1, **ARGUMENTS).masks
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_without_fine_tuning_the_dense_model_is_the_same_for_all():
    """The arms differ by their masks only: what is kept has the weights of the dense run."""
    dense = finish("dense", finetune=0).model
    for method in ("magnitude_global", "wanda", "random", "evolution_llm_2024"):
        result = finish(method, finetune=0)
        for name, mask in result.masks.items():
            kept = dense.get_parameter(name) * mask
            assert torch.equal(result.model.get_parameter(name), kept)


def test_a_result_saves_its_record(tmp_path):
    result = finish("magnitude_global")
    result.save(tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())
    assert saved == json.loads(json.dumps(result.record))
    assert saved["job"]["sparsity"] == 0.6 and len(saved["history"]) == 8  # epochs of 8 steps


def test_excluded_layers_stay_dense():
    result = finish("magnitude_global", exclude=["5"])
    assert sorted(result.masks) == ["0.weight", "3.weight"]
    assert bool((result.model[5].weight != 0).all())


def test_sr_ste_keeps_pruned_weights_alive_until_the_end():
    alive = []
    model = make_model()
    run(
        "sr_ste", model, TRAIN, VALIDATION, pattern="2:4",
        log=lambda numbers, step: alive.append(int((model[0].weight == 0).sum())), **ARGUMENTS,
    )  # fmt: skip
    assert max(alive) == 0
    assert int((model[0].weight == 0).sum()) == model[0].weight.numel() // 2


def test_the_best_state_under_the_final_masks_is_kept():
    result = finish("magnitude_global", keep_best=True, finetune=64)
    losses = {h["step"]: h["validation/loss"] for h in result.record["history"] if h["step"] > 40}
    assert result.record["best_step"] == min(losses, key=losses.get)
    found = ek.methods.classification(result.model.eval(), VALIDATION)
    assert found["loss"] == pytest.approx(min(losses.values()), abs=1e-9)


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("magic", {}, "expected a method in .* got 'magic'"),
        ("magnitude_global", {"sparsity": 1.0}, "sparsity < 1, got sparsity=1.0"),
        ("magnitude_global", {"sparsity": -0.1}, "got sparsity=-0.1"),
        ("magnitude_global", {"sparsity": None}, "'magnitude_global' needs a sparsity"),
        ("magnitude_global", {"sparsity": None, "pattern": "2:4"}, "scope='global' needs pattern"),
        ("magnitude_cubic", {"pattern": "3:x", "sparsity": None}, "'3:x'"),
        (
            "magnitude_cubic",
            {"pattern": "block:64x64"},
            r"0.weight of shape \(32, 16\) cannot be pruned",
        ),
        ("magnitude_cubic", {"start": 1.5}, "start <= 1, got 1.5"),
        ("magnitude_cubic", {"speed": 2}, r"no options \['speed'\]"),
        ("sr_ste", {}, "needs a pattern n:m, got 'unstructured'"),
        ("ecoflap", {"sparsity": None, "pattern": "2:4"}, "got the pattern '2:4'"),
        ("rigl", {"drop_fraction": 0.0}, "got drop_fraction=0.0"),
        ("smart_prune_2023", {"finetune": 3}, "needs 2 finetune steps a round, 4, got 3"),
        ("smart_bezier_2022", {"values": "old"}, "got 'old'"),
        ("dense", {"steps": 0}, "steps >= 1, got steps=0"),
        ("dense", {"optimizer": "lion"}, "got 'lion'"),
        ("dense", {"decay": "step"}, "got 'step'"),
    ],
)
def test_bad_jobs_change_nothing(method, kwargs, message):
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    target = {} if method == "dense" else {"sparsity": 0.6}
    with pytest.raises(ValueError, match=message):
        run(method, model, TRAIN, VALIDATION, **{**ARGUMENTS, **target, **kwargs})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
