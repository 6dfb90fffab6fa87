"""The table of faults at the end of a run of the tests."""

import collections


def pytest_terminal_summary(terminalreporter):
    """Prints a row for each kind of fault."""
    counts = collections.defaultdict(collections.Counter)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            # Properties travel with the reports of other processes.
            properties = dict(report.user_properties)
            if report.when == "call" and "fault" in properties:
                tried = properties.get("tried", 1)
                row = counts[properties["fault"]]
                row["tried"] += tried
                row["survived"] += tried * (outcome == "passed")
                row["lost"] += properties.get("lost", 0)
    if not counts:
        return
    rows = sorted(counts.items())
    rows.append(("all", sum(counts.values(), collections.Counter())))
    width = max(len(kind) for kind, _ in rows)
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'':{width}}  tried  survived  weights lost")
    for kind, row in rows:
        terminalreporter.write_line(
            f"{kind:{width}}  {row['tried']:5}  {row['survived']:8}  "
            f"{row['lost']:12}"
        )
