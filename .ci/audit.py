"""Looks for known vulnerabilities in the packages of a lock; fails where there are any.

`pip-audit` says "no known vulnerabilities" also where it reached no advisory data. So a
package that is known to be vulnerable is asked about too: unless that one is found,
nothing was audited, and this says so instead of calling the lock clean.

Usage: python .ci/audit.py requirements.lock
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KNOWN = "jinja2==2.10"
"""Has had advisories since 2019."""


def audited(requirements: Path, *options: str) -> list[dict[str, Any]]:
    """What pip-audit says of each package; nothing where it gave no answer."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "-r", str(requirements), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        sys.stderr.write(done.stderr[-500:])
        return []
    return found


def verdict(lock: list[dict[str, Any]], known: list[dict[str, Any]]) -> tuple[int, str]:
    """Exit code and a line, from what was said of the lock and of `KNOWN`."""
    vulnerable = [
        f"{one['name']} {one['version']}: {', '.join(v['id'] for v in one['vulns'])}"
        for one in lock
        if one.get("vulns")
    ]
    if vulnerable:
        return 1, "vulnerable: " + "; ".join(vulnerable)
    if not any(one.get("vulns") for one in known):
        return 0, "SKIPPED: no advisory data was reached, so nothing was audited"
    skipped = [one["name"] for one in lock if "skip_reason" in one]
    if skipped or not lock:
        return 1, f"not audited: {', '.join(skipped) or 'the lock'}"
    return 0, f"{len(lock)} packages, no known vulnerability"


def main() -> None:
    """Audit the lock that is named."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder, "known.txt")
        canary.write_text(f"{KNOWN}\n")
        known = audited(canary, "--no-deps")
    code, line = verdict(audited(Path(sys.argv[1]), "--require-hashes"), known)
    sys.stdout.write(f"{sys.argv[1]}: {line}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
