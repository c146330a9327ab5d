"""``python -m numba_ce``: needs the extra `cli`."""

import sys


def main() -> None:
    """Run the command line, or say what it lacks."""
    try:
        from numba_ce.cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        print(
            f"numba_ce: the command line needs {error.name!r}: pip install 'numba-ce[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    app()


if __name__ == "__main__":
    main()
