"""Install what the tests need into .venv. Running it again does nothing if nothing changed.

    bootstrap.py          the tests; also ComfyUI's requirements if a ComfyUI is found (see tests/host/comfyui.py)
    bootstrap.py demo     only the demo
    bootstrap.py tools    the tests, and `make audit`, `make coverage` and `make mutants`

Versions come from constraints.txt.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if sys.platform == "win32" else "bin")
PYTHON = BIN / "python"
PINNED = [HERE / "demo.txt", HERE / "requirements.txt"]
CONSTRAINTS = HERE / "constraints.txt"
# They go with the torch in demo.txt, and are installed without their CUDA libraries.
COMPANIONS = {"torchvision": "0.28.0", "torchaudio": "2.11.0"}

sys.path.insert(0, str(HERE.parent / "host"))
import comfyui  # noqa: E402


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(
            f"The pinned test tools need Python 3.11 or newer; this is {sys.version.split()[0]}. Run make with "
            "PYTHON=python3.11."
        )
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    if sys.argv[1:] == ["demo"]:
        install("demo", [HERE / "demo.txt"])
        return
    install("tests", PINNED, comfyui.find())
    if sys.argv[1:] == ["tools"]:
        install("tools", [HERE / "tools.txt"])


def install(goal: str, pinned: list[Path], host: Path | None = None) -> None:
    """Install the lists into .venv, unless the last run used the same files."""
    files = [*pinned, CONSTRAINTS, *([host / "requirements.txt"] if host else []), Path(__file__)]
    stamp, state = (
        VENV / f"glance-{goal}-installed",
        hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
    )
    if stamp.exists() and stamp.read_text() == state:
        return
    print(f"Installing the packages for the {goal} into .venv (several minutes the first time)", flush=True)
    pip(*(word for file in pinned for word in ("-r", file)), "-c", CONSTRAINTS)
    if host:
        print(f"Found ComfyUI: {host}", flush=True)
        install_comfyui_requirements(host / "requirements.txt")
    stamp.write_text(state)


def pip(*arguments: object) -> None:
    subprocess.run(
        [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *map(str, arguments)], check=True
    )


def install_comfyui_requirements(requirements: Path) -> None:
    pip("--no-deps", *(f"{name}=={version}" for name, version in COMPANIONS.items()))
    rest = VENV / "comfyui-requirements.txt"
    rest.write_text(
        "\n".join(line for line in requirements.read_text().splitlines() if line.strip() not in ("torch", *COMPANIONS))
    )
    pip("-r", rest, *(word for file in PINNED for word in ("-c", file)))
    if not imports("torchaudio"):  # its CUDA build falls back to Python without the compiled part
        for library in (site_packages() / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    if not imports("torchvision"):
        shutil.copy(HERE / "torchvision_cpu.py", site_packages())
        (site_packages() / "torchvision_cpu.pth").write_text("import torchvision_cpu\n")
    for name in COMPANIONS:
        if not imports(name):
            sys.exit(f"Cannot import {name} in {VENV}. Delete that folder and run again.")


def imports(name: str) -> bool:
    return subprocess.run([str(PYTHON), "-c", f"import {name}"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def site_packages() -> Path:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(subprocess.run([str(PYTHON), "-c", code], check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
