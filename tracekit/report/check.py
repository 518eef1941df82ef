"""What `tracekit check` says: lines, JSON, JUnit's XML and SARIF."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tracekit import __version__
from tracekit.diagnose.gate import Checked
from tracekit.plural import plural

_MARK = {"holds": "ok", "fires": "FAIL", "cannot tell": "?"}


def to_facts(path: str, checked: Sequence[Checked], *, lost: bool, withheld: bool) -> dict[str, Any]:
    """Return what was checked as JSON types."""
    return {"path": path, "lost": lost, "withheld": withheld, "rules": rules_of(checked)}


def rules_of(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """Return what each rule said as JSON types."""
    return [{"rule": c.predicate.text, "field": c.predicate.path, "value": c.value, "state": c.state} for c in checked]


def rule_line(rule: Mapping[str, Any]) -> str:
    """Say what one rule said; `rule` as `rules_of` gives it."""
    return f"{_MARK[rule['state']]:<5}{rule['rule']}  ({_what(rule['field'], rule['value'])})"


def to_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for the terminal; `facts` as `to_facts` gives them."""
    yield from map(rule_line, facts["rules"])
    if facts["lost"]:
        yield "data was lost in the trace: what is missing could not be judged"
    if facts["withheld"]:
        yield "the verdict on a part of the run is withheld: `tracekit replay` says why"
    states = [one["state"] for one in facts["rules"]]
    fired, unknown = states.count("fires"), states.count("cannot tell")
    yield f"{plural(len(states), 'rule')}, {fired} fired, {unknown} could not be told"


def to_junit(path: str, checked: Sequence[Checked]) -> str:
    """Return one test case a rule, as Jenkins and GitLab read it."""
    counts = {
        "tests": len(checked),
        "failures": sum(c.state == "fires" for c in checked),
        "errors": sum(c.state == "cannot tell" for c in checked),
    }
    attributes = {"name": "tracekit check", **{name: str(count) for name, count in counts.items()}}
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for one in checked:
        case = ElementTree.SubElement(suite, "testcase", {"classname": path, "name": one.predicate.text})
        if one.state != "holds":
            kind = "failure" if one.state == "fires" else "error"
            ElementTree.SubElement(case, kind, {"message": _what(one.predicate.path, one.value)})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def to_sarif(path: str, checked: Sequence[Checked]) -> str:
    """Return the rules that do not hold as SARIF 2.1.0 (OASIS), as GitHub's code scanning reads it."""
    place = [{"physicalLocation": {"artifactLocation": {"uri": Path(path).as_posix()}}}]
    results = [
        {
            "ruleId": one.predicate.text,
            "level": "error",
            "message": {"text": f"{one.predicate.text}: {_what(one.predicate.path, one.value)}"},
            "locations": place,
        }
        for one in checked
        if one.state != "holds"
    ]
    rules = [{"id": one.predicate.text, "shortDescription": {"text": one.predicate.text}} for one in checked]
    driver = {"name": "tracekit", "version": __version__, "rules": rules}
    run = {"tool": {"driver": driver}, "results": results}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _what(field: str, value: float | str | None) -> str:
    if value is None:
        return f"{field} is not known"
    return f"{field} is {value:.4g}" if isinstance(value, float) else f"{field} is {value}"
