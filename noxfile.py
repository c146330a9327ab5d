"""nox: the suite on the installed wheel, for each Python, with the oldest and the newest libraries.

Two more sessions need root and Debian's packages, and run by their names alone: `nox -s python314`,
the suite under Python 3.14, and `nox -s arm64`, the tests of the kernels on an emulated ARM64.

`nox` runs all of it, `nox -s "tests-3.12(lowest)" -- -k cache` a part. The interpreters have to be
there; with pyenv: PYENV_VERSION=3.11.7:3.12.1:3.13.0 nox.
"""

import shutil
import tomllib
from pathlib import Path

import nox
from packaging.requirements import Requirement

PYTHONS = ("3.11", "3.12", "3.13")
ROOT = Path(__file__).parent
# All that the tests need beside the package, which is not among it
TESTED = (
    "tests",
    "tools",
    "benchmarks",
    "docs",
    "conda",
    "CITATION.cff",
    "README.md",
    "CONTRIBUTING.md",
    "pyproject.toml",
)
# On import and in a first call there is no warning, and it is the installed package that runs
FIRST_CALL = """
import numba_ce, numpy as np
assert "site-packages" in numba_ce.__file__, numba_ce.__file__
logits, targets = np.zeros((4096, 100), np.float32), np.arange(4096) % 100
loss, grad = numba_ce.cross_entropy_and_grad(logits, targets)
assert abs(loss - np.log(100)) < 1e-6, loss
import numba
print("numba", numba.__version__, "numpy", np.__version__, "threads", numba.threading_layer())
"""

nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["tests"]


def lowest() -> list[str]:
    """Every dependency at the lowest version that pyproject.toml allows."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        dependencies = map(Requirement, tomllib.load(file)["project"]["dependencies"])
    return [
        f"{dependency.name}=={bound.version}"
        for dependency in dependencies
        if dependency.marker is None or dependency.marker.evaluate()
        for bound in dependency.specifier
        if bound.operator == ">="
    ]


@nox.session(python=PYTHONS)
@nox.parametrize("versions", [nox.param(name, id=name) for name in ("lowest", "highest")])
def tests(session: nox.Session, versions: str) -> None:
    """Wheel, clean environment, pip check, a first call without warnings, the suite."""
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    pins = lowest() if versions == "lowest" else []
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, silent=True)
    (wheel,) = folder.glob("*.whl")
    session.install(str(wheel), *pins)
    session.run("pip", "check")
    work = folder / "work"
    work.mkdir()
    for name in TESTED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, work / name)
    session.chdir(work)
    environment = {"NUMBA_CE_CACHE_DIR": str(folder / "kernels")}
    for _ in ("cold", "from the cache"):
        session.run("python", "-W", "error", "-c", FIRST_CALL, env=environment)
    session.install(f"{wheel}[test]", *pins)
    session.run("pip", "check")
    session.run("pytest", "-q", *session.posargs)


@nox.session
def python314(session: nox.Session) -> None:
    """The suite on the installed wheel in Debian's unstable, whose Python is 3.14."""
    session.run("python", "-m", "tools.pythons", "3.14", ".nox/debian", "-m", "pytest", "-q",
                *session.posargs)  # fmt: skip


@nox.session
def arm64(session: nox.Session) -> None:
    """The numerical tests of the kernels under qemu, hours of them; `-- --few` takes minutes."""
    session.run("python", "-m", "tests.arm64", ".nox/arm64", *session.posargs)
