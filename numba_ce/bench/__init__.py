"""What the command `bench` does: ours, the memory of this machine and other libraries in turns.

========= ==========================================================================
command   which cases to run; the run itself
cases     what can be timed: operation, shape, dtype, variant; the presets
measure   one case: the sweep over its memory, ours, the libraries
limits    sweeps over memory that no kernel can beat
libraries the same operation by each library, as its users would write it at best
timing    contenders in turns
machine   processor, caches, versions
results   what a run gives, as JSON
report    table and picture
========= ==========================================================================
"""
