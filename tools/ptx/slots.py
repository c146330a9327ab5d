"""Places in R, the list of register values, that every program has."""

BATCH = 0  # the batch itself, for what lanes share
LANE = 1  # number of each lane in the batch
BLOCK = 2  # its block, counted in the batch
WARP = 3  # its warp, counted in the batch
PLACE = 4  # its place in the warp, 0 to 31
