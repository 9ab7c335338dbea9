import subprocess
import sys
from pathlib import Path

FITTING = Path(__file__).resolve().parents[2] / "fitting"


def test_importing_scalelaws_loads_numpy_only():
    """A forecast on the command line starts fast because the heavy libraries wait until they are used."""
    code = (
        f"import sys; sys.path.insert(0, {str(FITTING)!r}); import scalelaws; "
        "print([name for name in ('scipy', 'pandas', 'matplotlib', 'torch', 'ray', 'foretune') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
