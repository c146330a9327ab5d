"""Calls of the public functions with arguments that must be accepted, drawn from a seed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from cases import DTYPES, TARGET_DTYPES

import numba_ce as nc

from .calls import F32, F64, Call, Lender, may_be_written

INF, NAN = np.inf, np.nan

#: function -> how often it is drawn
WEIGHTS = {
    "cross_entropy": 20,
    "cross_entropy_and_grad": 36,
    "cross_entropy_grad_and_hess": 8,
    "row_stats": 6,
    "softmax": 5,
    "log_softmax": 5,
    "logsumexp": 5,
    "row_record": 5,
    "grad_from_record": 5,
    "merge_records": 2,
    "loss_from_record": 1,
    "linear_cross_entropy": 1,
    "linear_cross_entropy_and_grad": 2,
    "stream": 1,
    "multinomial_objective": 1,
}
_NAMES = tuple(WEIGHTS)
_SHARES = np.cumsum(list(WEIGHTS.values())) / sum(WEIGHTS.values())


class Maker:
    """Draws calls for one flavour."""

    def __init__(self, rng, arenas, flavour):
        self.rng, self.arenas, self.flavour = rng, arenas, flavour
        self.arrays_only = False  # `stream` takes a list as blocks

    def chance(self, probability):
        return self.rng.random() < probability

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def call(self):
        name = _NAMES[int(np.searchsorted(_SHARES, self.rng.random(), "right"))]
        if name.startswith("linear"):
            return self.linear(name)
        if name == "multinomial_objective":
            return self.objective()
        if name in ("merge_records", "loss_from_record"):
            return self.records(name)
        if name in ("softmax", "log_softmax", "logsumexp"):
            return self.normalize(name)
        return self.problem(name)

    # ------------------------------------------------------------ arrays

    def put(self, values, name, shared=True):
        """An argument: in some layout, or of some type that NumPy turns into an array."""
        if (
            not self.arrays_only
            and self.chance(0.06)
            and (values.dtype == F64 or values.dtype.kind in "iu")
        ):
            like = np.asarray(values.tolist())  # uint64 beside smaller numbers makes floats
            if values.size and like.dtype.kind == ("f" if values.dtype == F64 else "i"):
                return values.tolist(), values
        if values.ndim == 0 and self.chance(0.5):
            return values[()], values
        view = self.arenas.put(self.rng, values, name, shared, plain=self.chance(0.2))
        passed = view.view()
        if values.ndim == 2 and self.chance(0.03):
            passed = view.view(np.matrix)
        elif self.chance(0.03):
            passed = view.view(np.recarray if self.chance(0.5) else np.memmap)
        if self.chance(0.2):
            passed.flags.writeable = False
        if not self.arrays_only and self.chance(0.03):
            passed = Lender(passed)
        return passed, np.array(view, dtype=view.dtype.newbyteorder("="), order="C")

    def shape(self):
        """Shape of the rows, and a number of classes."""
        rng, draw = self.rng, self.rng.random()
        if draw < 0.62:
            n_classes = int(rng.integers(1, 41))
        elif draw < 0.94:
            n_classes = int(rng.integers(41, 300))
        elif draw < 0.97:
            n_classes = 256 + int(rng.integers(-2, 20))
        else:
            n_classes = 1024 * int(rng.integers(1, 3)) + int(rng.integers(-17, 18))
        most = max(1, min(64, 4000 // n_classes))
        n_rows = int(rng.integers(1, most + 1))
        if self.chance(0.002):
            n_classes, n_rows = int(rng.integers(200, 330)), int(rng.integers(200, 340))
        if self.chance(0.03):
            n_rows = 0
        if self.chance(0.01):
            n_classes = 0
        draw = rng.random()
        if draw < 0.55:
            rows = (n_rows,)
        elif draw < 0.65:
            rows, n_classes = (), max(n_classes, 0)
        else:
            inner = int(rng.choice([1, 2, 3, 16, 17]))
            rows = (-(-n_rows // inner), inner)
            if draw > 0.88:
                rows = (*rows, int(rng.choice([1, 2])))
            rows = tuple(int(n) for n in rng.permutation(rows))
        return rows, n_classes

    def logits(self, shape, dtype=None):
        """Values of one of several families, some of them spoilt."""
        rng, dtype = self.rng, dtype or self.flavour.dtype
        scale = self.one_of(0.0, 1.0, 1.0, 4.0, 30.0)
        z = scale * rng.standard_normal(shape)
        if self.chance(0.2):
            z += self.one_of(1e4, -1e4, 300.0, -80.0)
        if self.chance(0.1):
            z = np.round(z)  # equal maxima
        if self.chance(0.05):
            largest = {"float16": 3e4, "float64": 1e150}.get(dtype.name, 1e30)
            z = z * (largest / max(scale, 1.0) / 16)
        if self.chance(0.3) and z.size:
            flat = z.reshape(-1)
            for _ in range(int(rng.integers(1, 5))):
                flat[rng.integers(flat.size)] = self.one_of(-INF, -INF, -INF, INF, NAN, 0.0, -0.0)
        if self.chance(0.1):
            z[rng.random(shape) < 0.7] = -INF
        if self.chance(0.03) and z.ndim:
            z[..., : z.shape[-1] // 2 + 1] = -INF
        return z.astype(dtype)

    def indices(self, rows, n_classes, ignored):
        """Class indices of some integer dtype that can hold them."""
        rng = self.rng
        y = rng.integers(0, max(n_classes, 1), rows)
        fits = [d for d in map(np.dtype, TARGET_DTYPES) if n_classes - 1 <= np.iinfo(d).max]
        dtype = fits[rng.integers(len(fits))]
        y = np.array(y, dtype)
        info = np.iinfo(dtype)
        if ignored is not None and info.min <= ignored <= info.max and y.size and self.chance(0.6):
            flat = y.reshape(-1)
            flat[rng.random(flat.size) < self.one_of(0.1, 0.5, 1.0)] = ignored
        return y

    def bad_index(self, dtype, n_classes, ignored):
        """A number that is no class and not ignored, or None."""
        info = np.iinfo(dtype)
        wild = [n_classes, n_classes + 1, -1, -2, info.max, info.min, 2**31, 2**32 + 1, 2**63]
        fits = [
            v for v in wild if info.min <= v <= info.max and not 0 <= v < n_classes and v != ignored
        ]
        return fits[self.rng.integers(len(fits))] if fits else None

    def weights(self, shape):
        """Weights of any float or integer dtype; those of either sign have exact sums."""
        rng = self.rng
        if self.chance(0.15):
            return rng.integers(0, 4, shape).astype(self.one_of("i8", ">i2", "u1"))
        if self.chance(0.5):
            w = rng.uniform(0.25, 2.0, shape)
        else:
            w = rng.choice([0.0, 0.5, 1.0, -2.0, 1.5], shape)
        w, dtype = np.array(w), DTYPES[rng.integers(4)]
        if w.size and self.chance(0.04):
            w.reshape(-1)[rng.integers(w.size)] = self.one_of(NAN, INF, -INF, 1e308, -1e308, 1e-320)
            self.call_made.unchecked = True
        with np.errstate(all="ignore"):
            return w.astype(dtype)

    def number(self, value):
        """A number of one of the types that stand for it."""
        kinds = [float, np.float64]
        if float(np.float32(value)) == value:
            kinds += [np.float32, Fraction]
        if value == int(value):
            kinds += [int, np.int16]
        return kinds[self.rng.integers(len(kinds))](value)

    # ------------------------------------------------------------ problems

    def options(self, call, n_classes):
        """The options that the flavour has, and some that are the same for every kernel."""
        flavour, arguments, plain = self.flavour, call.arguments, call.plain
        drawn = {}
        if flavour.smoothing:
            drawn["label_smoothing"] = self.one_of(0.1, 0.5, 1.0)
        if flavour.tempered:
            drawn["temperature"] = self.one_of(0.7, 2.0, 0.0625, 30.0)
        if flavour.softcap:
            drawn["softcap"] = self.one_of(3.0, 30.0, 0.5)
        if self.chance(0.2):
            drawn["z_loss"] = self.one_of(0.0, 0.5, 1e-2)
        plain.update(drawn)
        arguments.update({k: self.number(v) for k, v in drawn.items()})
        if not flavour.softcap and self.chance(0.1):
            arguments["softcap"] = None
        for name, value in {"label_smoothing": 0, "temperature": 1}.items():
            if name not in drawn and self.chance(0.1):
                arguments[name] = self.number(value)
        if self.chance(0.2):
            w = self.weights((n_classes,))
            arguments["class_weight"], w = self.put(w, "class_weight")
            plain["class_weight"] = w.astype(np.float64)

    def problem(self, name):
        """A call of a function of logits and targets."""
        rng, flavour = self.rng, self.flavour
        record = name in ("row_record", "grad_from_record")
        boosting, stats = name == "cross_entropy_grad_and_hess", name == "row_stats"
        rows, n_classes = self.shape()
        self.arrays_only = name == "stream"
        if name == "stream" and not rows:
            rows = (3,)
        call = self.call_made = Call(name, {}, {}, dtype=flavour.dtype)
        arguments, plain = call.arguments, call.plain
        call.axis = axis = int(rng.integers(len(rows) + 1)) if self.chance(0.5) else len(rows)
        if axis != len(rows) or self.chance(0.2):
            arguments["axis"] = axis if self.chance(0.5) else axis - len(rows) - 1

        z = self.logits((*rows, n_classes))
        first, last = 0, n_classes
        if record:
            first, last = sorted(int(n) for n in rng.integers(0, n_classes + 1, 2))
            call.part = first, last
            arguments["class_offset"] = first
        shard = np.ascontiguousarray(np.moveaxis(z[..., first:last], -1, axis))
        arguments["logits"], shard = self.put(shard, "logits", name != "stream")
        z = np.array(z, np.float64)
        z[..., first:last] = np.moveaxis(shard, axis, -1)
        plain["logits"] = z

        kind = None if stats else flavour.probabilities
        ignored = -100
        if not boosting and kind is None and self.chance(0.4):
            ignored = self.one_of(None, 0, 1, n_classes, -1, 255, 2**64 - 1, 2**70, -(2**63))
            arguments["ignore_index"] = plain["ignore_index"] = ignored
        elif boosting:
            ignored = None
        if kind is None:
            y = self.indices(rows, n_classes, ignored)
            spoil = not boosting and not stats and self.chance(0.1) and y.size
            bad = self.bad_index(y.dtype, n_classes, ignored) if spoil else None
            if bad is not None:
                y.reshape(-1)[rng.integers(y.size)] = bad
            arguments["targets"], plain["targets"] = self.put(y, "targets")
            if bad is not None or (not boosting and not stats and self.chance(0.1)):
                arguments["check_targets"] = plain["check_targets"] = False
        else:
            t = rng.gamma(0.5, size=(*rows, n_classes))
            t /= np.maximum(t.sum(axis=-1, keepdims=True), 1e-3)
            t[rng.random(t.shape) < 0.2] = 0.0
            t = t.astype(kind)
            part = np.ascontiguousarray(np.moveaxis(t[..., first:last], -1, axis))
            arguments["targets"], part = self.put(part, "targets")
            plain["targets"] = t.astype(np.float64)
            plain["targets"][..., first:last] = np.moveaxis(part, axis, -1)
            if not boosting and self.chance(0.2):
                arguments["ignore_index"] = self.one_of(None, -100)
        if not boosting and not stats:
            self.options(call, last - first)
            if record and "class_weight" in plain:
                w = np.array(self.weights((n_classes,)), np.float64)
                w[first:last] = plain["class_weight"]
                plain["class_weight"] = w
        if not stats and self.chance(0.25):
            s = self.weights(rows)
            arguments["sample_weight"], s = self.put(s, "sample_weight")
            plain["sample_weight"] = s.astype(np.float64)
        reduces = name in ("cross_entropy", "cross_entropy_and_grad", "stream")
        if reduces and self.chance(0.7):
            arguments["reduction"] = plain["reduction"] = self.one_of("none", "sum", "mean")
        if boosting and self.chance(0.7):
            kinds = ("diagonal", "xgboost", "lightgbm")
            arguments["hess"] = plain["hess"] = self.one_of(*kinds)
        if stats and self.chance(0.3):
            del arguments["targets"], plain["targets"]
        if name == "row_record":
            arguments["n_classes"] = n_classes
        if name == "grad_from_record":
            self.record(call)
        self.out(call, shard.shape)
        if n_classes == 0 and (0 not in rows or name == "row_record"):
            call.allowed = [(ValueError, "logits|n_classes|record")]
        return call

    def record(self, call):
        """The record of the whole rows."""
        whole = {k: v for k, v in call.plain.items() if k != "reduction"}
        n_classes = whole["logits"].shape[-1]
        record = np.zeros((*whole["logits"].shape[:-1], 9))
        if n_classes:
            # In the dtype of the logits: where it is float32, a soft cap rounds the target's logit
            with nc.use_backend("cpu"), np.errstate(all="ignore"):
                whole["logits"] = whole["logits"].astype(call.dtype)
                record = nc.row_record(**whole, class_offset=0, n_classes=n_classes)
        call.arguments["record"], _ = self.put(record, "record", shared=False)

    def out(self, call, shape):
        """Sometimes an array to write to: separate, or the logits themselves."""
        flavour, name = self.flavour, call.function
        names = {
            "cross_entropy_and_grad": ["out"],
            "grad_from_record": ["out"],
            "softmax": ["out"],
            "log_softmax": ["out"],
            "stream": ["grad_out"],
            "cross_entropy_grad_and_hess": ["out[0]", "out[1]"],
        }.get(name)
        other = flavour.out not in (None, flavour.dtype) and name != "stream"
        if names is None or not (other or self.chance(0.6)):
            return
        dtypes = [flavour.out or flavour.dtype, flavour.hess or flavour.dtype]
        if name == "stream":
            dtypes = [flavour.dtype]
        logits, made = call.arguments["logits"], []
        in_place = int(self.rng.integers(len(names))) if self.chance(0.25) else -1
        in_place = -1 if name == "stream" else in_place
        for i, (which, dtype) in enumerate(zip(names, dtypes, strict=False)):
            if i == in_place and may_be_written(logits):
                made.append(logits)
                continue
            old = np.full(shape, 7, dtype)
            out = self.arenas.put(self.rng, old, which, plain=self.chance(0.3))
            made.append(out.view(np.matrix) if out.ndim == 2 and self.chance(0.03) else out)
        call.arguments[names[0].split("[")[0]] = made[0] if len(made) == 1 else tuple(made)

    def normalize(self, name):
        """A call of softmax, log_softmax or logsumexp."""
        rows, n_classes = self.shape()
        call = Call(name, {}, {}, dtype=self.flavour.dtype)
        axis = int(self.rng.integers(len(rows) + 1)) if self.chance(0.5) else len(rows)
        z = np.moveaxis(self.logits((*rows, n_classes)), -1, axis)
        call.arguments["logits"], z = self.put(np.ascontiguousarray(z), "logits")
        call.plain["logits"] = np.array(np.moveaxis(z, axis, -1), np.float64, order="C")
        call.axis = axis
        if axis != len(rows) or self.chance(0.2):
            axis -= len(rows) + 1
            choices = [axis, axis, (axis,)] if rows else [axis, (axis,), None]
            call.arguments["axis"] = choices[self.rng.integers(3)]
        if name == "logsumexp":
            if self.chance(0.3):
                call.arguments["keepdims"] = bool(self.chance(0.5))
        else:
            self.out(call, z.shape)
        return call

    # ------------------------------------------------------------ the linear layer

    def linear(self, name):
        """A call of the linear layer, whose results are compared between the backends."""
        rng = self.rng
        dtype = self.one_of(F32, F64)
        n, d, c = int(rng.integers(0, 40)), int(rng.integers(0, 9)), int(rng.integers(1, 40))
        call = self.call_made = Call(name, {}, {}, dtype=dtype)
        for key, shape in {"hidden": (n, d), "weight": (c, d), "bias": (c,)}.items():
            if key != "bias" or self.chance(0.5):
                values = rng.standard_normal(shape).astype(dtype)
                call.arguments[key], call.plain[key] = self.put(values, key)
        y = self.indices((n,), c, None)
        call.arguments["targets"], _ = self.put(y, "targets")
        if self.chance(0.3):
            s = self.weights((n,))
            call.arguments["sample_weight"], _ = self.put(s, "sample_weight")
        if self.chance(0.5):
            call.arguments["chunk_rows"] = self.one_of(None, 1, 7, np.int64(16), 10**6)
        call.arguments["reduction"] = self.one_of("sum", "none", "mean")
        if self.chance(0.3):
            call.arguments["z_loss"] = self.number(0.5)
        return call

    def objective(self):
        """A call of `multinomial_objective`; the judge calls what it returns."""
        rng = self.rng
        n, d, c = int(rng.integers(1, 40)), int(rng.integers(0, 9)), int(rng.integers(1, 20))
        call = Call("multinomial_objective", {"n_classes": c}, {}, dtype=F64)
        X = rng.standard_normal((n, d)).astype(self.one_of(F32, F64))
        call.arguments["X"], call.plain["X"] = self.put(X, "X")
        call.arguments["y"], _ = self.put(self.indices((n,), c, None), "y")
        if self.chance(0.5):
            call.arguments["l2"] = self.number(0.5)
        return call

    def records(self, name):
        """A call of what is done with records."""
        n, c = int(self.rng.integers(0, 20)), int(self.rng.integers(2, 30))
        call = Call(name, {}, {"logits": self.logits((n, c), F64)})
        z, y = call.plain["logits"], self.indices((n,), c, None)
        call.plain["targets"] = y
        cut = int(self.rng.integers(1, c)) if name == "merge_records" else c
        for key, first, last in (("a", 0, cut), ("b", cut, c)):
            key = key if name == "merge_records" else "record"
            if first < last:
                shard = nc.row_record(z[:, first:last], y, class_offset=first, n_classes=c)
                call.arguments[key], _ = self.put(shard, key, shared=False)
        return call
