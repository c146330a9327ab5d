"""Pythons that this machine does not have: ARM64, and the newest of Debian.

    python -m tools.pythons arm64 FOLDER -m pytest -n0 tests/kernels/test_narrow.py
    python -m tools.pythons 3.14 FOLDER -m pytest -q

FOLDER keeps what was made: 1 GB and a minute the first time, nothing the next. Both need root, for
apt-get, debootstrap and chroot, and take all they install from Debian's and PyPI's packages.

* ARM64 runs under qemu, some twenty times slower: a kernel compiles in 10 to 20 s. The checkout is
  imported as it is. One process only: children would be those of this machine.
* 3.14 is Debian's unstable in FOLDER. The package is installed there as a wheel; the tests are
  copied beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What the tests need, without the package itself
LIBRARIES = ("numba", "numpy<2.5", "hypothesis", "ml_dtypes", "mpmath", "pytest", "pytest-xdist")
#: All that the tests read beside the package
TESTED = (
    *("tests", "tools", "benchmarks", "docs", "conda"),
    *("README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"),
)
ARM64 = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (17, 27, 28)]


def run(*command: object, **settings: object) -> None:
    """Run a command, whose output goes to stderr; an error ends this process."""
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr, **settings)  # type: ignore[call-overload]


def mirror() -> str:
    """Where this machine's apt-get takes its packages from."""
    listing = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    return subprocess.check_output(listing, text=True).split()[0].rstrip("/")


def install(*packages: str) -> None:
    """Packages of Debian, on this machine."""
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "-qq", *packages)


def download(folder: Path, version: str, *what: object) -> None:
    """Wheels for another Python, without the sources of any."""
    pip = (sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:")
    run(*pip, f"--python-version={version}", "-d", folder, *what)


def make_arm64(folder: Path) -> None:
    """Unpack Debian's Python and the wheels: nothing of them is configured, or has to be."""
    install("qemu-user-static", "debootstrap")
    stage = folder / "stage"
    bootstrap = ("debootstrap", "--arch=arm64", "--foreign", "--variant=minbase")
    run(*bootstrap, "--include=python3", "bookworm", stage, mirror())
    for package in (stage / "var/cache/apt/archives").glob("*.deb"):
        run("dpkg", "-x", package, folder / "root")
    shutil.rmtree(stage)
    download(folder / "wheels", "3.11", *ARM64, *LIBRARIES)
    for wheel in (folder / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder / "site")


def arm64(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command that starts the ARM64 Python, and its environment."""
    root = folder / "root"
    libraries = [root / place / "aarch64-linux-gnu" for place in ("usr/lib", "lib")]
    variables = {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PYTHONHOME": root / "usr",
        "PYTHONPATH": f"{ROOT}:{folder / 'site'}",
    }
    settings = [word for name in variables for word in ("-E", f"{name}={variables[name]}")]
    qemu = ["qemu-aarch64-static", "-L", str(root), *settings]
    return [*qemu, str(root / "usr/bin/python3.11")], {}


def make_unstable(folder: Path) -> None:
    """Debian's unstable with Python 3.14, and the wheels of the package and its tests."""
    install("debootstrap")
    include = "--include=python3.14,python3.14-venv,gcc,libc6-dev"
    run("debootstrap", "--variant=minbase", include, "sid", folder / "root", mirror())
    wheels = folder / "root/wheels"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT)
    (wheel,) = wheels.glob("numba_ce-*.whl")
    download(wheels, "3.14", f"{wheel}[test]")
    run("chroot", folder / "root", "python3.14", "-m", "venv", "/venv")


def unstable(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The package and tests as they are now in Debian's unstable, and how its Python starts."""
    root = folder / "root"
    wheels, work = root / "wheels", root / "work"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT)
    pip = ("chroot", root, "/venv/bin/pip", "install", "-q", "--no-index", "--find-links=/wheels")
    run(*pip, "numba_ce[test]")
    run(*pip, "--force-reinstall", "--no-deps", "numba_ce")
    shutil.rmtree(work, ignore_errors=True)
    for name in TESTED:
        if (ROOT / name).exists():
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            work.mkdir(exist_ok=True)
            copy(ROOT / name, work / name)
    program = 'mount -t proc proc /proc 2>/dev/null; cd /work && exec /venv/bin/python3.14 "$@"'
    return ["chroot", str(root), "/bin/sh", "-c", program, "sh"], {"NUMBA_CE_CACHE_DIR": "/kernels"}


PYTHONS = {"arm64": (make_arm64, arm64), "3.14": (make_unstable, unstable)}


def main() -> None:
    """Make what is missing, then run Python with the arguments."""
    parser = argparse.ArgumentParser(prog="python -m tools.pythons")
    parser.add_argument("python", choices=PYTHONS)
    parser.add_argument("folder", type=Path)
    chosen, arguments = parser.parse_known_args()
    make, start = PYTHONS[chosen.python]
    folder = chosen.folder.resolve()
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        (folder / "complete").touch()
    command, variables = start(folder)
    sys.exit(
        subprocess.run([*command, *arguments], cwd=ROOT, env=os.environ | variables).returncode
    )


if __name__ == "__main__":
    main()
