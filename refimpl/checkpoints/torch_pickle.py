"""`data.pkl`: the pickle in which `torch.save` writes the names, shapes and places of weights, read as a list.

A pickle is a program for a stack machine, and the machine of Python imports and calls what the program names. Here no
class and no function ever gets onto the stack: a name becomes a token of a closed table (`torch_values.py`), the call
of a token becomes the description of a tensor, and whatever else a pickle can say is refused at once. What is left
is a format: 31 of the 68 opcodes, and no way to run anything.

Source: CPython's `pickletools`, and files of torch 1.6 to 2.15, protocols 2 to 5.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refimpl.checkpoints.torch_values import (
    GLOBALS,
    HINTS,
    REFUSED_OPCODES,
    Call,
    Dict,
    DType,
    Storage,
    StorageType,
    Tensor,
    Tuple,
    describe,
    how_to_unwrap,
)
from refimpl.checkpoints.weight_file import NAMES, is_tensor_name
from refimpl.errors import CheckpointFormatError, ResourceLimitError, UnsafeCheckpointError, quote

# Enough for 50,000 tensors in a file, each of which takes about 35 opcodes. A model of 20 billion weights has 700.
MAX_OPCODES = 2_000_000
MAX_VALUES = 1_500_000  # parts of tuples, and dictionaries and their entries, which count twice
MAX_MEMO = 1_000_000
MAX_STACK = 100_000
MAX_DEPTH = 8  # of containers in containers; torch needs 3
MAX_GLOBAL = 512  # bytes of the name of a module
MAX_TEXT = 65_536  # bytes

_PROTO = 0x80


def read_state_dict(pickle: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a `data.pkl` by name, in the order of the file.

    Args:
        pickle: the content of the record.
        path: of the file, for messages.

    Raises: UnsafeCheckpointError for anything that could run a program, and for what weights never need;
        CheckpointFormatError for a pickle that is damaged or holds other things than tensors by name;
        ResourceLimitError. All have the attribute `offset`, the byte of the opcode.
    """
    return _Machine(pickle, path).run()


class _Machine:
    """The stack machine: it knows its pickle and nothing outside of it."""

    def __init__(self, pickle: bytes, path: Path):
        self.pickle, self.path = pickle, path
        self.place = self.opcode_at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack; nothing below the last one can be taken
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.values = 0
        self.ended = False

    def run(self) -> dict[str, Tensor]:
        if self.byte() != _PROTO:
            raise self.damaged("a pickle of torch begins with PROTO", found=quote(self.pickle[:1]))
        protocol = self.byte()
        if not 2 <= protocol <= 5:
            raise self.unsafe("torch never writes in this protocol", found=str(protocol), allowed="2 to 5")
        stack, marks, memo = self.stack, self.marks, self.memo
        for _ in range(MAX_OPCODES):
            self.opcode_at = self.place
            opcode = self.byte()
            act = _OPCODES.get(opcode)
            if act is None:
                name = REFUSED_OPCODES.get(opcode, f"0x{opcode:02x}")
                raise self.unsafe(f"the opcode {name} has no place in weights")
            act(self)
            if self.ended:
                return self.result()
            if len(stack) + len(marks) > MAX_STACK or len(memo) > MAX_MEMO or self.values > MAX_VALUES:
                break
        raise self.too_much(
            "more work than the names of weights can be",
            found=f"{len(stack)} values on the stack, {len(memo)} in the memo, {self.values} in all",
            allowed=f"{MAX_STACK}, {MAX_MEMO}, {MAX_VALUES}, and {MAX_OPCODES} opcodes",
        )

    def result(self) -> dict[str, Tensor]:
        if self.place != len(self.pickle):
            raise self.unsafe("behind the end of the pickle lies something else")
        (top,) = self.stack
        if type(top) is not Dict:
            raise self.damaged("the file does not hold tensors by name", found=describe(top))
        for name, value in top.items.items():
            if not is_tensor_name(name):
                raise self.damaged("not the name of a tensor", found=quote(name), allowed=NAMES)
            if type(value) is not Tensor:
                hints = itertools.starmap(how_to_unwrap, top.items.items())
                hint = next(filter(None, hints), None)
                raise self.damaged(f"{quote(name)} is not a tensor", found=describe(value), hint=hint)
        return top.items

    # --- bytes ---------------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        """The next `size` bytes; the length is checked before any memory is used."""
        begin, self.place = self.place, self.place + size
        if self.place > len(self.pickle):
            raise self.damaged(f"the pickle ends where {size} more bytes should follow")
        return self.pickle[begin : self.place]

    def byte(self) -> int:
        """As `number(1)`, in half the time: most of a pickle is such bytes."""
        place = self.place
        if place >= len(self.pickle):
            self.take(1)
        self.place = place + 1
        return self.pickle[place]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def text(self, size: int) -> str:
        raw = self.take(size)
        if size > MAX_TEXT:
            raise self.too_much("a text longer than any name", found=f"{size} bytes", allowed=f"{MAX_TEXT}")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a text is not UTF-8", found=quote(raw[:80])) from error

    def line(self) -> str:
        end = self.pickle.find(b"\n", self.place, self.place + MAX_GLOBAL + 1)
        if end < 0:
            raise self.damaged(f"a name does not end within {MAX_GLOBAL} bytes")
        text = self.text(end - self.place)
        self.place += 1
        return text

    # --- the stack -----------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.damaged("the stack is empty")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise self.damaged("there is no MARK on the stack")
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def seal(self, value: Any) -> int:
        """Notes that a value becomes part of a container.  -> how deep the containers in it are"""
        if type(value) is Dict:
            value.sealed = True
        depth = value.depth if type(value) is Dict or type(value) is Tuple else 0
        if depth >= MAX_DEPTH:
            raise self.too_much("containers in containers", found=f"{depth + 1} deep", allowed=f"{MAX_DEPTH}")
        return depth

    # --- opcodes: constants, the memo ----------------------------------------------------------------

    def stop(self) -> None:
        if self.marks or len(self.stack) != 1:
            raise self.damaged("the pickle ends with other than one value", found=f"{len(self.stack)} values")
        self.ended = True

    def frame(self) -> None:
        size = self.number(8)
        if size > len(self.pickle) - self.place:
            raise self.damaged("a frame is longer than the pickle", found=f"{size} bytes")

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def long(self) -> None:
        size = self.byte()
        if size > 8:
            raise self.unsafe("a whole number of more than 64 bits", found=f"{size} bytes", allowed="8")
        self.push(self.number(size, signed=True))

    def remember(self, index: int) -> None:
        if index in self.memo:
            raise self.unsafe("a place in the memo is used twice", found=str(index))
        value = self.pop()
        self.push(value)
        self.memo[index] = value

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.damaged("nothing is at this place of the memo", found=str(index))
        self.push(self.memo[index])

    # --- opcodes: containers -------------------------------------------------------------------------

    def make_dict(self, ordered: bool = False) -> None:
        self.values += 2
        self.push(Dict(ordered))

    def make_tuple(self, values: list[Any]) -> None:
        self.values += 1 + len(values)
        self.push(Tuple(tuple(values), 1 + max(map(self.seal, values), default=0)))

    def make_small_tuple(self, size: int) -> None:
        self.make_tuple([self.pop() for _ in range(size)][::-1])

    def set_items(self, values: list[Any]) -> None:
        """Sets keys and values, which come by turns, in the dictionary on top of the stack."""
        target = self.pop()
        if type(target) is not Dict:
            raise self.unsafe("an entry is set in what is not a dictionary", found=describe(target))
        if len(values) % 2:
            raise self.damaged("a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                raise self.damaged("a key is not a text", found=describe(key))
            if key in target.items:
                raise self.unsafe(f"the key {quote(key)} is set twice")
            depth = self.seal(value)
            if target.sealed:
                raise self.unsafe("a dictionary contains itself, or is changed when it is part of another")
            target.items[key] = value
            target.depth = max(target.depth, 1 + depth)
        self.values += len(values)
        self.push(target)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    # --- opcodes that would run programs elsewhere ---------------------------------------------------

    def find_global(self, module: str, name: str) -> None:
        token = GLOBALS.get((module, name))
        if token is None:
            raise self.unsafe(
                f"the file names {quote(f'{module}.{name}')}, which is none of the {len(GLOBALS)} names of weights",
                hint=HINTS.get((module, name)) or self.hint() or "Prefer the safetensors file of this model.",
                module=module,
                name=name,
            )
        self.push(token)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise self.unsafe("the name of a global is not a text", found=describe(module))
        self.find_global(module, name)

    def reduce(self) -> None:
        given, call = self.pop(), self.pop()
        if type(call) is not Call or type(given) is not Tuple:
            raise self.unsafe("a call of what cannot be called", found=describe(call))
        match call, given.items:
            case Call.ORDERED_DICT, ():
                self.make_dict(ordered=True)
            case Call.SIZE, (Tuple() as shape,):
                self.whole_numbers(shape)
                self.push(shape)
            case Call.TENSOR, (storage, offset, shape, strides, requires_grad, hooks):
                self.refuse_hooks(hooks)
                self.make_tensor(storage, offset, shape, strides)
                self.check_gradient(self.stack[-1], requires_grad)
            case Call.TENSOR_OF_BYTES, (
                storage,
                offset,
                shape,
                strides,
                requires_grad,
                hooks,
                DType() as dtype,
            ):
                self.refuse_hooks(hooks)
                self.make_tensor(storage, offset, shape, strides, dtype)
                self.check_gradient(self.stack[-1], requires_grad)
            case Call.PARAMETER, (Tensor() as tensor, requires_grad, hooks):
                self.refuse_hooks(hooks)
                self.check_gradient(tensor, requires_grad)
                self.push(tensor)
            case _:
                described = ", ".join(map(describe, given.items[:8]))
                raise self.unsafe(
                    f"{call.value} is called in a way that weights never need",
                    found=f"{len(given.items)} arguments ({described[:300]})",
                )

    def make_tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: DType | None = None
    ) -> None:
        if type(storage) is not Storage or type(offset) is not int:
            raise self.unsafe("a tensor without a storage and an offset", found=describe(storage))
        name = storage.dtype if dtype is None else dtype.name
        if name is None or (dtype is not None and storage.dtype is not None):
            raise self.unsafe(
                "a tensor must have one dtype: its storage's or its own", found=describe(storage)
            )
        shape, strides = self.whole_numbers(shape), self.whole_numbers(strides)
        if len(shape) != len(strides):
            raise self.damaged("a tensor has more dimensions than strides, or fewer")
        self.values += 2
        self.push(Tensor(storage, name, offset, shape, strides))

    def whole_numbers(self, value: Any) -> tuple[int, ...]:
        if type(value) is not Tuple or any(type(number) is not int for number in value.items):
            raise self.unsafe("a shape or strides are not whole numbers", found=describe(value))
        return value.items

    def refuse_hooks(self, hooks: Any) -> None:
        if type(hooks) is not Dict or not hooks.ordered or hooks.items:
            raise self.unsafe("a tensor with hooks: weights have none", found=describe(hooks))

    def check_gradient(self, tensor: Tensor, requires_grad: Any) -> None:
        if type(requires_grad) is not bool or (requires_grad and "float" not in tensor.dtype):
            raise self.unsafe(
                "requires_grad is no truth value, or of whole numbers", found=describe(requires_grad)
            )

    def build(self) -> None:
        """The `_metadata` of a state dict, versions of its modules: read, and forgotten."""
        state, target = self.pop(), self.pop()
        if type(target) is not Dict or type(state) is not Dict or not target.ordered or state is target:
            raise self.unsafe("attributes are set in what has none", found=describe(target))
        if list(state.items) != ["_metadata"]:
            raise self.unsafe("attributes other than _metadata are set", found=quote(list(state.items)[:8]))
        self.seal(state)
        self.push(target)

    def make_storage(self) -> None:
        given = self.pop()
        match given:
            case Tuple(items=("storage", StorageType(dtype=dtype), str() as key, str(), int() as size)) if (
                type(size) is int and size >= 0 and re.fullmatch("[0-9]{1,20}", key)
            ):
                storage = Storage(key, dtype, size)
            case _:
                raise self.unsafe("a reference to what is not a storage", found=describe(given))
        if self.storages.setdefault(key, storage) != storage:
            raise self.unsafe(f"the storage {key} is described in two ways")
        self.values += 2
        self.push(storage)

    # --- errors --------------------------------------------------------------------------------------

    def hint(self) -> str | None:
        """What to do where the outermost dictionary is like the whole state of a training."""
        pairs = zip(self.stack[1:40:2], self.stack[2:40:2], strict=False)
        hints = (how_to_unwrap(name, value) for name, value in pairs if type(name) is str)
        return next(filter(None, hints), None)

    def unsafe(self, what: str, **details: Any) -> UnsafeCheckpointError:
        what = f"data.pkl byte {self.opcode_at}: {what}. Nothing was executed"
        return UnsafeCheckpointError(
            what, where=self.path, offset=self.opcode_at, **{"hint": self.hint(), **details}
        )

    def damaged(self, what: str, **details: Any) -> CheckpointFormatError:
        what = f"data.pkl byte {self.opcode_at}: {what}"
        details = {"hint": self.hint(), "path": self.path, **details}
        return CheckpointFormatError(what, where=self.path, offset=self.opcode_at, **details)

    def too_much(self, what: str, found: str, allowed: str) -> ResourceLimitError:
        what = f"data.pkl byte {self.opcode_at}: {what}"
        return ResourceLimitError(what, where=self.path, found=found, allowed=allowed, offset=self.opcode_at)


_OPCODES: dict[int, Callable[[_Machine], None]] = {
    ord("."): _Machine.stop,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("J"): lambda machine: machine.push(machine.number(4, signed=True)),
    ord("K"): lambda machine: machine.push(machine.byte()),
    ord("M"): lambda machine: machine.push(machine.number(2)),
    0x8A: _Machine.long,
    ord("X"): lambda machine: machine.push(machine.text(machine.number(4))),
    0x8C: lambda machine: machine.push(machine.text(machine.byte())),
    ord("q"): lambda machine: machine.remember(machine.byte()),
    ord("r"): lambda machine: machine.remember(machine.number(4)),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    ord("h"): lambda machine: machine.recall(machine.byte()),
    ord("j"): lambda machine: machine.recall(machine.number(4)),
    ord("}"): _Machine.make_dict,
    ord(")"): lambda machine: machine.make_tuple([]),
    ord("t"): lambda machine: machine.make_tuple(machine.pop_mark()),
    0x85: lambda machine: machine.make_small_tuple(1),
    0x86: lambda machine: machine.make_small_tuple(2),
    0x87: lambda machine: machine.make_small_tuple(3),
    ord("s"): _Machine.set_item,
    ord("u"): lambda machine: machine.set_items(machine.pop_mark()),
    ord("c"): lambda machine: machine.find_global(machine.line(), machine.line()),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.make_storage,
}
