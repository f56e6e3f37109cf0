"""Refuses a dependency whose licence is not on the list. Reads `cargo metadata` from standard input."""

import json
import re
import sys

ALLOWED = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CDLA-Permissive-2.0", "ISC", "OpenSSL", "Unicode-3.0", "Unlicense", "Zlib", "0BSD", "MIT-0",
}


def allowed(expression):
    """An SPDX expression: every AND part needs one allowed OR alternative."""
    text = expression.replace("/", " OR ").replace("(", "").replace(")", "")
    return all(any(word.strip() in ALLOWED for word in re.split(r"\bOR\b", part)) for part in re.split(r"\bAND\b", text))


wrong = [
    f"{package['name']} {package['version']}: {package['license']}"
    for package in json.load(sys.stdin)["packages"]
    if not allowed(package["license"] or "none given")
]
print("\n".join(wrong) or "every dependency's licence is on the list")
sys.exit(1 if wrong else 0)
