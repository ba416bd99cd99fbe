"""Scores a folder of predicted intrinsics against ground truth, by a named protocol.

    python evaluate.py --task normal --protocol pooled --pred_dir output/normal/predicted --gt_dir DIODE/normals/val

A number means something only with its protocol: the same normals score up to 4 degrees apart when pixels are pooled
over the set (DSINE 2403.00712) or averaged per image (Marigold 2312.02145). So the result file states protocol, mask
rule, frames, counts, resolution and version. The evaluation of the Intrinsic LoRA paper (2311.17137) was never
released: nothing here reproduces its tables.
"""

import shlex
import sys

from utils.errors import one_line, run
from utils.evaluation.args import parse_args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(__doc__, argv)

    from utils.evaluation import report  # only now: --help needs no numpy
    from utils.evaluation.run import evaluate, write_result

    result = evaluate(args)
    write_result(result, args.output)
    print(report.as_text(result))
    print(f"\nwritten: {args.output}" + (f", {args.report / 'index.html'}" if args.report else ""))
    again = shlex.join(["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv), "--report", "report"])
    print(one_line(f"next: open {shlex.quote(str(args.report / 'index.html'))}" if args.report else f"next: {again}"))


if __name__ == "__main__":
    run(main)
