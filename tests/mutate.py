"""`python -m tests.mutate`: faults put into the package on purpose, and whether the tests notice.

Each fault replaces one text of one file in a copy of the tree; the tests named beside it must then
fail. A fault whose text is no longer there, or there twice, is an error of this table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 150  # seconds: a fault that makes a kernel run for ever is noticed too


class Fault(NamedTuple):
    """One replacement, and the arguments of pytest for the tests that should notice it."""

    name: str
    file: str  # in numba_ce/
    old: str
    new: str
    tests: str
    survives: str = ""  # why no test can notice it here


GUARD = "kernels/test_guard_pages.py -k beside"
DRIVER = "kernels/test_cuda_standin.py -k test_driver"
FAILURES = "kernels/test_cuda_standin.py -k test_failures"
FAULTS = (
    # ------------------------------------------------ the error state of the caller
    Fault("errors as numpy.seterr says", "_quiet.py",
          'quiet = np.errstate(all="ignore")', "quiet = np.errstate()",
          "api/test_error_state.py -k 'records-numpy'"),
    Fault("blocks made in another context", "blocks.py",
          "target=context.run, args=(read,)", "target=read",
          "api/test_error_state.py -k blocks_are_made"),
    # ------------------------------------------------ the linear layer on a device
    Fault("16-bit parts added up in 16 bits", "linear.py",
          "xp.zeros_like(layer.weight, result_dtype(layer.problem.logits))",
          "xp.zeros_like(layer.weight, dtype)",
          "api/test_linear_device.py -k 'dtypes and bfloat16'"),
    Fault("0 times NaN of an ignored row", "linear.py",
          "            hidden[xp.asarray(ignored)] = 0", "            pass",
          "api/test_linear_device.py -k 'plain-index'"),
    # ------------------------------------------------ tails and guards of the kernels
    Fault("16 rows read and written beyond the classes", "cpu/schedules/across_tile.py",
          "return c, smaller(LARGEST_BLOCK, n_classes - c)", "return c, LARGEST_BLOCK", GUARD),
    Fault("rows with gaps read as if side by side", "cpu/schedules/across_tile.py",
          "if exact and stride == n_classes * size:\n                load_packed",
          "if exact:\n                load_packed",
          "numerics/test_reproducible.py -k 'test_memory_layout and padded and 5003 and float32'"),
    Fault("rows with gaps written as if side by side", "cpu/schedules/across_tile.py",
          "if exact and stride == n_classes * size:\n                store_packed",
          "if exact:\n                store_packed",
          "numerics/test_reproducible.py -k 'test_memory_layout and padded and 5003 and float32'"),
    Fault("losses of rows that are not there", "cpu/rows/batch.py",
          "here = first_lanes(count, F64_0)", "here = first_lanes(BATCH, F64_0)", GUARD),
    Fault("16 targets read where fewer are left", "cpu/schedules/across_tile.py",
          "elif count == ROWS_ACROSS and neighbours(", "elif neighbours(", GUARD),
    Fault("scan reads 16 targets where fewer are left", "cpu/rows/targets.py",
          "in_reach and even and last - row >= ROWS_ACROSS", "in_reach and even", GUARD),
    Fault("tail of a tile read beyond the row", "cpu/rows/tile.py",
          "n, here = count - whole - i, source", "n, here = count - whole - i + 1, source", GUARD),
    Fault("tail of a gradient row not written", "cpu/rows/output.py",
          "        map_some(source, weights, target, whole, count, how, k, value)", "        pass",
          "api/test_normalize.py -k 'many_equal and cpu and 3000'"),
    Fault("tail of a tile not padded", "cpu/rows/tile.py",
          "x = select(first_lanes(n, zero), load_some(kind, here, n), x)",
          "x = load_some(kind, here, n)",
          "api/test_normalize.py -k 'test_accuracy and cpu and 1025'"),
    Fault("streaming stores to any address", "cpu/rows/output.py",
          "if streaming and target % out_size == 0:", "if streaming:",
          "api/test_layouts.py -k 'large_outputs'"),
    Fault("the last line of a worker is not written", "cpu/run/launch.py",
          "        end_line(work.edge)", "        pass", "api/test_layouts.py -k 'large_outputs'"),
    Fault("parts of different lines are put together", "cpu/rows/output.py",
          "if get(edge + LINE, NOWHERE) != line or get", "if get",
          "api/test_layouts.py -k 'large_outputs'"),
    Fault("a line is written whole though only its end is there", "cpu/rows/output.py",
          "if end - begin == VECTOR_BYTES:", "if end == VECTOR_BYTES:",
          "api/test_layouts.py -k 'large_outputs'"),
    Fault("ignored rows get the loss of the row before, eight rows", "cpu/operations/loss.py",
          "loss = select(batch.s == 0.0, splat(F64_0), batch.s * loss)", "loss = batch.s * loss",
          "api/test_edge_cases.py -k ignored_row_after"),
    Fault("losses of rows that are not there add up", "cpu/operations/loss.py",
          "return select(first_lanes(count, F64_0), loss, splat(F64_0)), (factor, g_k)",
          "return loss, (factor, g_k)",
          "api/test_options.py -k 'reductions_of_the_same_rows and cpu'"),
    Fault("losses of rows that are not there, float64", "cpu/rows/batch.py",
          "address + first * size, first_lanes(count, F64_0), values",
          "address + first * size, first_lanes(BATCH, F64_0), values", GUARD),
    Fault("all rows in one memory, eight rows", "cpu/rows/workspace.py",
          "work.exps + i * tile_bytes", "work.exps",
          "numerics/test_accuracy.py -k 'test_families and cpu and float32'"),
    # ------------------------------------------------ the arithmetic
    Fault("1 - p from p", "row.py",
          "return surprise, above, share(sum_exp, inverse),",
          "return surprise, above, 1.0 - share(small, inverse),",
          "numerics/test_accuracy.py -k 'confident_row_of_any and cpu'"),
    Fault("an origin for a row without other classes, 16 rows", "cpu/schedules/across.py",
          "reference = select(found.row_max == minus_inf, minus_inf, found.scale[0])",
          "reference = found.scale[0]",
          "api/test_edge_cases.py -k 'a_low_target_alone and cpu'",
          "the sum of no class is 0, and an exponential that overflows is a finite wrong number"),
    Fault("the sign of a distance", "row.py",
          "(over - d) - d_lost", "(over + d) - d_lost",
          "numerics/test_accuracy.py -k 'test_families and cpu and float32'"),
    Fault("factors relative to another origin", "cpu/rows/finish.py",
          "(to_origin * inverse,)", "(UNBIAS * inverse,)",
          "numerics/test_accuracy.py -k 'confident_row_of_any and cpu'"),
    Fault("log1p loses a NaN", "cpu/simd/log.py",
          "select(absolute(u) > _NEAR, _mantissa(x) - 1.0, u)",
          "select(absolute(u) < _NEAR, u, _mantissa(x) - 1.0)",
          "kernels/test_cpu_functions.py -k log1p_is_exact"),
    Fault("rounding of a distance dropped", "cpu/rows/finish.py",
          "    lost = select(finite, lost, zero)", "    lost = zero",
          "numerics/test_accuracy.py -k 'too_far_from_zero and cpu'"),
    Fault("low part of a factor dropped, 16 rows", "cpu/rows/finish.py",
          "times_pair(e, factor[0], factor[1])", "(e * factor[0])",
          "numerics/test_accuracy.py -k 'cpu and float64'"),
    Fault("rounding of 1 + u dropped", "cpu/simd/log.py",
          "lost = select(near, zero, lost / x)", "lost = zero",
          "kernels/test_cpu_functions.py -k log1p_of_float64"),
    Fault("rows that are not there count with their probabilities", "cpu/schedules/across.py",
          "q, is_k = select(y < F32_0, zero, q), k == np.float32(c)", "is_k = k == np.float32(c)",
          "api/test_edge_cases.py -k 'probabilities_of_an_ignored_row and cpu'"),
    Fault("p - 1 in the target's gradient", "row.py",
          "gradient = 0.0 - q_k * rest", "gradient = q_k * (p_k - 1.0)",
          "numerics/test_accuracy.py -k 'test_families and cpu and float64 and not temperature'"),
    Fault("log(1 + u) for log1p(u)", "row.py",
          "log1p(select(others, (sum_exp - 1.0) + small, sum_exp), bottom)",
          "log1p(bottom - 1.0, bottom)",
          "api/test_row_stats.py -k 'confident and cpu'"),
    Fault("the target takes part in the sum", "cpu/schedules/across.py",
          "x = select(is_target, minus_inf, x)", "x = select(is_target, x, x)",
          "numerics/test_accuracy.py -k 'gap_of_20 and cpu'"),
    Fault("wrong sign of the smoothed part", "cpu/schedules/across_loops.py",
          "g = g - scale * load_rows(lanes.q", "g = g + scale * load_rows(lanes.q",
          "numerics/test_accuracy.py -k 'options_over_many and cpu and float32 and index'"),
    Fault("the target's own share of the smoothing", "cpu/schedules/across.py",
          "q = w * (1.0 - plan.smoothing + plan.smoothing / plan.all_classes)",
          "q = w * (1.0 - plan.smoothing)",
          "numerics/test_accuracy.py -k 'options_over_many and cpu and float32 and index'"),
    Fault("rounding of a difference dropped", "row.py",
          "lost = (a - (total - minus_b)) - (b + minus_b)", "lost = 0.0",
          "numerics/test_mathematics.py -k difference_in_two_parts"),
    Fault("a wrong digit of the exponential", "cpu/simd/exp.py",
          "np.float32(0.49999993050770837)", "np.float32(0.49999893050770837)",
          "kernels/test_cpu_functions.py -k 'exp_is_within'"),
    Fault("a row of -inf has -inf as reference", "cpu/schedules/across_loops.py",
          "select(masked, zero, row_max)", "row_max",
          "api/test_edge_cases.py -k 'a_low_target_alone and cpu'"),
    Fault("sums of no class rescaled", "cpu/rows/measure.py",
          "                if alive:", "                if True:",
          "numerics/test_accuracy.py -k 'masked_tile_of_a_row and cpu'"),
    Fault("no weight times the infinity of a masked class", "cpu/schedules/across.py",
          "select(q == zero, zero, q * below)", "q * below",
          "api/test_edge_cases.py -k 'zero_class_weight_of_a_masked_class and cpu'"),
    Fault("no weight times infinity", "row.py",
          "return select(weight == 0.0, select(x == x, 0.0, x), weight * x)", "return weight * x",
          "api/test_edge_cases.py -k 'zero_class_weight_of_the_target and cpu'"),
    Fault("bfloat16 rounded up at ties", "cpu/simd/element.py",
          "builder.add(odd, _constant(raw.type, 0x7FFF))", "_constant(raw.type, 0x8000)",
          "numerics/test_accuracy.py -k '16_bit_subnormal_and_tied and cpu and bfloat16'"),
    # ------------------------------------------------ statistics and Hessian of few classes
    Fault("whole numbers of rows that are not there", "cpu/rows/batch.py",
          "address + first * 8, first_lanes(count, F64_0), values",
          "address + first * 8, first_lanes(BATCH, F64_0), values", GUARD),
    Fault("the last NaN for the first", "cpu/schedules/across.py",
          "for at in range(end - pitch, tile - pitch, -pitch):\n            c -= F32_1",
          "c = -F32_1\n        for at in range(tile, end, pitch):\n            c += F32_1",
          "kernels/test_narrow.py -k 'stats and float32'"),
    Fault("the rank of a row with NaN or infinity", "cpu/operations/stats.py",
          "select(end.surprise == end.surprise, batch.above, all_classes)", "batch.above",
          "kernels/test_narrow.py -k 'stats and float32'"),
    Fault("entropy without the sum over the others", "row.py",
          "(times0(rest, d + surprise) + e_rest)", "times0(rest, d + surprise)",
          "kernels/test_narrow.py -k 'stats and float32'"),
    Fault("1 - p from p in the Hessian", "cpu/operations/hess.py",
          "curvature * end.p_k * end.rest", "curvature * end.p_k * (1.0 - end.p_k)",
          "kernels/test_narrow.py -k 'hess and index-float32'"),
    Fault("NaN of an ignored row in its gradient", "cpu/schedules/across.py",
          "store(at, select(y < F32_0, zero, load_rows(at, zero)))",
          "store(at, load_rows(at, zero))",
          "kernels/test_narrow.py -k 'hess and index-float32'"),
    Fault("the Hessian with the strides of the gradient", "cpu/schedules/across.py",
          "write_hess(plan, place, 4,", "write_hess(plan, place, 3,",
          "kernels/test_narrow.py -k 'hess and index-float32'"),
    # ------------------------------------------------ where things are
    Fault("32-bit row offsets", "cpu/plan.py",
          "logits += i * get(entry + 8, 0)", "logits += np.int64(np.int32(i * get(entry + 8, 0)))",
          "process/test_large.py -k 'rows_more_than and cpu'"),
    Fault("byte order the wrong way round", "cpu/simd/element.py",
          "builder.select(swapped, other, raw)",
          "builder.select(swapped, raw, other)",
          "api/test_layouts.py -k 'layout_of_logits and swapped and cpu and float32'"),
    Fault("signed targets read as unsigned", "cpu/simd/element.py",
          "builder.sext(raw, i64), builder.zext(raw, i64)",
          "builder.zext(raw, i64), builder.zext(raw, i64)",
          "api/test_bad_targets.py -k 'ignored_rows_among_many or compared_as_an_integer'"),
    Fault("what is left of a line forgotten", "cpu/schedules/strips.py",
          "store(strip - VECTOR_BYTES, load(line, F32_0))", "pass",
          "kernels/test_copies.py -k 'gradient_and_softmax and streamed and float32'"),
    Fault("a part of a line that belongs to other rows kept", "cpu/schedules/strips.py",
          "fresh = (row - begin) * size < VECTOR_BYTES", "fresh = row == begin",
          "kernels/test_copies.py -k 'gradient_and_softmax and streamed'"),
    Fault("the last line of a block never written", "cpu/schedules/gather.py",
          "last == plan.block_last", "last == plan.block_last + 1",
          "kernels/test_copies.py -k 'whole_lines and streamed and float32'"),
    Fault("axes merged that do not follow each other", "describe.py",
          "outer == inner * length", "outer >= inner * length",
          "api/test_layouts.py -k 'layout_of_logits and padded and cpu and float32'"),
    # ------------------------------------------------ targets
    Fault("class C accepted", "cpu/rows/targets.py",
          "y >= plan.all_classes", "y > plan.all_classes",
          "api/test_bad_targets.py -k 'bad_target_is_named and cpu'"),
    Fault("negative targets accepted", "cpu/rows/targets.py",
          "if y < 0 or y >= plan", "if y >= plan",
          "api/test_bad_targets.py -k 'bad_target_is_named and cpu'"),
    Fault("negative targets accepted, sixteen at a time", "cpu/simd/element.py",
          'builder.icmp_unsigned("<", y', 'builder.icmp_signed("<", y',
          "api/test_bad_targets.py -k a_bad_target_among_many"),
    Fault("a bad row is NaN over a zero denominator", "cpu/schedules/along.py",
          "np.nan if y == BAD_TARGET and plan.grad_scale != 0.0 else 0.0",
          "np.nan if y == BAD_TARGET else 0.0",
          "api/test_bad_targets.py -k 'only_bad_targets and cpu'"),
    Fault("NaN rows over a zero denominator", "cpu/schedules/across_loops.py",
          "if plan.grad_scale == 0.0:", "if False:",
          "api/test_bad_targets.py -k 'zero_denominator and cpu'"),
    Fault("ignored numbers beyond the targets wrap", "_validate.py",
          "index is None or not lowest <= index < lowest + 2**64", "index is None",
          "api/test_validation.py -k 'beyond_int64 and cpu'"),
    # ------------------------------------------------ threads
    Fault("sums depend on the threads", "cpu/run/launch.py",
          "put(plan.block_sum + block * 8, do_rows(plan, first, last, work))",
          "at = plan.block_sum + worker * 8\n"
          "                put(at, get(at, 0.0) + do_rows(plan, first, last, work))",
          "numerics/test_reproducible.py -k 'test_threads and not options'"),
    Fault("one block of those drawn", "cpu/run/launch.py",
          "range(drawn, smaller(drawn + plan.blocks_drawn, plan.n_blocks))",
          "range(drawn, smaller(drawn + 1, plan.n_blocks))",
          "numerics/test_reproducible.py -k test_long_sums"),
    Fault("the counter is not set back after the scan", "cpu/run/launch.py",
          "    results[0] = 0.0", "    pass",
          "numerics/test_reproducible.py"),
    Fault("no fence behind streamed stores", "cpu/run/launch.py", "        fence()", "        pass",
          "numerics/test_reproducible.py -k in_place",
          "x86 orders streamed stores before the locked instruction that ends a parallel loop"),
    # ------------------------------------------------ threads
    Fault("helpers are not waited for", "cpu/run/pool.py",
          "if atomic_add(gate + LEFT, -inside) < inside:", "if atomic_add(gate + LEFT, 0) < 0:",
          "process/test_threads.py -k 'shares or exception'"),
    Fault("helpers that come late do a share", "cpu/run/pool.py",
          "elif atomic_add(gate + CAME, 1) < CLOSED:", "elif atomic_add(gate + CAME, 1) >= 0:",
          "process/test_threads.py -k shares"),
    Fault("an interrupted caller leaves its helpers", "cpu/run/pool.py",
          "    finally:\n        try:", "    except RuntimeError:\n        try:",
          "process/test_threads.py -k exception"),
    Fault("reading goes on after the end", "blocks.py",
          "                if closed:", "                if False:",
          "api/test_stream.py -k after_the_end"),
    # ------------------------------------------------ validation
    Fault("an output that overlaps itself", "_validate.py",
          "            if stride < end:", "            if stride < 0:",
          "api/test_validation.py -k overlapping_out"),
    Fault("an empty output overlaps itself", "_validate.py",
          "    if 0 in array.shape:", "    if False:",
          "api/test_validation.py -k empty_out"),
    Fault("any overlap with the logits", "_validate.py",
          "_share_memory(out, logits) and not _same_view(out, logits)", "False",
          "api/test_validation.py -k overlapping_out"),
    Fault("read-only output", "_validate.py",
          "if not out.flags.writeable:", "if False:", "api/test_validation.py -k bad_out"),
    Fault("an option without its check", "options.py",
          "value if check is None else check(value)", "value",
          "api/test_option_table.py -k messages"),
    Fault("an option that the docstring leaves out", "options.py",
          "(options if name ==", "(options[1:] if name ==",
          "api/test_option_table.py -k 'public_function and cross_entropy'"),
    Fault("z_loss of infinity", "options.py",
          "0.0 <= factor < math.inf", "0.0 <= factor <= math.inf",
          "api/test_validation.py -k 'bad_arguments and z_loss'"),
    Fault("axis ndim accepted", "_validate.py",
          "-ndim <= number < ndim", "-ndim <= number <= ndim",
          "api/test_validation.py -k 'bad_arguments and axis'"),
    Fault("a bool as an integer", "_validate.py",
          "        if not isinstance(value, (bool, np.bool_)):", "        if True:",
          "api/test_validation.py -k integers"),
    Fault("a record of more classes than float64 counts", "records.py",
          "<= n_classes <= MOST_CLASSES", "<= n_classes",
          "api/test_records.py -k number_of_classes"),
    Fault("a block of somebody else's is written to", "blocks.py",
          "isinstance(value, (np.memmap, NpyReader))", "not type(value) is np.ndarray",
          "api/test_stream.py -k belongs_to_the_caller"),
    # ------------------------------------------------ records
    Fault("a shard counts with its own sum alone", "cpu/schedules/along.py",
          "put(at + FIELDS.total, get(record + 8, 0.0) * 2.0**64)", "pass",
          "api/test_records.py -k 'masked_shard_of_a_nan_row and cpu'"),
    Fault("a gradient of another temperature", "records.py",
          "if (other := made_with != temperature).any():",
          "if (other := made_with != made_with).any():",
          "api/test_records.py -k 'temperature_of_a_record and cpu'"),
    Fault("blocks of other classes", "blocks.py",
          "if kind != (first := first or kind):", "if False and (first := first or kind):",
          "api/test_stream.py -k 'errors and other'"),
    Fault("of equal classes the last counts as the highest", "evaluate.py",
          "column < y[row]", "column > y[row]", "api/test_cli.py -k 'of_equal_classes'"),
    Fault("an ignored row counts in the mean", "weights.py",
          "counts &= targets != ignore_index", "counts &= True",
          "api/test_stream.py -k 'test_options and index and mean'"),
    Fault("NaN in the mean over nothing", "results.py",
          "        grad[...] = 0", "        pass",
          "api/test_linear.py -k 'nothing and cpu'"),
    Fault("two masked sides join", "records.py",
          "joins = loser > -np.inf", "joins = loser >= -np.inf",
          "api/test_records.py -k 'masked and numpy'"),
    # ------------------------------------------------ CUDA, executed by the interpreter of PTX
    Fault("CUDA: class C accepted", "cuda/targets.py",
          "y >= plan.all_classes", "y > plan.all_classes",
          "kernels/test_cuda_kernels.py -k ignored_and_bad_rows"),
    Fault("CUDA: +inf as a target", "cuda/finish.py",
          "if not target_logit < math.inf:", "if False:",
          "kernels/test_cuda_kernels.py -k edge_rows"),
    Fault("CUDA: rounding of exp(-d)", "row.py",
          "below += below * lost", "below += 1e-6 * below",
          "kernels/test_cuda_kernels.py -k 'families'"),
    Fault("CUDA: the last rows are not scanned", "cuda/totals.py",
          "per_block = (plan.n_rows + plan.n_partials - 1) // plan.n_partials\n"
          "    row = block * per_block + thread\n"
          "    end = min((block + 1) * per_block, plan.n_rows)\n    weight",
          "per_block = (plan.n_rows + plan.n_partials - 1) // plan.n_partials\n"
          "    row = block * per_block + thread\n"
          "    end = min((block + 1) * per_block, plan.n_rows - 1)\n    weight",
          "kernels/test_cuda_kernels.py -k 'reductions_stay or bad_target_on'"),
    Fault("CUDA: results of a failed call handed out later", "cuda/host.py",
          "nothing more is written\n            slot.unpack = []",
          "nothing more is written\n            pass",
          "kernels/test_cuda_host.py -k nothing_is_written_after"),
    Fault("CUDA: a piece is not waited for", "cuda/host.py",
          "            slot.finish()\n            _start(", "            _start(",
          "kernels/test_cuda_host.py -k test_pieces"),
    Fault("CUDA: the mean of one piece's weight", "cuda/__init__.py",
          "grad_scale = mean_scale(weight)", "grad_scale = mean_scale(len(row_loss))",
          "kernels/test_cuda_host.py -k test_pieces"),
    Fault("CUDA: launched on whichever device is current", "cuda/__init__.py",
          "        gpu.push(device)", "        gpu.push(current)",
          "kernels/test_cuda_arrays.py -k another_device"),
    Fault("CUDA: other streams go on at once", "cuda/__init__.py",
          "        if streams:", "        if False:",
          "kernels/test_cuda_arrays.py -k other_streams"),
    # ------------------------------------------------ CUDA, on the stand-in for the driver
    Fault("CUDA: a module is leaked", "cuda/driver.py",
          'self._call("cuModuleUnload", module)', "pass", DRIVER),
    Fault("CUDA: memory is never given back", "cuda/driver.py",
          '            self._call("cuMemFreeAsync", address, stream)\n', "", FAILURES),
    Fault("CUDA: given back while in use", "cuda/driver.py",
          "        self.synchronize(stream)\n", "", DRIVER),
    Fault("CUDA: two threads make two drivers", "cuda/driver.py",
          "    if _driver is None:\n        with once:",
          "    if _driver is None:\n        with threading.Lock():", DRIVER),
    Fault("CUDA: two threads make two contexts", "cuda/driver.py",
          "if context is None:\n            with once:",
          "if context is None:\n            with threading.Lock():", DRIVER),
    Fault("CUDA: two threads load a kernel twice", "cuda/launch.py",
          "        with once:", "        with type(once)():", DRIVER),
    Fault("CUDA: memory pools where one device has them", "cuda/driver.py",
          "self._pools = all(", "self._pools = any(", DRIVER),
    Fault("CUDA: a stream that waits for the default one", "cuda/driver.py",
          'self._call("cuStreamCreate", 1)', 'self._call("cuStreamCreate", 0)', DRIVER),
    Fault("CUDA: nothing is waited for", "cuda/driver.py",
          'self._call("cuStreamSynchronize", stream)', "pass", FAILURES),
    Fault("CUDA: class weights are not waited for", "cuda/host.py",
          "            gpu.synchronize(0)\n", "", FAILURES),
    Fault("CUDA: weights given back before the device is done", "cuda/host.py",
          "                slot.finish()\n                _give_back(",
          "                _give_back(", FAILURES),
    Fault("CUDA: launched in the default stream", "cuda/driver.py",
          "*shape, shared, stream, 0", "*shape, shared, 0, 0", FAILURES),
    Fault("CUDA: the last byte is not copied", "cuda/driver.py",
          "array.ctypes.data, source, array.nbytes, stream",
          "array.ctypes.data, source, array.nbytes - 1, stream", FAILURES),
    Fault("CUDA: a code of the driver is swallowed", "cuda/driver.py",
          "if int(code) != 0:", "if int(code) not in (0, 2):", FAILURES),
    Fault("CUDA: the first error is hidden by the next", "cuda/operations.py",
          "            if error is None:\n                raise", "            raise", FAILURES),
    Fault("CUDA: another device stays the current one", "cuda/__init__.py",
          "the first error is the one to tell\n                gpu.pop()",
          "the first error is the one to tell\n                pass", FAILURES),
    Fault("CUDA: a copy to the host is not waited for", "cuda/operations.py",
          "        gpu.synchronize(place.stream)\n", "",
          "kernels/test_cuda_standin.py -k test_public",
          "the driver returns from a copy to other than page-locked memory when it is complete"),
)  # fmt: skip


def check_table():
    """Raise for a fault whose text does not occur exactly once."""
    for fault in FAULTS:
        count = (ROOT / "numba_ce" / fault.file).read_text().count(fault.old)
        if count != 1:
            raise ValueError(f"{fault.name}: {fault.file} has {count} times {fault.old!r}")


def outcome(fault):
    """ "killed", "survived", "skipped" or what went wrong, and the seconds it took."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("numba_ce", "tests", "tools", "benchmarks"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        path = tree / "numba_ce" / fault.file
        path.write_text(path.read_text().replace(fault.old, fault.new))
        file, *rest = fault.tests.split(" ", 1)
        selection = rest[0].removeprefix("-k ").strip("'") if rest else ""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider"]
        command += ["--tb=line", f"tests/{file}", *(["-k", selection] if selection else [])]
        environment = os.environ | {"PYTHONPATH": folder, "NUMBA_CE_CACHE_DIR": "0"}
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return "killed", "ran for ever", time.monotonic() - begin
    lines = done.stdout.strip().splitlines() or [""]
    result = {0: "survived", 1: "killed"}.get(done.returncode, "error")
    if done.returncode < 0:
        result = "killed"
        lines.append(f"signal {-done.returncode}")
    if done.returncode == 0 and "passed" not in lines[-1]:
        result = "skipped"
    if result == "error":
        lines.append("\n".join([*lines[-5:], done.stderr[-1000:]]))
    return result, lines[-1], time.monotonic() - begin


def main(arguments=None):
    """Run the faults; the exit status tells whether each did what the table says."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--only", help="faults whose name or file has this text")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--allow-skipped", action="store_true", help="where something is missing")
    options = parser.parse_args(arguments)
    check_table()
    wanted = [f for f in FAULTS if not options.only or options.only in f"{f.file} {f.name}"]
    unexpected = skipped = 0
    begin = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, (result, detail, seconds) in zip(wanted, pool.map(outcome, wanted), strict=True):
            expected = "survived" if fault.survives else "killed"
            skipped += result == "skipped"
            unexpected += result not in (expected, "skipped")
            mark = "" if result == expected else "  <<<"
            print(f"{result:9}{fault.file:20}{fault.name:50}{seconds:5.0f} s{mark}", flush=True)
            if mark:
                print(f"         {fault.tests}\n         {detail}")
    counts = f"{len(wanted)} faults, {unexpected} not as expected, {skipped} skipped"
    print(f"{counts}, {time.monotonic() - begin:.0f} s")
    return 1 if unexpected or (skipped and not options.allow_skipped) else 0


if __name__ == "__main__":
    sys.exit(main())
