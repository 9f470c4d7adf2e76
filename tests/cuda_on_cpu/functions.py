"""The array functions of the stand-in, with the parameters that CuPy's have (and no others that NumPy knows)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda_on_cpu.arrays import ndarray
from tests.cuda_on_cpu.computing import compute, elementwise, from_host, view_of
from tests.cuda_on_cpu.gpu import wait

#: Names that are NumPy's own objects.
CONSTANTS = (
    *(
        "bool_",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
    ),
    *("float64", "complex64", "complex128", "intp", "dtype", "generic", "number", "integer", "floating"),
    *("inf", "nan", "pi", "e", "newaxis", "finfo", "iinfo", "promote_types", "can_cast", "issubdtype"),
)

_UFUNCS = """
    abs absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_or bitwise_xor cbrt ceil
    copysign cos cosh divide divmod equal exp exp2 expm1 fabs float_power floor floor_divide fmax fmin fmod greater
    greater_equal hypot invert isfinite isinf isnan ldexp left_shift less less_equal log log10 log1p log2 logaddexp
    logaddexp2 logical_and logical_not logical_or logical_xor matmul maximum minimum mod multiply negative not_equal
    positive
    power reciprocal remainder right_shift rint sign signbit sin sinh sqrt square subtract tan tanh true_divide trunc
"""
ELEMENTWISE = _UFUNCS.split()

#: What is computed from the numbers of its arguments: the parameters in CuPy.
COMPUTED = {
    "allclose": "a, b, rtol=1e-05, atol=1e-08, equal_nan=False",
    "array_equal": "a1, a2, equal_nan=False",
    "bincount": "x, weights=None, minlength=None",
    "clip": "a, a_min, a_max, out=None",
    "concatenate": "tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
    "count_nonzero": "a, axis=None",
    "cumprod": "a, axis=None, dtype=None, out=None",
    "diff": "a, n=1, axis=-1, prepend=None, append=None",
    "dot": "a, b, out=None",
    "einsum": "*operands, **kwargs",
    "hstack": "tup, *, dtype=None, casting='same_kind'",
    "isclose": "a, b, rtol=1e-05, atol=1e-08, equal_nan=False",
    "isneginf": "x, out=None",
    "isposinf": "x, out=None",
    "nan_to_num": "x, copy=True, nan=0.0, posinf=None, neginf=None",
    "outer": "a, b, out=None",
    "pad": "array, pad_width, mode='constant', **kwargs",
    "repeat": "a, repeats, axis=None",
    "roll": "a, shift, axis=None",
    "round": "a, decimals=0, out=None",
    "searchsorted": "a, v, side='left', sorter=None",
    "sort": "a, axis=-1, kind=None",
    "stack": "tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
    "take": "a, indices, axis=None, out=None",
    "take_along_axis": "a, indices, axis",
    "tensordot": "a, b, axes=2",
    "tile": "A, reps",
    "trace": "a, offset=0, axis1=0, axis2=1, dtype=None, out=None",
    "tril": "m, k=0",
    "triu": "m, k=0",
    "vstack": "tup, *, dtype=None, casting='same_kind'",
}

#: What gives another view of its first argument.
VIEWS = {
    "broadcast_to": "array, shape",
    "diagonal": "a, offset=0, axis1=0, axis2=1",
    "expand_dims": "a, axis",
    "flip": "a, axis=None",
    "moveaxis": "a, source, destination",
    "permute_dims": "a, axes=None",
    "split": "ary, indices_or_sections, axis=0",
    "array_split": "ary, indices_or_sections, axis=0",
    "squeeze": "a, axis=None",
    "swapaxes": "a, axis1, axis2",
    "transpose": "a, axes=None",
}

#: What the method of that name does.
METHODS = (
    *("all", "any", "argmax", "argmin", "argsort", "cumsum"),
    *("max", "mean", "min", "prod", "ravel", "reshape", "std", "sum", "var"),
)

#: What makes the host wait, since the shape of the answer is known to the device only.
WAITING = {
    "argwhere": "a",
    "flatnonzero": "a",
    "nonzero": "a",
    "unique": "ar, return_index=False, return_inverse=False, return_counts=False, axis=None, *, equal_nan=True",
}


Binder = Callable[[tuple, dict[str, Any]], inspect.BoundArguments]


def _binder(name: str, parameters: str) -> tuple[Binder, inspect.Signature]:
    # The text is a constant of this file.
    signature = inspect.signature(eval(f"lambda {parameters}: None"))

    def bind(args: tuple, options: dict[str, Any]) -> inspect.BoundArguments:
        try:
            return signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"cupy.{name}: {error}") from None

    return bind, signature


def _computed(name: str, parameters: str) -> Callable[..., Any]:
    (bind, signature), function = _binder(name, parameters), getattr(np, name)

    def call(*args: Any, **options: Any) -> Any:
        bound = bind(args, options)
        positional, named = bound.args, dict(bound.kwargs)
        out = named.pop("out", bound.arguments.get("out"))
        if "out" in bound.arguments:  # it is written by `compute`, and NumPy may have it at another place
            place = list(signature.parameters).index("out")
            positional = positional[:place]
        return compute(lambda *given: function(*given, **named), *positional, out=out)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _view(name: str, parameters: str) -> Callable[..., Any]:
    (bind, signature), function = _binder(name, parameters), getattr(np, name)

    def call(*args: Any, **options: Any) -> Any:
        bound = bind(args, options)
        array = _array(bound.args[0])
        hosts = function(array._host, *bound.args[1:], **bound.kwargs)
        if isinstance(hosts, list | tuple):
            return [view_of(array, host) for host in hosts]
        return view_of(array, hosts)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _method(name: str) -> Callable[..., Any]:
    def call(a: Any, *args: Any, **options: Any) -> Any:
        return getattr(_array(a), name)(*args, **options)

    return call


def _waiting(name: str, parameters: str) -> Callable[..., Any]:
    (bind, signature), function = _binder(name, parameters), getattr(np, name)

    def call(*args: Any, **options: Any) -> Any:
        bound = bind(args, options)
        wait()
        return compute(lambda *given: function(*given, **bound.kwargs), *bound.args)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _elementwise(name: str) -> Callable[..., Any]:
    function = getattr(np, name)

    def call(*args: Any, out: Any = None, casting: str = "same_kind", dtype: Any = None) -> Any:
        options = {} if dtype is None else {"dtype": dtype}
        given, into = (args[: function.nin], args[function.nin :]) if out is None else (args, (out,))
        for value in given:
            if isinstance(value, list | tuple):
                raise TypeError(f"Unsupported type {type(value)}")
        out = into[0] if into else None
        return elementwise(function, *given, out=out, **options)

    return call


def _array(value: Any) -> Any:
    if not isinstance(value, ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


# --- what is not made from a table -------------------------------------------------------------------


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> Any:
    if isinstance(obj, ndarray):
        found = obj.astype(obj.dtype if dtype is None else dtype, copy=copy)
        return ascontiguousarray(found) if order == "C" else found
    if _holds_arrays(obj):
        stacked = compute(lambda *parts: np.array(parts), *obj)
        return stacked if dtype is None else stacked.astype(dtype, copy=False)
    return from_host(obj, dtype, order)


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
) -> Any:
    return array(a, dtype, bool(copy), order or "K")


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(v, ndarray) or _holds_arrays(v) for v in value)


def ascontiguousarray(a: Any, dtype: Any = None) -> Any:
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous else compute(np.ascontiguousarray, a)


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)  # type: ignore[call-overload]


def empty(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    return ndarray(shape, dtype, order=order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> Any:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    made = ndarray(shape, dtype, order=order)
    made.fill(fill_value)
    return made


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    return full(shape, 1, dtype, order)


def empty_like(
    prototype: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> Any:
    prototype = _array(prototype)
    return ndarray(prototype.shape if shape is None else shape, prototype.dtype if dtype is None else dtype)


def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> Any:
    made = empty_like(a, dtype, order, subok, shape)
    made.fill(fill_value)
    return made


def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> Any:
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> Any:
    return full_like(a, 1, dtype, order, subok, shape)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Any:
    # Its length has to be known to the host, so an array among the arguments makes it wait.
    bounds = [v.item() if isinstance(v, ndarray) else v for v in (start, stop, step)]
    first, last = (0, bounds[0]) if bounds[1] is None else bounds[:2]
    return compute(lambda: np.arange(first, last, bounds[2], dtype))


def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = float, order: str = "C") -> Any:
    return compute(lambda: np.eye(N, M, k, dtype))


def linspace(
    start: Any,
    stop: Any,
    num: int = 50,
    endpoint: bool = True,
    retstep: bool = False,
    dtype: Any = None,
    axis: int = 0,
) -> Any:
    return compute(lambda: np.linspace(start, stop, num, endpoint, dtype=dtype, axis=axis))


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if (x is None) != (y is None):
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    if x is None:
        return _waiting("nonzero", "a")(condition)
    return compute(np.where, condition, x, y)


def copy(a: Any, order: str = "K") -> Any:
    return _array(a).copy(order)


def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if where is not None:
        raise TypeError("the stand-in copies everything or nothing")
    _array(dst)[...] = src


def broadcast_arrays(*args: Any) -> list[ndarray]:
    shape = np.broadcast_shapes(*(_array(a).shape for a in args))
    return [view_of(a, np.broadcast_to(a._host, shape)) for a in args]


def result_type(*arrays_and_dtypes: Any) -> np.dtype:
    plain = [np.empty(0, v.dtype) if isinstance(v, ndarray) else v for v in arrays_and_dtypes]
    return np.result_type(*plain)


def ndim(a: Any) -> int:
    return a.ndim if isinstance(a, ndarray) else np.ndim(a)


def shape(a: Any) -> tuple[int, ...]:
    return a.shape if isinstance(a, ndarray) else np.shape(a)


def size(a: Any, axis: int | None = None) -> int:
    return a.size if axis is None else a.shape[axis]


def isscalar(element: Any) -> bool:
    return np.isscalar(element)


def may_share_memory(a: Any, b: Any, max_work: int | None = None) -> bool:
    return bool(np.may_share_memory(_array(a)._host, _array(b)._host))


shares_memory = may_share_memory

_WRITTEN_HERE = (
    *(
        array,
        asarray,
        ascontiguousarray,
        asnumpy,
        empty,
        full,
        zeros,
        ones,
        empty_like,
        full_like,
        zeros_like,
    ),
    *(
        ones_like,
        arange,
        eye,
        linspace,
        where,
        copy,
        copyto,
        broadcast_arrays,
        result_type,
        ndim,
        shape,
        size,
    ),
    *(isscalar, may_share_memory),
)


def namespace() -> dict[str, Any]:
    """name -> what `cupy` has under that name, arrays and array functions only."""
    names: dict[str, Any] = {name: getattr(np, name) for name in CONSTANTS}
    names |= {name: _elementwise(name) for name in ELEMENTWISE}
    names |= {name: _computed(name, parameters) for name, parameters in COMPUTED.items()}
    names |= {name: _view(name, parameters) for name, parameters in VIEWS.items()}
    names |= {name: _waiting(name, parameters) for name, parameters in WAITING.items()}
    names |= {name: _method(name) for name in METHODS}
    names |= {function.__name__: function for function in _WRITTEN_HERE}
    names |= {"concat": names["concatenate"], "amax": names["max"], "amin": names["min"]}
    return names | {"ndarray": ndarray, "shares_memory": may_share_memory}
