"""numba_ce where the data is: each module needs the extra of its name.

dask       chunked arrays, lazily
mpi        rows or classes spread over ranks
torch      a drop-in for `torch.nn.functional.cross_entropy`
boosting   objectives and metrics for XGBoost and LightGBM
numba      the functions inside those that Numba compiles; it needs no extra, and no import
"""
