"""A virtual environment under the build folder for a test that needs a package."""
import importlib
import os
import subprocess
import sys

INSTALL_SECONDS = 150


def skip(why):
    print("skip:", why)
    sys.exit(77)


def need(package, requirement):
    """Returns the package where it can be imported; else runs the program again in a virtual
    environment that has it, made on the first run. Exits 77 with the reason where that cannot be."""
    try:
        return importlib.import_module(package)
    except ImportError:
        pass
    if "EXPERTIER_IN_VENV" in os.environ:
        skip(f"the package {package} is installed but cannot be imported")
    folder = os.path.join(os.environ["EXPERTIER_BUILD"], package + "-venv")
    python = os.path.join(folder, "bin", "python")
    done = os.path.join(folder, "installed")
    if not os.path.exists(done):
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, timeout=60,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check",
                            requirement], check=True, timeout=INSTALL_SECONDS,
                           stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            skip(f"no virtual environment can be made: {error}")
        except subprocess.TimeoutExpired:
            skip(f"the package {package} was not installed within {INSTALL_SECONDS} s")
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
            skip(f"the package {package} cannot be installed: " +
                 (lines[-1] if lines else "pip failed"))
        open(done, "w").close()
    env = dict(os.environ, EXPERTIER_IN_VENV="1")
    sys.exit(subprocess.run([python, *sys.argv], env=env).returncode)
