"""What a pattern is and what every packed weight can do. Selection (scores -> mask) is not here.

A *pattern* says which masks are legal; a *packed weight* stores one weight whose mask obeys it. Rules shared by every
format: -0.0 is stored as +0.0, NaN is a kept value, sizes that do not divide are padded inside, and the mask that
`pack` makes when none is given keeps what is not zero.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from evoprune_kernels._check import check, check_dim, check_dtype, check_shape

#: the largest group of an n:m pattern: a group's mask fits one 32-bit word
MAX_GROUP = 32
#: how many consecutive rows of an n:m weight may share one mask: none, or those of a vector
SHARED_ROWS = (1, 16)
#: the largest edge of a block
MAX_BLOCK = 256
#: dtypes a packed weight may store; the native kernels take the first two
VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: the largest stored number of a quantised weight; symmetric, so that -128 never occurs
LARGEST_INT8 = 127


@dataclass(frozen=True)
class Pattern:
    """A family of masks; ``str(pattern)`` is the name that ``parse_pattern`` reads."""

    def arguments(self) -> tuple[int, ...]:
        """The numbers in the name, in order: ``(2, 4)`` for ``2:4``."""
        return dataclasses.astuple(self)


@dataclass(frozen=True)
class NM(Pattern):
    """At most ``n`` kept of every ``m`` consecutive weights of a row, 1 <= n <= m <= 32.

    With ``shared`` = 16 the rows 0-15, 16-31, ... keep the same columns: a legal n:m mask that needs no permutes.
    """

    n: int
    m: int
    shared: int = 1

    def __post_init__(self) -> None:
        check(
            self.shared in SHARED_ROWS,
            f"expected a mask shared by {SHARED_ROWS} rows, got {self.shared}",
        )
        check(
            1 <= self.n <= self.m <= MAX_GROUP,
            f"expected a pattern n:m with 1 <= n <= m <= {MAX_GROUP}, got {self.n}:{self.m}",
        )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" + (f"v{self.shared}" if self.shared > 1 else "")


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of ``rows`` x ``columns`` weights are kept or removed whole, edges from 1 to 256."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        check(
            1 <= self.rows <= MAX_BLOCK and 1 <= self.columns <= MAX_BLOCK,
            f"expected block edges from 1 to {MAX_BLOCK}, got {self.rows}x{self.columns}",
        )

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.columns}"


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any mask."""

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class Channel(Pattern):
    """Whole rows (output features) are kept or removed."""

    def __str__(self) -> str:
        return "channel"


def parse_pattern(text: str | Pattern) -> Pattern:
    """The pattern that ``text`` names.

    Args:
        text: ``"n:m"``, ``"n:mv16"``, ``"block:RxC"``, ``"unstructured"`` or ``"channel"``; a Pattern is returned as
            it is.

    Raises:
        ValueError: if the text names no pattern, or its numbers are out of range.

    Example:
        >>> from evoprune_kernels.formats import parse_pattern
        >>> parse_pattern("2:4")
        NM(n=2, m=4, shared=1)
        >>> str(parse_pattern("block:16x16"))
        'block:16x16'
    """
    if isinstance(text, Pattern):
        return text
    if found := re.fullmatch(r"(\d{1,4}):(\d{1,4})(?:v(\d{1,4}))?", text):
        return NM(int(found[1]), int(found[2]), int(found[3] or 1))
    if found := re.fullmatch(r"block:(\d{1,4})x(\d{1,4})", text):
        return Block(int(found[1]), int(found[2]))
    if text in (named := {"unstructured": Unstructured(), "channel": Channel()}):
        return named[text]
    raise ValueError(
        f"unknown pattern {text!r}: expected 'n:m' (such as '2:4' or '2:4v16'), 'block:RxC' (such as 'block:16x16'), "
        "'unstructured' or 'channel'"
    )


class PackedWeight(ABC):
    """One weight in a canonical packed form: what is saved, tested and converted.

    Subclasses are frozen dataclasses whose tensor fields carry the names of the format's tensors.
    """

    #: format name, as in files
    FORMAT: ClassVar[str]
    #: the patterns this format stores
    PATTERN: ClassVar[type[Pattern]]
    #: names of the tensors, in the order in which the ops take them; a quantised weight also has ``scale``
    TENSORS: ClassVar[tuple[str, ...]]

    #: [N, values' own shape]: the kept weights
    values: Tensor
    #: (N, K) of the dense weight
    shape: tuple[int, int]
    #: float32 [N], or None: a row is ``scale * values`` where values are int8
    scale: Tensor | None

    @classmethod
    @abstractmethod
    def pack(cls, weight: Tensor, *arguments: Any, mask: Tensor | None = None) -> PackedWeight:
        """Pack a dense weight [N, K]; ``arguments`` are those of the pattern.

        ``mask`` (bool [N, K]) says what is kept; None keeps ``weight != 0``. Raises ``ValueError`` with the
        coordinates where the mask does not obey the pattern.
        """

    @abstractmethod
    def unpack(self) -> Tensor:
        """The dense weight [N, K]; +0.0 where nothing is kept."""

    @abstractmethod
    def validate(self) -> None:
        """Raise ``ValueError`` unless every tensor is what this format promises; safe on hostile input."""

    @property
    @abstractmethod
    def pattern(self) -> Pattern:
        """The pattern this weight obeys."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], attributes: Mapping[str, str]
    ) -> PackedWeight:
        """The inverse of ``tensors`` and ``attributes``; validated."""

    @abstractmethod
    def rows(self) -> Tensor:
        """The row of every stored value: int64, of a shape that broadcasts to that of ``values``."""

    def tensors(self) -> dict[str, Tensor]:
        """The canonical tensors by name."""
        found = {name: getattr(self, name) for name in self.TENSORS}
        return found if self.scale is None else found | {"scale": self.scale}

    def quantize(self) -> Self:
        """The same weight stored as int8 with one scale a row.

        ``values_q = round(values / scale[row])``, ``scale[row] = max |values of the row| / 127``

        Returns:
            a packed weight with ``values`` int8 in [-127, 127] and ``scale`` float32 [N]; ``unpack()`` is float32.

        Raises:
            ValueError: if it is quantised already, or holds NaN or an infinity.

        Notes:
            Rounds half to even; the error of a weight is at most half its row's scale. A row of zeros has scale 0.

        Example:
            >>> import torch
            >>> from evoprune_kernels import formats
            >>> packed = formats.pack(torch.tensor([[0.0, 1.27, 0.0, -0.01]]), "2:4").quantize()
            >>> packed.values.tolist(), round(packed.scale.item(), 6)
            ([[127, -1]], 0.01)
        """
        check(self.scale is None, "the weight is quantised already")
        check(bool(self.values.isfinite().all()), "a weight with NaN or infinity has no int8 form")
        rows = self.rows().expand(self.values.shape)
        count = max(
            self.shape[0], int(rows.max()) + 1 if rows.numel() else 0
        )  # padding below the edge
        values = self.values.float()
        largest = values.new_zeros(count)
        largest.scatter_reduce_(0, rows.flatten(), values.abs().flatten(), "amax")
        scale = largest / LARGEST_INT8
        steps = torch.where(scale > 0, scale, torch.ones_like(scale))[rows]
        stored = (values / steps).round().clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8)
        return dataclasses.replace(self, values=stored, scale=scale[: self.shape[0]].contiguous())  # type: ignore[type-var]

    def float_values(self) -> Tensor:
        """``values``, times their row's scale where the weight is quantised."""
        if self.scale is None:
            return self.values
        rows = self.rows().clamp(max=max(0, self.shape[0] - 1))  # padding below the edge is 0
        return self.values * self.scale[rows]

    def attributes(self) -> dict[str, str]:
        """What is needed beside the tensors to rebuild: format, pattern and dense shape, as text."""
        return {
            "format": self.FORMAT,
            "pattern": str(self.pattern),
            "shape": f"{self.shape[0]}x{self.shape[1]}",
        }

    def to(self, *args: Any, **kwargs: Any) -> PackedWeight:
        """``Tensor.to`` on every tensor; a dtype applies to the values only, and not to int8 ones (``TypeError``)."""
        moved = {name: tensor.to(*args, **kwargs) for name, tensor in self.tensors().items()}
        if self.scale is not None and moved["values"].dtype != self.dtype:
            raise TypeError(
                f"a quantised weight stays int8, got {moved['values'].dtype}; unpack() it first"
            )
        for name, tensor in self.tensors().items():
            if name != "values":
                moved[name] = tensor.to(moved["values"].device)
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())


def parse_attributes(
    cls: type[PackedWeight], attributes: Mapping[str, str]
) -> tuple[Pattern, tuple[int, int]]:
    """``(pattern, shape)`` from ``PackedWeight.attributes()``; for ``from_tensors``."""
    pattern = parse_pattern(attributes.get("pattern", ""))
    if not isinstance(pattern, cls.PATTERN):
        raise ValueError(f"format {cls.FORMAT!r} cannot hold the pattern {str(pattern)!r}")
    found = re.fullmatch(r"(\d{1,18})x(\d{1,18})", text := attributes.get("shape", ""))
    if found is None:
        raise ValueError(f"expected a shape 'NxK', got {text!r}")
    return pattern, (int(found[1]), int(found[2]))


def require_tensors(cls: type[PackedWeight], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The format's tensors in order; ``ValueError`` names those that are missing or too many."""
    missing, extra = set(cls.TENSORS) - set(tensors), set(tensors) - {*cls.TENSORS, "scale"}
    if missing or extra:
        raise ValueError(
            f"format {cls.FORMAT!r} has the tensors {cls.TENSORS}: missing {sorted(missing)}, unknown {sorted(extra)}"
        )
    return [tensors[name] for name in cls.TENSORS]


def check_values(packed: PackedWeight) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``values`` are floating point, or int8 with a scale of each row."""
    if packed.scale is None:
        check_dtype(packed.values, VALUE_DTYPES, "values")
        return
    check_dtype(packed.values, (torch.int8,), "values beside a scale")
    check_dtype(packed.scale, (torch.float32,), "scale")
    check_dim(packed.scale, 1, "scale")
    check_shape(packed.scale, (packed.shape[0],), "scale")
    bad = (~(packed.scale.isfinite() & (packed.scale >= 0))).nonzero()
    if bad.numel():
        at = int(bad[0])
        raise ValueError(
            f"scale[{at}]: expected a finite number of 0 or more, got {float(packed.scale[at])}"
        )
    check(
        packed.scale.device == packed.values.device,
        f"scale on {packed.scale.device}, values on {packed.values.device}",
    )
    check(not bool((packed.values == -128).any()), "values hold -128, expected -127 to 127")


def kept_mask(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Checks ``weight`` and ``mask`` of a ``pack`` call; the mask, or ``weight != 0`` where it is None."""
    check_dim(weight, 2, "weight")
    check_dtype(weight, VALUE_DTYPES, "weight")
    if mask is None:
        return weight != 0
    check_dtype(mask, (torch.bool,), "mask")
    check_shape(mask, tuple(weight.shape), "mask")
    check(mask.device == weight.device, f"mask on {mask.device}, weight on {weight.device}")
    return mask
