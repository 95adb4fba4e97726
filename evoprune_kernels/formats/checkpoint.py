"""Packed and dense weights in one safetensors file: plain tensors, and in the metadata what they mean.

A weight ``h.0.fc`` of pattern 2:4 and a dense bias, as they stand in the file::

    tensors    h.0.fc.values  F32 [N, G*n]      h.0.fc.meta  U8 [N, ...]      h.0.bias  F32 [N]
               (quantised: values I8, and h.0.fc.scale F32 [N])
    metadata   evoprune.version  "1"
               evoprune.packed   {"h.0.fc": {"format": "nm", "pattern": "2:4", "shape": "3072x768"}}
               ...               what the caller gave

Any program that reads safetensors reads the tensors. A file is checked whole before any of it is handed out: sizes,
dtypes, indices, order, padding. What is wrong is a ``ValueError`` that names the file and the layer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from evoprune_kernels.formats.base import PackedWeight
from evoprune_kernels.formats.bitmask import BitmaskWeight
from evoprune_kernels.formats.block import BlockWeight
from evoprune_kernels.formats.nm import NMWeight

#: written into every file; a file of another version is refused
VERSION = "1"
#: the largest dense weight a file may announce: hostile shapes must not exhaust the memory of whoever unpacks them
MAX_WEIGHTS = 2**36

_PREFIX = "evoprune."
_VERSION_KEY = "evoprune.version"
_PACKED_KEY = "evoprune.packed"
_BY_NAME = {format_.FORMAT: format_ for format_ in (NMWeight, BlockWeight, BitmaskWeight)}


def save(
    path: str | os.PathLike[str],
    weights: Mapping[str, PackedWeight | Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights to a safetensors file, whole or not at all.

    Args:
        path: the file; an existing one is replaced in one step.
        weights: layer name -> packed weight or dense tensor. Tensors that share memory are written once each.
        metadata: more text to keep, read back by ``read_metadata``; keys must not begin with ``evoprune.``.

    Raises:
        ValueError: if a packed weight is not valid, two tensors would get one name, or a metadata key is reserved.
        TypeError: if a weight is neither packed nor a tensor, or metadata is not text.

    Example:
        >>> import tempfile, torch
        >>> from evoprune_kernels import formats
        >>> packed = formats.pack(torch.tensor([[0.0, 5.0, 0.0, 6.0]]), "2:4")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     formats.save(f"{folder}/model.safetensors", {"fc": packed, "bias": torch.ones(1)})
        ...     loaded = formats.load(f"{folder}/model.safetensors")
        >>> loaded["fc"].unpack(), loaded["bias"], str(loaded["fc"].pattern)
        (tensor([[0., 5., 0., 6.]]), tensor([1.]), '2:4')
    """
    text = _checked_metadata(metadata or {})
    tensors: dict[str, Tensor] = {}
    packed: dict[str, dict[str, str]] = {}
    for name, weight in weights.items():
        if isinstance(weight, PackedWeight):
            _validate(weight, f"layer {name!r}")
            packed[name] = weight.attributes()
            parts = {f"{name}.{field}": part for field, part in weight.tensors().items()}
        elif isinstance(weight, Tensor):
            parts = {name: weight}
        else:
            raise TypeError(f"layer {name!r}: expected a packed weight or a tensor, got {weight!r}")
        for key, part in parts.items():
            if key in tensors or key in packed:
                raise ValueError(f"layer {name!r}: the file would hold two tensors named {key!r}")
            tensors[key] = part
    text |= {_VERSION_KEY: VERSION, _PACKED_KEY: json.dumps(packed, sort_keys=True)}
    _write(Path(path), _own_memory(tensors), text)


def load(path: str | os.PathLike[str]) -> dict[str, PackedWeight | Tensor]:
    """Read what ``save`` wrote: layer name -> packed weight or dense tensor, on the CPU.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such file, of another version, or anything in it is not what its format promises; the
            message names the file and the layer and holds both values.
    """
    tensors, text = _read(Path(path))
    result: dict[str, PackedWeight | Tensor] = {}
    for name, attributes in _packed_layers(path, text).items():
        where = f"{path}: layer {name!r}"
        format_ = _BY_NAME.get(attributes.get("format", ""))
        if format_ is None:
            got = attributes.get("format")
            raise ValueError(f"{where}: expected a format of {sorted(_BY_NAME)}, got {got!r}")
        fields = (*format_.TENSORS, "scale")
        own = {f: tensors.pop(k) for f in fields if (k := f"{name}.{f}") in tensors}
        try:
            weight = format_.from_tensors(own, attributes)
        except (ValueError, TypeError, RuntimeError, IndexError, OverflowError) as error:
            raise ValueError(f"{where}: {error}") from error
        if weight.shape[0] * weight.shape[1] > MAX_WEIGHTS:
            size = attributes["shape"]
            raise ValueError(f"{where}: expected at most {MAX_WEIGHTS} weights, got shape {size}")
        result[name] = weight
    for name, tensor in tensors.items():
        if name in result:
            raise ValueError(f"{path}: layer {name!r}: both a packed weight and a dense tensor")
        result[name] = tensor
    return result


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that ``save`` was given with the weights, without reading the weights.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such file.
    """
    text = _open(Path(path), lambda file: dict(file.metadata() or {}))
    _packed_layers(path, text)
    return {key: value for key, value in text.items() if not key.startswith(_PREFIX)}


def _validate(weight: PackedWeight, where: str) -> None:
    try:
        weight.validate()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"expected metadata of text, got {key!r}: {value!r}")
        if key.startswith(_PREFIX):
            raise ValueError(f"metadata keys that begin with {_PREFIX!r} are reserved, got {key!r}")
    return dict(metadata)


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two of which share memory (safetensors refuses those that do)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def _write(path: Path, tensors: dict[str, Tensor], text: dict[str, str]) -> None:
    """Through a temporary file beside it, so that a reader never sees half a file."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        safetensors.torch.save_file(tensors, temporary, metadata=text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _open(path: Path, read: Any) -> Any:
    """``read(file)`` of an open safetensors file; whatever is wrong with it is a ``ValueError``."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: not a safetensors file: it is empty")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            return read(file)
    except OSError:
        raise
    except Exception as error:  # its own errors, and torch's for a dtype or size it cannot hold
        raise ValueError(f"{path}: not a safetensors file, or a damaged one: {error}") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, copied out of the mapped file, and the metadata."""

    def read(file: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = {name: torch.clone(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})

    return _open(path, read)


def _packed_layers(path: str | os.PathLike[str], text: Mapping[str, str]) -> dict[str, Any]:
    """Layer name -> attributes, from the metadata; checks the version."""
    version = text.get(_VERSION_KEY)
    if version is None:
        raise ValueError(
            f"{path}: not written by this package: no {_VERSION_KEY!r} in its metadata"
        )
    if version != VERSION:
        raise ValueError(f"{path}: expected format version {VERSION!r}, got {version!r}")
    try:
        packed = json.loads(text.get(_PACKED_KEY, ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_PACKED_KEY!r} in its metadata is no JSON: {error}") from error
    if not isinstance(packed, dict) or not all(
        isinstance(attributes, dict) and all(isinstance(v, str) for v in attributes.values())
        for attributes in packed.values()
    ):
        raise ValueError(f"{path}: {_PACKED_KEY!r}: expected layer -> attributes, got {packed!r}")
    return packed
