"""Which modules a forward calls, and which one alone reads what a module gives."""

from __future__ import annotations

from collections import Counter

from torch import nn

from evoprune_kernels.nn.compaction.strip import Tracer
from evoprune_kernels.nn.swap import paths


class Calls:
    """The calls of modules in one forward of a model, as ``torch.fx`` sees them.

    A module with several names goes by its first one. Modules with Parameters of their own are not looked into.

    Attributes:
        times: name -> how often it is called; 0 for what lies inside of something opaque.
        opaque: modules that cannot be traced, and so stay whole -> why.

    Raises:
        ValueError: if the model's own forward cannot be traced.

    Example:
        >>> calls = Calls(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()))
        >>> calls.follower("0"), calls.follower("1", nn.GELU)
        (('1', ''), (None, 'what follows is not a GELU: _2'))
    """

    def __init__(self, model: nn.Module) -> None:
        tracer = Tracer(set())
        try:
            graph = tracer.trace(model)
        except Exception as error:  # whatever a model's own code raises when it is traced
            raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
        self.opaque = tracer.opaque
        first = {name: names[0] for names in paths(model).values() for name in names}
        called = [(first[str(n.target)], n) for n in graph.nodes if n.op == "call_module"]
        self.times = Counter(name for name, _ in called)
        self._nodes = dict(called)
        self._names = {node: name for name, node in called}
        self._types = {name: type(model.get_submodule(name)) for name in self.times}

    def follower(self, name: str, kind: type[nn.Module] | None = None) -> tuple[str | None, str]:
        """The one module that reads the output of ``name`` and is called once, or None and why there is none.

        Args:
            name: of a module that is called once.
            kind: exactly the class that it has to be of; None takes any.
        """
        users = list(self._nodes[name].users)
        if len(users) != 1:
            return None, f"its output is used {len(users)} times"
        found = self._names.get(users[0])
        what = "module" if kind is None else kind.__name__
        if found is None or (kind is not None and self._types[found] is not kind):
            return None, f"what follows is not a {what}: {users[0].name}"
        if self.times[found] != 1:
            return None, f"the {what} behind it is called at several places: {found}"
        return found, ""
