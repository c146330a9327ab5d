"""How rows are walked: along their classes, across rows, gathered from far apart."""
