"""What the command `bench` does: ours, the memory of this machine and other libraries in turns.

========= ==========================================================================
cases     what can be timed: operation, shape, dtype, variant; the presets
limits    sweeps over memory that no kernel can beat
libraries the same operation by each library, as its users would write it at best
timing    the contenders of a case in turns
machine   processor, caches, versions
results   what a run gives, as JSON and back
report    table and picture
========= ==========================================================================
"""
