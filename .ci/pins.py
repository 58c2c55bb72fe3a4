"""Say what pip-audit (its JSON on standard input) knows of the pinned packages; status 1 where one is vulnerable."""

import json
import sys

answer = sys.stdin.read()
if not answer:
    sys.exit("pins: pip-audit gave no answer")
packages = json.loads(answer)["dependencies"]
asked = [package for package in packages if "skip_reason" not in package]
found = [package for package in asked if package["vulns"]]
for package in found:
    for item in package["vulns"]:
        mended = ", ".join(item["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {item['id']}, mended in {mended}")
print(f"pins: {len(asked)} of {len(packages)} packages looked up, {len(found)} with known vulnerabilities")
if not asked:
    print("pins: this machine's index has no database of vulnerabilities; run `make pins` where there is one")
sys.exit(bool(found))
