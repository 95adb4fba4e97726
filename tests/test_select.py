"""Which implementation runs: the whole table, without any hardware."""

from __future__ import annotations

import pytest

from evoprune_kernels import _select

MISSING = {"cpu": "not built"}


@pytest.mark.parametrize(
    "device, requested, reasons, expected",
    [
        ("cpu", None, {}, "cpu"),
        ("cpu", None, MISSING, "reference"),
        ("cpu", "cpu", {}, "cpu"),
        ("cpu", "reference", {}, "reference"),
        ("cpu", "reference", MISSING, "reference"),
        ("cuda", None, {}, "cuda"),
        ("cuda", None, {"cuda": "not built"}, "triton"),
        ("cuda", None, {"cuda": "not built", "triton": "not installed"}, "reference"),
        ("cuda", None, {"triton": "not installed"}, "cuda"),
        ("cuda", "triton", {}, "triton"),
        ("cuda", "cuda", {}, "cuda"),
        ("cuda", "reference", {}, "reference"),
        ("meta", None, MISSING, "reference"),
    ],
)
def test_choice(device, requested, reasons, expected):
    assert _select.choose("op", device, requested, reasons) == expected


@pytest.mark.parametrize(
    "device, reasons, message",
    [
        ("cpu", MISSING, r"nm_linear: impl='cpu' cannot run: not built"),
        ("cuda", {}, r"nm_linear: impl='cpu' cannot run: tensors are on 'cuda'"),
    ],
)
def test_insisting_raises_with_the_reason(device, reasons, message):
    with pytest.raises(RuntimeError, match=message):
        _select.choose("nm_linear", device, "cpu", reasons)


def test_insisting_on_cuda_raises_with_the_reason():
    with pytest.raises(RuntimeError, match=r"impl='cuda' cannot run: not built"):
        _select.choose("nm_linear", "cuda", "cuda", {"cuda": "not built"})
    with pytest.raises(RuntimeError, match=r"tensors are on 'cpu', these kernels run on 'cuda'"):
        _select.choose("nm_linear", "cpu", "cuda", {})


def test_insisting_on_triton_raises_with_the_reason():
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run: not installed"):
        _select.choose("nm_linear", "cuda", "triton", {"triton": "not installed"})
    with pytest.raises(RuntimeError, match=r"tensors are on 'cpu', these kernels run on 'cuda'"):
        _select.choose("nm_linear", "cpu", "triton", {})


def test_unknown_implementation():
    with pytest.raises(ValueError, match=r"op: impl must be one of .*'cpu'.*got 'gpu'"):
        _select.choose("op", "cpu", "gpu", {})


def test_choosing_does_not_change_the_reasons():
    reasons: dict[str, str] = {}
    _select.choose("op", "cuda", None, reasons)
    assert reasons == {}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("a=cpu", {"a": "cpu"}),
        (" a=cpu , b=reference,", {"a": "cpu", "b": "reference"}),
        ("a=cpu,a=reference", {"a": "reference"}),
        ("a=triton", {"a": "triton"}),
    ],
)
def test_forced(text, expected):
    assert _select.parse_forced(text) == expected


@pytest.mark.parametrize("text", ["a", "a=", "a=gpu", "a:cpu", "cpu"])
def test_forced_rejects(text):
    with pytest.raises(ValueError, match="expected op=impl"):
        _select.parse_forced(text)
