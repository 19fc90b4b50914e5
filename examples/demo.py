"""The whole job on the embedded digits: train three stages, evaluate from both sides, sample, draw.

Run by ``make demo``; a run folder that is there already is gone on with.
"""

import subprocess
import sys
from pathlib import Path

RUN = Path("runs/demo")
resume = ["--resume"] if (RUN / "config.json").exists() else []
for command in (
    ["train", "digits", "--run", str(RUN), *resume],
    ["evaluate", str(RUN), "--raise-images", "300"],
    ["sample", str(RUN), "--overwrite"],
    ["report", str(RUN)],
):
    print("$ latentbits", *command, flush=True)
    if status := subprocess.run([sys.executable, "-m", "latentbits", *command], check=False).returncode:
        raise SystemExit(status)
