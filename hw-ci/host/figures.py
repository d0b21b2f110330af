"""Figures of a lane as JSON, for people and for comparison between runs.

    figures.py RESULTS LANE           reads RESULTS/{checks,figures}, writes RESULTS/figures.json, prints the figures
    figures.py --all RESULTS FILE     gathers RESULTS/*/figures.json into FILE
"""

import json
import pathlib
import platform
import sys


def lines(path):
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def value_of(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def lane(results, name):
    checks = [line.split(" ", 1) for line in lines(results / "checks") if " " in line]
    figures = {}
    for line in lines(results / "figures"):
        fields = line.split("\t")
        if len(fields) == 3:
            figures[fields[0]] = {"value": value_of(fields[1]), "unit": fields[2]}
    for path in sorted(results.glob("*.json")):
        if path.name != "figures.json":
            try:
                figures[path.stem] = json.loads(path.read_text())
            except ValueError as error:
                figures[path.stem] = {"error": str(error)}
    verdict = {"ok": "passed", "FAILED": "failed", "skip": "skipped"}
    report = {
        "lane": name,
        "host_linux": platform.release(),
        "checks": [{"verdict": verdict[kind], "name": text} for kind, text in checks if kind in verdict],
        "figures": figures,
    }
    (results / "figures.json").write_text(json.dumps(report, indent=1) + "\n")
    for key, figure in figures.items():
        if "value" in figure and not key.startswith("boot."):
            print(f"  {key:<44} {figure['value']} {figure['unit']}")


def gather(results, target):
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*/figures.json"))]
    target.write_text(json.dumps({"lanes": found}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--all":
        gather(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        lane(pathlib.Path(sys.argv[1]), sys.argv[2])
