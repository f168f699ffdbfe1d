"""What becomes of what users hand in and cannot be right: of each kind how many were tried, refused, or accepted."""

import sys
import tempfile
from pathlib import Path

from arguments import known, make_parser, record

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the inputs are those of the tests

from tests.e2e.bad_inputs import KINDS, make_world  # noqa: E402
from tests.e2e.bad_inputs.outcome import as_process  # noqa: E402


def try_all(kind: str, template: Path) -> dict:
    """All inputs of a kind, a process each."""
    badly, accepted, seconds, resident = {}, [], [], []
    for given in KINDS[kind]:
        outcome = as_process(template, given)
        seconds.append(outcome.seconds)
        resident.append(outcome.resident)
        if outcome.status == 0:
            accepted.append(given.name)
        elif fault := outcome.fault(given):
            badly[given.name] = fault
    return {
        "tried": len(seconds),
        "refused_well": len(seconds) - len(badly) - len(accepted),
        "badly": badly,
        "accepted": accepted,
        "seconds": round(max(seconds), 1),  # of the processors, at most
        "megabytes": round(max(resident) / 1e6),
    }


def table(results: dict[str, dict]) -> str:
    """The README's."""
    rows = [
        [kind, r["tried"], r["refused_well"], len(r["badly"]), len(r["accepted"]), r["seconds"], r["megabytes"]]
        for kind, r in results.items()
    ]
    sums = [sum(row[i] for row in rows) for i in range(1, 5)]
    rows.append(["all", *sums, *(max(row[i] for row in rows) for i in (5, 6))])
    head = ["kind", "tried", "refused well", "badly", "accepted wrongly", "seconds, at most", "MB, at most"]
    lines = [head, ["---", *["---:"] * 6], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    args = make_parser(__doc__, __file__, parts=KINDS, table=True).parse_args()
    if not args.table:
        with tempfile.TemporaryDirectory(prefix="bad-inputs-") as work:
            template = Path(work) / "right"
            make_world(template)
            for kind in args.parts:
                if known(args.output, kind) is None:
                    record(args.output, try_all(kind, template), kind)
    print(table(known(args.output)))


if __name__ == "__main__":
    main()
