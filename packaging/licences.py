"""Writes the licences of everything that is linked into the program: packaging/licences.py TARGET >FILE.

Asks cargo which crates those are, and takes each one's own licence texts. Fails where a crate ships none and its
licence is not one whose text stands here already.
"""

import json
import pathlib
import subprocess
import sys

# Texts that Debian has in /usr/share/common-licenses, or that are the program's own (debian/copyright).
KNOWN = {"MIT", "Apache-2.0", "CC0-1.0"}


def cargo(*words):
    return subprocess.run(["cargo", *words], check=True, capture_output=True, text=True).stdout


def linked(target):
    """Name and version of each crate of the program, without what only builds it."""
    tree = cargo("tree", "--locked", "-e", "normal,no-proc-macro", "--target", target, "--prefix", "none", "--format", "{p}")
    return {tuple(line.split()[:2]) for line in tree.splitlines() if line and not line.startswith("proxy ")}


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    names = ("license", "licence", "copying", "notice", "copyright", "unlicense")
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().startswith(names)]


target = sys.argv[1]
wanted = linked(target)
packages = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", target))["packages"]
packages = [package for package in packages if (package["name"], f"v{package['version']}") in wanted]
if len(packages) != len(wanted):
    sys.exit(f"packaging/licences.py: {len(wanted)} crates are linked, cargo metadata knows {len(packages)}")

numbers, found, without = {}, [], []
print("The crates that are linked into /usr/sbin/proxy, and where in this file their licences stand.\n")
for package in packages:
    mine = []
    for path in texts(package):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if text not in numbers:
            numbers[text] = len(numbers) + 1
            found.append(text)
        mine.append(f"{path.name} [{numbers[text]}]")
    alternatives = set((package["license"] or "").replace("/", " OR ").split(" OR "))
    if not mine and not {word.strip() for word in alternatives} & KNOWN:
        without.append(f"{package['name']} {package['version']}: {package['license']}")
    authors = ", ".join(package["authors"]) or "its authors"
    print(f"{package['name']} {package['version']}, {package['license']}, by {authors}")
    print(f"    {', '.join(mine) or 'no text of its own: see /usr/share/doc/proxy/copyright'}")
for number, text in enumerate(found, 1):
    print(f"\n{'=' * 100}\n[{number}]\n\n{text}")
if without:
    sys.exit("packaging/licences.py: no licence text: " + "; ".join(without))
