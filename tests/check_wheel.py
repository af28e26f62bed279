"""Builds the wheel, checks its metadata and files, installs it into an empty environment and runs it.

`quickstart` and `init` are run from it too, with the dependencies of this environment.
"""

import os
import subprocess
import sys
import sysconfig
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
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel)], check=True)
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
        installed = next(environment.glob("lib/*/site-packages"))
        (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        for words in (["init", "oneshot"], ["sweep", "check", "oneshot.yaml"], ["quickstart", "--help"]):
            command = [python, "-m", "prunegpt", *words]
            subprocess.run(command, check=True, cwd=out, env=variables, stdout=subprocess.DEVNULL)
        where = [python, "-c", "import prunegpt.cli; print(prunegpt.__file__)"]
        found = subprocess.run(where, check=True, cwd=out, env=variables, capture_output=True, text=True).stdout
        if not Path(found).is_relative_to(installed):
            sys.exit(f"the commands of the wheel must be run, not those of {found.strip()}")
        print("ran init, sweep check and quickstart --help")


if __name__ == "__main__":
    main()
