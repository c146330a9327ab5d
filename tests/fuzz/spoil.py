"""Faults put into a good call: what is wrong, and which error must name it."""

from __future__ import annotations

import inspect
from decimal import Decimal

import numpy as np
from cases import DTYPES

import numba_ce as nc

INF, NAN = np.inf, np.nan
ARRAYS = (
    "logits",
    "targets",
    "class_weight",
    "sample_weight",
    "record",
    "a",
    "b",
    "hidden",
    "weight",
    "bias",
    "X",
    "y",
)
BIG = 10**400
# Their logits may be of integers, and their axes several
NORMALIZING = ("logsumexp", "softmax", "log_softmax")


class Spoiler:
    """Each method puts one fault in and returns (exceptions, pattern), or None if it cannot."""

    def __init__(self, rng, arenas, call):
        self.rng, self.arenas, self.call = rng, arenas, call
        self.arguments = call.arguments

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def spoil(self):
        """One fault; the pattern of its message, with the exceptions that may carry it."""
        faults = [name for name in dir(self) if name.startswith("bad_")]
        while True:
            fault = getattr(self, self.one_of(*faults))()
            if fault is not None:
                return fault

    def array(self, name):
        """An argument as an ordinary array."""
        return np.asarray(self.arguments[name])

    def has(self, *names):
        return all(name in self.arguments for name in names)

    def takes(self, name):
        return name in inspect.signature(getattr(nc, self.call.function)).parameters

    # ------------------------------------------------------------ arrays

    def bad_dtype(self):
        present = [n for n in ARRAYS if self.has(n)]
        name = self.one_of(*present)
        dtypes = [np.longdouble, complex, object, "U3", "M8[s]", [("a", "f4"), ("b", "f4")]]
        normalizes = self.call.function in NORMALIZING
        if not (name == "logits" and normalizes):
            dtypes += [bool]
        if name not in ("targets", "y", "class_weight", "sample_weight") and not normalizes:
            dtypes += [np.int64, np.uint8]
        old = self.array(name)
        self.arguments[name] = np.zeros(old.shape, self.one_of(*dtypes))
        return TypeError, rf"\b{name}\b.* dtype "

    def bad_masked(self):
        name = self.one_of(*[n for n in ARRAYS if self.has(n)])
        self.arguments[name] = np.ma.masked_array(self.array(name))
        return TypeError, rf"\b{name}\b is a MaskedArray"

    def bad_logits(self):
        if not self.has("logits") or self.call.function == "stream":
            return None
        if isinstance(self.arguments.get("axis"), tuple | None) and "axis" in self.arguments:
            return None
        self.arguments["logits"] = self.one_of(np.float32(1), np.array(2.0), 3.5)
        return ValueError, "logits are 0-dimensional"

    def bad_ragged(self):
        name = self.one_of(*[n for n in ARRAYS if self.has(n)])
        if self.call.function == "stream":
            return None
        self.arguments[name] = [[1.0], [1.0, 2.0]]
        return (ValueError, TypeError), name

    def bad_name(self):
        self.arguments["temprature"] = 2.0
        return (
            TypeError,
            rf"{self.call.function}\(\) got an unexpected keyword argument 'temprature'",
        )

    def bad_axis(self):
        if self.call.function == "multinomial_objective" or not self.has("logits"):
            return None
        ndim = np.ndim(self.arguments["logits"])
        if self.rng.random() < 0.3:
            wrong = [1.0, "a", [0], np.array([0, 1]), 1j, NAN]
            if self.call.function not in NORMALIZING:
                wrong += [None, (0,), ()]
            self.arguments["axis"] = self.one_of(*wrong)
            return TypeError, "axis = .*: expected an integer"
        far = self.one_of(ndim, -ndim - 1, 2**31, -(2**31) - 1, 2**63, 10**30, -(10**30))
        self.arguments["axis"] = far
        return np.exceptions.AxisError, f"axis {far} is out of bounds"

    def bad_length(self):
        present = [n for n in ("class_weight", "sample_weight", "bias") if self.has(n)]
        if not present:
            return None
        name = self.one_of(*present)
        old = self.array(name)
        shape = (
            (*old.shape, 2)
            if old.ndim == 0 or self.rng.random() < 0.3
            else (*old.shape[:-1], old.shape[-1] + int(self.rng.integers(1, 3)))
        )
        self.arguments[name] = np.ones(shape, np.float32 if name != "bias" else old.dtype)
        return ValueError, rf"\b{name} has shape"

    def bad_targets_shape(self):
        if not self.has("targets"):
            return None
        old, shape = self.array("targets"), self.array("targets").shape
        new = [(*shape, 3, 1), (2, *shape, 7)]
        if shape:
            new.append((*shape[:-1], shape[-1] + 1))
        self.arguments["targets"] = np.zeros(self.one_of(*new), old.dtype)
        return (ValueError, TypeError), "targets"

    def bad_one_hot(self):
        if not self.has("targets", "logits") or self.call.function == "row_record":
            return None
        logits = self.array("logits")
        self.arguments["targets"] = np.zeros(logits.shape, self.one_of(np.int8, np.uint64))
        return ValueError, "targets are integers of the shape"

    def bad_float_indices(self):
        if not self.has("targets") or self.array("targets").dtype.kind not in "iu":
            return None
        targets = self.array("targets")
        self.arguments["targets"] = targets.astype(DTYPES[self.rng.integers(4)])
        return TypeError, r"\b(targets|y) have dtype .*integers"

    def bad_index(self):
        name = "y" if self.has("y") else "targets"
        if not self.has(name) or self.array(name).dtype.kind not in "iu":
            return None
        targets = np.array(self.array(name), order="C")
        shards = self.call.part != (0, 0) or "class_offset" in self.arguments
        if targets.size == 0 or self.arguments.get("check_targets") is False or shards:
            return None
        n_classes = self.arguments.get("n_classes")
        if self.has("weight"):
            n_classes = len(self.array("weight"))
        elif self.has("logits"):
            n_classes = self.call.plain["logits"].shape[-1]
        info = np.iinfo(targets.dtype)
        wild = (n_classes, -1, info.max, info.min, 2**31, 2**62)
        ignored = self.arguments.get("ignore_index", -100)
        fits = [
            v for v in wild if info.min <= v <= info.max and not 0 <= v < n_classes and v != ignored
        ]
        if not fits:
            return None
        flat, value = targets.reshape(-1), self.one_of(*fits)
        flat[self.rng.integers(flat.size)] = value
        self.arguments[name] = targets
        return ValueError, rf"(targets|y).* = {value} is not a class index"

    # ------------------------------------------------------------ options

    def option(self, name, out_of_range, of_wrong_type):
        if not self.takes(name):
            return None
        if not out_of_range or self.rng.random() < 0.5:
            self.arguments[name] = self.one_of(*of_wrong_type)
            return TypeError, rf"\b{name} = "
        self.arguments[name] = self.one_of(*out_of_range)
        return ValueError, rf"\b{name} (= |is an integer beyond)"

    TYPES = (None, "a", b"a", True, np.bool_(True), 1j, [0.5], np.array(0.5), Decimal("0.5"))

    def bad_smoothing(self):
        return self.option("label_smoothing", (-0.1, 1.5, NAN, INF, -1, 2, BIG), self.TYPES)

    def bad_z_loss(self):
        return self.option(
            "z_loss", (-1e-9, NAN, INF, -INF, -BIG, BIG, np.float16(INF)), self.TYPES
        )

    def bad_softcap(self):
        return self.option("softcap", (0, -1.0, NAN, INF, BIG), self.TYPES[1:])

    def bad_temperature(self):
        return self.option("temperature", (0.0, -1.0, NAN, INF, -INF, BIG), self.TYPES)

    def bad_scale(self):
        """Beyond what the kernels can hold."""
        empty = self.has("logits") and 0 in self.array("logits").shape
        if self.call.function not in ("cross_entropy", "cross_entropy_and_grad") or empty:
            return None
        name, value = self.one_of("temperature", "softcap"), self.one_of(1e-310, 1e305)
        self.arguments[name] = value
        return ValueError, rf"\b{name} = .* on the CPU"

    def bad_ignore_index(self):
        if not self.takes("ignore_index"):
            return None
        self.arguments["ignore_index"] = self.one_of(
            1.5, "a", True, [1], np.array([1, 2]), np.array(1.5), NAN, np.float64(1)
        )
        return TypeError, "ignore_index = "

    def bad_check_targets(self):
        wrong = (0, 1, None, "yes", np.int8(1), 0.0)
        return self.option("check_targets", (), wrong)

    def bad_choice(self):
        name = {
            "cross_entropy": "reduction",
            "cross_entropy_and_grad": "reduction",
            "cross_entropy_grad_and_hess": "hess",
            "stream": "reduction",
            "linear_cross_entropy": "reduction",
            "linear_cross_entropy_and_grad": "reduction",
        }.get(self.call.function)
        if name is None:
            return None
        self.arguments[name] = self.one_of(
            "", "Mean", "all", None, 1, b"mean", ["mean"], np.ones(2)
        )
        return ValueError, f"{name} = .*: expected"

    def bad_integer(self):
        names = {
            "row_record": ("class_offset", "n_classes"),
            "grad_from_record": ("class_offset",),
            "linear_cross_entropy": ("chunk_rows",),
            "linear_cross_entropy_and_grad": ("chunk_rows",),
            "multinomial_objective": ("n_classes",),
        }.get(self.call.function)
        if names is None:
            return None
        name = self.one_of(*names)
        if self.rng.random() < 0.4:
            self.arguments[name] = self.one_of(1.0, "a", 1j, [1], np.array([1, 2]), NAN)
            return TypeError, rf"\b{name} = "
        low = self.one_of(-1, -(2**70))
        if name == "class_offset":
            if self.call.function == "grad_from_record" and self.array("record").size == 0:
                return None
            low = self.one_of(low, 2**70, 5000)
        self.arguments[name] = low
        return ValueError, rf"\b{name} = {low}"

    # ------------------------------------------------------------ outputs

    def outputs(self):
        """The name of the argument, and the names and values of its arrays."""
        name = {
            "cross_entropy_and_grad": "out",
            "grad_from_record": "out",
            "softmax": "out",
            "log_softmax": "out",
            "cross_entropy_grad_and_hess": "out",
        }.get(self.call.function)
        if name is None or not isinstance(self.arguments["logits"], np.ndarray):
            return None
        logits = self.arguments["logits"]
        if self.call.function == "cross_entropy_grad_and_hess":
            pair = [np.full(logits.shape, 7, self.call.dtype) for _ in range(2)]
            return name, [f"{name}[0]", f"{name}[1]"], pair
        return name, [name], [np.full(logits.shape, 7, self.call.dtype)]

    def replace(self, values, at, new):
        values[at] = new
        self.arguments["out"] = tuple(values) if len(values) > 1 else values[0]

    def bad_out(self):
        made = self.outputs()
        if made is None:
            return None
        _, names, values = made
        at = int(self.rng.integers(len(values)))
        name, old = names[at].replace("[", r"\[").replace("]", r"\]"), values[at]
        fault = self.one_of("type", "dtype", "shape", "read-only", "itself", "logits")
        if fault == "type":
            new = self.one_of(old.tolist(), np.ma.masked_array(old), "x", 3, object())
            self.replace(values, at, new)
            return TypeError, f"{name} is a .*: expected a NumPy array"
        if fault == "dtype":
            other = [d for d in (*DTYPES, np.dtype(int), np.dtype(object)) if d != old.dtype]
            if old.itemsize == 2:
                other = [d for d in other if d != np.float32]
            self.replace(values, at, np.zeros(old.shape, self.one_of(*other)))
            return ValueError, f"{name} has dtype"
        if fault == "shape":
            self.replace(values, at, np.zeros((*old.shape, 1), old.dtype))
            return ValueError, f"{name} has shape"
        if fault == "read-only":
            old.flags.writeable = False
            self.replace(values, at, old)
            return ValueError, f"{name} is read-only"
        if old.size < 2:
            return None
        if fault == "itself":
            new = np.lib.stride_tricks.as_strided(
                np.zeros(old.size + 8, old.dtype), old.shape, (0,) * old.ndim
            )
            self.replace(values, at, new)
            return ValueError, f"{name} has strides .*overlap"
        # Shifted by one element, or backwards, over the memory of the logits
        memory = np.zeros(old.size + 1, old.dtype)
        logits = memory[:-1].reshape(old.shape)
        logits[...] = self.array("logits")
        new = memory[1:].reshape(old.shape)
        if self.rng.random() < 0.5:
            new = logits[(slice(None, None, -1),) * old.ndim]
            if new.strides == logits.strides:
                return None
        self.arguments["logits"] = logits
        self.replace(values, at, new)
        return ValueError, f"{name} overlaps logits"

    def bad_pair(self):
        if self.call.function != "cross_entropy_grad_and_hess":
            return None
        same = np.zeros(self.array("logits").shape, self.call.dtype)
        self.arguments["out"] = self.one_of(same, (same,), [same] * 3, "ab", 1, {1: 2, 3: 4})
        return TypeError, "out is a .*: expected a pair"

    def bad_overlap(self):
        """An output in the memory of another argument."""
        made = self.outputs()
        if made is None or not self.takes("sample_weight") or self.array("logits").size == 0:
            return None
        _, names, values = made
        logits = self.array("logits")
        memory = np.ones(logits.size, self.call.dtype)
        rows = np.delete(logits.shape, self.call.axis)
        self.arguments["sample_weight"] = memory[: int(np.prod(rows))].reshape(rows)
        self.replace(values, 0, memory.reshape(logits.shape))
        return ValueError, rf"{names[0].split('[')[0]}.* overlaps sample_weight"

    def bad_probabilities(self):
        if self.call.function != "row_stats":
            return None
        self.arguments["targets"] = np.ones(self.array("logits").shape)
        self.arguments.pop("ignore_index", None)  # another fault beside probabilities
        return TypeError, "targets are probabilities"

    def bad_penalty(self):
        if self.call.function != "multinomial_objective":
            return None
        self.arguments["l2"] = self.one_of(-1.0, NAN, INF, "a", None, [1.0], np.ones(2))
        return (TypeError, ValueError), "l2 = "

    def bad_parts(self):
        if self.call.function not in ("merge_records", "loss_from_record"):
            return None
        if self.has("record") or self.rng.random() < 0.5:
            name = "record" if self.has("record") else self.one_of("a", "b")
            self.arguments[name] = self.one_of(np.zeros(8), np.zeros((2, 10)), np.float64(1))
            return ValueError, f"{name} has shape"
        self.arguments |= {"a": np.zeros((2, 9)), "b": np.zeros((3, 9))}
        return ValueError, "a has shape .* and b"

    def bad_record(self):
        if self.call.function != "grad_from_record":
            return None
        record = np.array(self.array("record"))
        if self.rng.random() < 0.4:
            self.arguments["record"] = self.one_of(
                record[..., :-1], record[None], record.ravel()[:9]
            )
            if self.arguments["record"].shape == record.shape:
                return None
            return ValueError, "record has shape"
        if record.size == 0:
            return None
        record[..., 8] = self.one_of(NAN, INF, -1.0, 0.0, 1e300, 2.0**54)
        self.arguments["record"] = record
        return ValueError, "record names .* classes"
