"""What is compiled into the caller's function: it lists the numbers of a call, and calls `enter`.

All that is typed and lowered for a call is one intrinsic, so that the caller's function compiles
fast. What Numba's documented interface has no word for is in this file.
"""

from functools import lru_cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_ce.integrations.numba.call import AT, OPERATIONS, SYMBOL, Slots
from numba_ce.integrations.numba.stamp import STAMP, Stamp

I64, F64 = ir.IntType(64), ir.DoubleType()
#: status, result, a, b, c, d, x, has_ignore_index, ignore_index
RESULT = types.Tuple(
    [types.int64, types.float64] + [types.int64] * 4 + [types.float64] + [types.int64] * 2
)
OPTIONS = ("label_smoothing", "ignore_index", "z_loss", "softcap", "temperature", "check_targets")


def absent(ty):
    """Whether an argument of a type is None."""
    value = ty.value if isinstance(ty, types.Omitted) else ty
    return value is None or isinstance(value, types.NoneType)


class Call:
    """The slots of a call, while its code is built."""

    def __init__(self, context, builder):
        self.context, self.builder = context, builder
        words = ir.ArrayType(I64, len(Slots._fields))
        self.slots = cgutils.alloca_once(builder, words)
        for name in Slots._fields:
            self.put(name, I64(0))

    def _at(self, name):
        index = ir.Constant(ir.IntType(32), getattr(AT, name) // 8)
        return self.builder.gep(self.slots, [ir.Constant(ir.IntType(32), 0), index], inbounds=True)

    def put(self, name, value):
        """Fill a slot with a number of Python or of the compiled code."""
        if isinstance(value, int):
            value = I64(value)
        if value.type == F64:
            value = self.builder.bitcast(value, I64)
        self.builder.store(value, self._at(name))

    def get(self, name, is_float=False):
        value = self.builder.load(self._at(name))
        return self.builder.bitcast(value, F64) if is_float else value

    def array(self, ty, value):
        """Address, shape and strides of an array; one of one axis is as a row."""
        array = self.context.make_array(ty)(self.context, self.builder, value)
        shape = cgutils.unpack_tuple(self.builder, array.shape)
        strides = cgutils.unpack_tuple(self.builder, array.strides)
        return self.builder.ptrtoint(array.data, I64), shape, strides

    def put_rows(self, name, ty, value):
        """An array of the shape of the logits; returns its shape."""
        address, shape, strides = self.array(ty, value)
        self.put(name, address)
        self.put(name + "_step", strides[-1])
        if ty.ndim == 2:
            self.put(name + "_row", strides[0])
        return (I64(1), *shape)[-2:]

    def put_weights(self, name, stride, ty, value):
        """An array of one axis, or None."""
        if absent(ty):
            return
        address, (length,), (step,) = self.array(ty, value)
        self.put(name, address)
        self.put(stride, step)
        self.put("n_" + name, length)
        self.put(name + "_double", int(ty.dtype == types.float64))

    def put_targets(self, ty, value):
        """Class indices, or the one of a row."""
        dtype = ty.dtype if isinstance(ty, types.Array) else ty
        if isinstance(ty, types.Array):
            address, (length,), (step,) = self.array(ty, value)
        else:
            place = cgutils.alloca_once_value(self.builder, value)
            address, length, step = self.builder.ptrtoint(place, I64), 1, 0
        self.put("targets", address)
        self.put("n_targets", length)
        self.put("targets_row", step)
        self.put("targets_bytes", dtype.bitwidth // 8)
        self.put("targets_signed", int(dtype.signed))
        return dtype.signed

    def put_ignore_index(self, ty, value, signed):
        """As `encoded_ignore_index` has it."""
        if absent(ty):
            return
        # Of two types of integers only what both have can be equal
        known = self.builder.icmp_signed(">=", value, I64(0)) if ty.signed != signed else None
        self.put("ignore_index", value)
        self.put("has_ignore_index", self.builder.zext(known, I64) if known is not None else 1)

    def put_option(self, name, ty, value):
        if name == "softcap":
            self.put("has_softcap", 0 if absent(ty) else 1)
        if not absent(ty):
            self.put(name, value if value.type != ir.IntType(1) else self.builder.zext(value, I64))

    def enter(self):
        """Call `enter`; returns its status."""
        # Not before: Numba imports this module in processes that never call numba_ce, too
        from numba_ce.integrations.numba.entry import register

        register()
        self.put("stamp", STAMP)
        # What Numba keeps on disk beside the code, see `stamp`
        context, module = self.context, self.builder.module
        context.declare_env_global(module, context.get_env_name(context.fndesc))
        context.environment.consts.append(Stamp())
        function = cgutils.get_or_insert_function(module, ir.FunctionType(I64, [I64, I64]), SYMBOL)
        return self.builder.call(function, [self.builder.ptrtoint(self.slots, I64), I64(0)])


def _cast(ty, to):
    """The type that an argument is cast to: None stays None."""
    return types.none if absent(ty) else to


def _value(ty):
    """An option's type, with what it was left at."""
    return ty.value if isinstance(ty, types.Omitted) else ty


@lru_cache
def loss_call(with_grad, averaged, is_given):
    """The intrinsic of a loss: it checks and computes, and returns a RESULT.

    is_given : the gradient is an array of the caller's
    """

    @intrinsic
    def call_loss(
        typingctx,
        logits,
        targets,
        class_weight,
        sample_weight,
        label_smoothing,
        ignore_index,
        z_loss,
        softcap,
        temperature,
        check_targets,
        grad,
        losses,
    ):
        real = types.float64
        signed = _integer(ignore_index).signed
        signature = RESULT(
            logits,
            targets if isinstance(targets, types.Array) else _integer(targets),
            class_weight,
            sample_weight,
            real,
            _cast(ignore_index, types.int64 if signed else types.uint64),
            real,
            _cast(softcap, real),
            real,
            types.boolean,
            grad,
            losses,
        )

        def codegen(context, builder, sig, args):
            call, ty = Call(context, builder), dict(zip(NAMES, sig.args, strict=True))
            value = dict(zip(NAMES, args, strict=True))
            call.put("operation", int(with_grad))
            call.put("double", int(logits.dtype == types.float64))
            call.put("averaged", int(averaged))
            call.put("is_given", int(is_given))
            n_rows, n_classes = call.put_rows("logits", logits, value["logits"])
            call.put("n_rows", n_rows)
            call.put("n_classes", n_classes)
            if with_grad:
                shape = call.put_rows("grad", grad, value["grad"])
                call.put("grad_rows", shape[0])
                call.put("grad_classes", shape[1])
            is_signed = call.put_targets(ty["targets"], value["targets"])
            for name, stride in WEIGHTS.items():
                call.put_weights(name, stride, ty[name], value[name])
            call.put_ignore_index(ty["ignore_index"], value["ignore_index"], is_signed)
            for name in OPTIONS:
                if name != "ignore_index":
                    call.put_option(name, ty[name], value[name])
            if not absent(losses):
                call.put("rows", call.array(losses, value["losses"])[0])
            return _results(call, call.enter(), not absent(ignore_index))

        return signature, codegen

    return call_loss


NAMES = ("logits", "targets", "class_weight", "sample_weight", *OPTIONS, "grad", "losses")
WEIGHTS = {"class_weight": "class_weight_step", "sample_weight": "sample_weight_row"}


def _integer(ty):
    """The type of an integer as it is passed; of None one that does not matter."""
    if isinstance(ty, types.Omitted):
        return types.int64
    return types.unliteral(ty) if isinstance(ty, types.Integer) else types.int64


def _results(call, status, has_ignore_index=False):
    values = [status, call.get("result", True), *map(call.get, "abcd"), call.get("x", True)]
    values += [I64(int(has_ignore_index)), call.get("ignore_index")]
    return call.context.make_tuple(call.builder, RESULT, values)


@lru_cache
def normalize_call(what, is_given):
    """The intrinsic of `softmax`, `log_softmax` or `logsumexp`; returns a RESULT."""
    operation = OPERATIONS.index(what)

    @intrinsic
    def call_normalize(typingctx, logits, out):
        def codegen(context, builder, sig, args):
            call = Call(context, builder)
            call.put("operation", operation)
            call.put("double", int(logits.dtype == types.float64))
            call.put("is_given", int(is_given))
            n_rows, n_classes = call.put_rows("logits", logits, args[0])
            call.put("n_rows", n_rows)
            call.put("n_classes", n_classes)
            call.put("temperature", F64(1.0))
            if what == "logsumexp":
                call.put("rows", call.array(out, args[1])[0])
            else:
                shape = call.put_rows("grad", out, args[1])
                call.put("grad_rows", shape[0])
                call.put("grad_classes", shape[1])
            return _results(call, call.enter())

        return RESULT(logits, out), codegen

    return call_normalize
