"""Builds the wheel, looks that it holds the package alone, installs it into an empty environment and runs it."""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(CHECKOUT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = out.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        strangers = [name for name in names if not name.startswith(("prunegpt/", "prunegpt-"))]
        if strangers:
            sys.exit(f"the wheel must hold the package alone; it has {strangers[:5]}")
        missing = [
            str(path.relative_to(CHECKOUT))
            for path in (CHECKOUT / "prunegpt").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and str(path.relative_to(CHECKOUT)) not in names
        ]
        if missing:
            sys.exit(f"the wheel must hold every file of the package; it lacks {missing[:5]}")
        environment = out / "venv"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        # Without its dependencies: what needs none must import alone.
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
        subprocess.run([python, "-c", "import prunegpt; print('wheel of', prunegpt.__version__)"], check=True, cwd=out)


if __name__ == "__main__":
    main()
