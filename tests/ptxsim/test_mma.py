"""mma.sync and mma.sp of every type, with the fragment layouts written out as the PTX ISA does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptxsim import BadMetadata, Device, Unsupported, f32_to_bf16, parse

GROUP, THREAD = np.arange(32) // 4, np.arange(32) % 4
#: elements per register, registers of A, registers of B, instruction types
SHAPES = {
    "m16n8k16 f16": (2, 4, 2, "f32.f16.f16.f32"),
    "m16n8k16 bf16": (2, 4, 2, "f32.bf16.bf16.f32"),
    "m16n8k8 tf32": (1, 4, 2, "f32.tf32.tf32.f32"),
    "m16n8k4 tf32": (1, 2, 1, "f32.tf32.tf32.f32"),
    "m16n8k32 s8": (4, 4, 2, "s32.s8.s8.s32"),
}
SPARSE = {
    "m16n8k32 f16": (2, 4, 4, "f32.f16.f16.f32"),
    "m16n8k32 bf16": (2, 4, 4, "f32.bf16.bf16.f32"),
    "m16n8k64 s8": (4, 4, 4, "s32.s8.s8.s32"),
}


def kernel(instruction: str, a: int, b: int, selector: int | None = None) -> str:
    """Loads register r of lane l from word 32 r + l of each operand, stores the result so."""
    names = {"a": a, "b": b, "c": 4, **({"e": 1} if selector is not None else {})}
    body = [".reg .b64 %p<6>; .reg .b32 %t, %a<4>, %b<4>, %c<4>, %e<1>; mov.u32 %t, %tid.x;"]
    for k, (name, registers) in enumerate([*names.items(), ("d", 0)]):
        body += [f"ld.param.u64 %p{k}, [{name}]; mad.wide.u32 %p{k}, %t, 4, %p{k};"]
        body += [f"ld.global.b32 %{name}{r}, [%p{k}+{128 * r}];" for r in range(registers)]
    d, left, right = (
        "{" + ", ".join(f"%{name}{r}" for r in range(n)) + "}"
        for name, n in (("c", 4), ("a", a), ("b", b))
    )
    tail = "" if selector is None else f", %e0, {selector}"
    body += [f"{instruction} {d}, {left}, {right}, {d}{tail};"]
    body += [f"st.global.b32 [%p{len(names)}+{128 * r}], %c{r};" for r in range(4)]
    params = ", ".join(f".param .u64 {name}" for name in (*names, "d"))
    return f".version 8.5 .target sm_80 .entry k({params}) {{ {' '.join(body)} ret; }}"


def encode(values: np.ndarray, type_: str) -> np.ndarray:
    """Elements [registers, 32, per register] -> words [registers, 32]."""
    if type_ == "bf16":
        bits = f32_to_bf16(values.astype(np.float32))
    else:
        bits = values.astype({"f16": np.float16, "tf32": np.float32, "s8": np.int8}[type_])
    return np.ascontiguousarray(bits).view(np.uint32).reshape(values.shape[:2])


def fragments(a: np.ndarray, b: np.ndarray, e: int, a_count: int, b_count: int):
    """The registers of A [16, columns] and B [rows, 8]."""
    lanes, x = (GROUP[:, None], THREAD[:, None]), np.arange(e)
    left = [a[lanes[0] + 8 * (r % 2), e * lanes[1] + 4 * e * (r // 2) + x] for r in range(a_count)]
    right = [b[e * lanes[1] + 4 * e * r + x, lanes[0]] for r in range(b_count)]
    return np.stack(left), np.stack(right)


def accumulators(c: np.ndarray) -> np.ndarray:
    return np.stack([c[GROUP + 8 * (r // 2), 2 * THREAD + r % 2] for r in range(4)])


def run(text: str, *operands: np.ndarray, dtype) -> np.ndarray:
    device = Device(memory=1 << 16)
    out = device.empty((4, 32), np.uint32)
    device.launch(parse(text), "k", 1, 32, [*map(device.upload, operands), out])
    return out.array.view(dtype)


def problem(columns: int, k: int, integer: bool):
    rng = np.random.default_rng(k)
    a, b = rng.integers(-8, 9, (16, columns)), rng.integers(-8, 9, (k, 8))
    c = rng.integers(-100, 101, (16, 8)).astype(np.int32 if integer else np.float32)
    return a, b, c


@pytest.mark.parametrize("name", SHAPES)
def test_dense(name):
    (shape, type_), (e, a_count, b_count, types) = name.split(), SHAPES[name]
    k = int(shape.removeprefix("m16n8k"))
    a, b, c = problem(k, k, type_ == "s8")
    left, right = fragments(a, b, e, a_count, b_count)
    text = kernel(f"mma.sync.aligned.{shape}.row.col.{types}", a_count, b_count)
    args = [encode(left, type_), encode(right, type_), accumulators(c).view(np.uint32)]
    found = run(text, *args, dtype=c.dtype)
    np.testing.assert_array_equal(found, accumulators(a @ b + c))


def metadata(kept: np.ndarray, type_: str) -> np.ndarray:
    """kept: [16, groups, 2] indices. The word of each lane of a quad, by type."""
    fields = kept.reshape(16, -1).astype(np.uint64)
    meta = np.zeros(32, np.uint32)

    def word(row: int, start: int, count: int) -> int:
        return sum(int(fields[row, start + j]) << 2 * j for j in range(count))

    for g in range(8):
        if type_ == "s8":
            meta[4 * g + 0], meta[4 * g + 1] = word(g, 0, 16), word(g + 8, 0, 16)
            meta[4 * g + 2], meta[4 * g + 3] = word(g, 16, 16), word(g + 8, 16, 16)
        else:
            for half in range(2):
                meta[4 * g + half] = word(g, 8 * half, 8) | word(g + 8, 8 * half, 8) << 16
    return meta


def sparse_problem(name: str):
    (shape, type_), (e, a_count, b_count, types) = name.split(), SPARSE[name]
    k = int(shape.removeprefix("m16n8k"))
    a, b, c = problem(k // 2, k, type_ == "s8")
    kept = np.sort(np.argsort(np.random.default_rng(1).random((16, k // 4, 4)), -1)[..., :2], -1)
    dense = np.zeros((16, k // 4, 4), np.int64)
    np.put_along_axis(dense, kept, a.reshape(16, k // 4, 2), -1)
    left, right = fragments(a, b, e, a_count, b_count)
    meta = metadata(kept, type_)
    args = [encode(left, type_), encode(right, type_), accumulators(c).view(np.uint32), meta]
    name = f"mma.sp::ordered_metadata.sync.aligned.{shape}.row.col.{types}"
    return name, args, dense.reshape(16, k) @ b, c


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("ordered", [True, False])
def test_sparse(name, ordered):
    instruction, args, product, c = sparse_problem(name)
    if not ordered:
        instruction = instruction.replace("::ordered_metadata", "")
    found = run(kernel(instruction, 4, 4, 0), *args, dtype=c.dtype)
    np.testing.assert_array_equal(found, accumulators(product + c))


@pytest.mark.parametrize("saturate", [True, False])
def test_integer_overflow(saturate):
    instruction, args, product, _ = sparse_problem("m16n8k64 s8")
    near = np.where(product > 0, 2**31 - 5, -(2**31) + 5)
    args[2] = accumulators(near.astype(np.int32)).view(np.uint32)
    if saturate:
        instruction = instruction.replace(".row.col.", ".row.col.satfinite.")
    found = run(kernel(instruction, 4, 4, 0), *args, dtype=np.int32)
    exact = accumulators(product + near)
    clamped = exact.clip(-(2**31), 2**31 - 1)
    assert (clamped != exact).any()
    np.testing.assert_array_equal(found, clamped if saturate else exact.astype(np.int32))


@pytest.mark.parametrize("nibble", [0b0000, 0b0001, 0b0101, 0b0110, 0b1011, 0b1111])
def test_illegal_metadata_is_named(nibble):
    instruction, args, _, _ = sparse_problem("m16n8k64 s8")
    args[3][13] = int(args[3][13]) & ~(15 << 20) | nibble << 20
    with pytest.raises(BadMetadata, match=f"lane 13 .* nibble 5 is {nibble:04b}"):
        run(kernel(instruction, 4, 4, 0), *args, dtype=np.int32)
    with pytest.raises(Unsupported, match="selector 1"):
        run(kernel(instruction, 4, 4, 1), *args, dtype=np.int32)
