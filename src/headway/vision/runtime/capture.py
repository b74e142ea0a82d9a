"""`capture`: the operations of one forward of a module, in order, as torch's public functions are called.

The module runs once, as it is, under a mode that hears every call: nothing is compiled, and whatever Python does with
shapes and settings is done with. What depends on the values of the image cannot be captured and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class NotNative(Exception):
    """The runtime cannot follow the module; `str()` says where it stopped."""


@dataclass(eq=False)
class Node:
    """One call. Its arguments hold nodes where it was given what another call made, or what came in."""

    name: str
    """Of the function, without the underscores of operators and in-place forms: `add` of `__iadd__`."""
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_view: bool = False
    """The result is the first argument's memory, seen in another way."""
    path: str = ""
    """Of a parameter or a buffer: where the module has it."""
    part: int | None = None
    """Which of the results, where the function gives several."""
    writes: bool = False
    """It writes into its first argument, which it gives."""
    users: list[Node] = field(default_factory=list)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def inputs(self) -> list[Node]:
        found: list[Node] = []
        each_of((self.args, dict(self.kwargs)), Node, found.append)
        return found

    def called(self, tensors: Mapping[Node, Tensor]) -> Tensor:
        """The function of other tensors, none of which is written to."""
        args = mapped(self.args, Node, tensors.__getitem__)
        if self.writes:
            args = (args[0].clone(), *args[1:])
        made = self.function(*args, **mapped(dict(self.kwargs), Node, tensors.__getitem__))
        return cast(Tensor, made if self.part is None else made[self.part])


GIVEN, PARAMETER, FOREIGN = "(image)", "(parameter)", "(foreign)"
_OPERATORS = {
    "__truediv__": "div",
    "__rtruediv__": "rdiv",
    "__itruediv__": "div",
    "concat": "cat",
    "__matmul__": "matmul",
}
_READS_VALUES = {"item", "tolist", "__bool__", "__int__", "__float__", "__len__", "numpy", "nonzero", "__index__"}


def plain_name(name: str) -> str:
    """`add` of `add_`, `__add__`, `__radd__` and `__iadd__`; `__getitem__` stays."""
    if name in _OPERATORS:
        return _OPERATORS[name]
    if name.startswith("__") and name not in ("__getitem__", "__setitem__", "__get__"):
        inner = name.strip("_")
        return inner[1:] if inner[:1] in ("r", "i") and inner[1:] in ("add", "mul", "sub", "matmul") else inner
    return name.removesuffix("_") if not name.startswith("__") else name


Passed = dict[str, list[tuple[Any, Any]]]
"""Path of a module -> of each call the arguments and what it gave, nodes in the place of tensors."""


def capture(module: nn.Module, image: Tensor, passed: Passed | None = None) -> tuple[list[Node], Any]:
    """Calls in order, and the node (or structure of nodes) that the module gives. Raises `NotNative`.

    passed: filled in, where it is given.
    """
    listener = _Listener(module, image)

    def note(path: str, given: Any, made: Any) -> None:
        assert passed is not None
        passed.setdefault(path, []).append((listener.replaced(given), listener.replaced(made)))

    hooks = []
    if passed is not None:
        for path, child in module.named_modules():
            hooks.append(child.register_forward_hook(lambda _, given, made, path=path: note(path, given, made)))
    try:
        with torch.no_grad(), listener:
            given = module(image)
    finally:
        for hook in hooks:
            hook.remove()
    return listener.nodes, listener.replaced(given)


class _Listener(TorchFunctionMode):
    def __init__(self, module: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.by_tensor: dict[int, Node] = {}
        self.alive: list[Any] = [image]
        """Everything that was made, so that no two have one id."""
        for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
            self._note(tensor, Node(PARAMETER, lambda: None, (), {}, tuple(tensor.shape), tensor.dtype, path=path))
        held = list[Tensor]()
        for child in module.modules():
            each_of(vars(child), Tensor, held.append)  # tables that were made once; the structure's digest holds them
        for tensor in held:
            if id(tensor) not in self.by_tensor:
                self._note(tensor, _constant(tensor))
        self._note(image, Node(GIVEN, lambda: None, (), {}, tuple(image.shape), image.dtype))

    def _note(self, tensor: Tensor, node: Node) -> None:
        self.nodes.append(node)
        self.by_tensor[id(tensor)] = node
        self.alive.append(tensor)

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.__iter__:
            return iter(self.__torch_function__(Tensor.unbind, types, args))
        raw = getattr(function, "__name__", str(function))
        tensors = list[Tensor]()
        each_of((tuple(args), dict(kwargs)), Tensor, tensors.append)
        heard = any(self._depends(each) for each in tensors)
        if heard and raw in _READS_VALUES:
            raise NotNative(f"{raw} of what depends on the image")
        versions = [_version(each) for each in tensors]
        result = function(*args, **kwargs)
        wrote = [each for each, before in zip(tensors, versions, strict=True) if _version(each) != before]
        made = [
            each for each in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(each, Tensor)
        ]
        if not made or (raw == "__get__" and made[0] is (args[0] if args else None)):
            return result
        inputs = self.replaced(tuple(args)), self.replaced(dict(kwargs))
        for each in wrote if heard else ():
            node = self.by_tensor.get(id(each))
            seen = node is not None and any(user.is_view for user in node.users)
            if node is None or node.name == PARAMETER or node.is_view or seen or each is not made[0]:
                raise NotNative(f"{raw} writes into a part of a tensor")
        name = plain_name(raw)
        several = isinstance(result, (tuple, list))
        for part, tensor in enumerate(made):
            shares = bool(tensors) and not wrote and _same_memory(tensor, tensors[0])
            node = Node(
                name,
                function,
                *inputs,
                tuple(tensor.shape),
                tensor.dtype,
                shares,
                part=part if several else None,
                writes=bool(wrote),
            )
            for given in node.inputs():
                given.users.append(node)
            self._note(tensor, node)
        return result

    def _depends(self, tensor: Tensor) -> bool:
        return id(tensor) in self.by_tensor

    def replaced(self, value: Any) -> Any:
        """Nodes for tensors, all through; a tensor that nobody made here is from elsewhere."""
        return mapped(value, Tensor, self._node_of)

    def _node_of(self, tensor: Tensor) -> Node:
        if id(tensor) not in self.by_tensor:
            self._note(tensor, Node(FOREIGN, lambda: None, (), {}, tuple(tensor.shape), tensor.dtype))
        return self.by_tensor[id(tensor)]


def _constant(tensor: Tensor) -> Node:
    return Node("constant", lambda: tensor, (), {}, tuple(tensor.shape), tensor.dtype)


def each_of(value: Any, kind: type, give: Callable[[Any], None]) -> None:
    """`give` everything of a kind in a structure of tuples, lists and dicts."""
    if isinstance(value, kind):
        give(value)
    elif isinstance(value, (tuple, list)):
        for each in value:
            each_of(each, kind, give)
    elif isinstance(value, dict):
        each_of(list(value.values()), kind, give)


def mapped(value: Any, kind: type | tuple[type, ...], function: Callable[[Any], Any]) -> Any:
    """A structure of tuples, lists and dicts with `function` of everything of a kind in its place."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        made = [mapped(each, kind, function) for each in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if isinstance(value, dict):
        return {key: mapped(each, kind, function) for key, each in value.items()}
    return value


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a is not b and a.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _version(tensor: Tensor) -> int:
    """How often it was written to; of what was made in inference mode nobody counts."""
    return 0 if tensor.is_inference() else tensor._version
