"""onnxnorm doctor: say what this installation can do and what is wrong with it.

Exit status 0 when everything works, 1 when something is missing or broken.
"""

from __future__ import annotations

import argparse

from onnxnorm.cli._common import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(arguments: argparse.Namespace) -> int:
    """Runs every examination."""
    from onnxnorm.runtime.doctor import examine

    findings = examine()
    healthy = all(item.ok for item in findings)
    if arguments.json:
        print_json({"healthy": healthy, "findings": [item.to_json() for item in findings]})
    else:
        rows = [(item.subject, "ok" if item.ok else "PROBLEM", item.text) for item in findings]
        print_table("onnxnorm doctor", ("what", "state", "finding"), rows)
        print("everything works" if healthy else "there are problems; see above")
    return 0 if healthy else 1
