"""The parts of a row: tile, targets, measure, finish, write."""
