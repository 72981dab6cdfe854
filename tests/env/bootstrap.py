"""Make .venv hold everything the tests need, or with `demo` only what the demo does, or with `tools` what the checks of the supply chain, of coverage
and by mutants need as well; run again whenever, it does nothing where nothing changed. Versions are those of constraints.txt.

For the tests, with a ComfyUI at hand (tests/host/comfyui.py says where it is looked for), its requirements are installed too.
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
COMPANIONS = {"torchvision": "0.28.0", "torchaudio": "2.11.0"}  # of the torch in demo.txt, installed without their CUDA

sys.path.insert(0, str(HERE.parent / "host"))
import comfyui  # noqa: E402


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"the pinned test tools need Python 3.11 or newer, this is {sys.version.split()[0]}; run make with PYTHON=python3.11")
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    if sys.argv[1:] == ["demo"]:
        install("demo", [HERE / "demo.txt"])
        return
    install("tests", PINNED, comfyui.find())
    if sys.argv[1:] == ["tools"]:
        install("tools", [HERE / "tools.txt"])


def install(goal: str, pinned: list[Path], host: Path | None = None) -> None:
    """Into .venv, unless it was done from these very files."""
    files = [*pinned, CONSTRAINTS, *([host / "requirements.txt"] if host else []), Path(__file__)]
    stamp, state = VENV / f"glance-{goal}-installed", hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    if stamp.exists() and stamp.read_text() == state:
        return
    print(f"installing into .venv what is needed for the {goal} (several minutes the first time)", flush=True)
    pip(*(word for file in pinned for word in ("-r", file)), "-c", CONSTRAINTS)
    if host:
        print(f"ComfyUI at hand: {host}", flush=True)
        install_comfyui_requirements(host / "requirements.txt")
    stamp.write_text(state)


def pip(*arguments: object) -> None:
    subprocess.run([str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *map(str, arguments)], check=True)


def install_comfyui_requirements(requirements: Path) -> None:
    pip("--no-deps", *(f"{name}=={version}" for name, version in COMPANIONS.items()))
    rest = VENV / "comfyui-requirements.txt"
    rest.write_text("\n".join(line for line in requirements.read_text().splitlines() if line.strip() not in ("torch", *COMPANIONS)))
    pip("-r", rest, *(word for file in PINNED for word in ("-c", file)))
    if not imports("torchaudio"):  # built for CUDA; without its compiled part it falls back to Python
        for library in (site_packages() / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    if not imports("torchvision"):
        shutil.copy(HERE / "torchvision_cpu.py", site_packages())
        (site_packages() / "torchvision_cpu.pth").write_text("import torchvision_cpu\n")
    for name in COMPANIONS:
        if not imports(name):
            sys.exit(f"{name} cannot be imported in {VENV}; delete that folder and run again")


def imports(name: str) -> bool:
    return subprocess.run([str(PYTHON), "-c", f"import {name}"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def site_packages() -> Path:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(subprocess.run([str(PYTHON), "-c", code], check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
